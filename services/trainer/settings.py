"""Settings of the trainer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dpstream.shared.settings import Separated, WorkerSettings


class TrainerSettings(WorkerSettings):
    trainer_models: Annotated[
        tuple[Literal[".pb", ".pt", ".hlo", ".zip", ".pth"], ...], Separated
    ] = Field(
        default=(".pb", ".pt", ".hlo", ".zip"),
        description="comma-separated suffixes of model files that this worker loads to start a "
        "training from (.zip: checkpoints); .pth files can execute code, so add .pth only if you "
        "trust all submitters",
    )
