"""Settings of the trainer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dpstream.shared.settings import Separated, Slots, WorkerSettings


class TrainerSettings(WorkerSettings):
    trainer_slots: Slots = Field(
        default=1,
        description="trainings at once, each in a child process of its own; auto: by cores and "
        "memory, on a GPU also by its memory",
    )
    trainer_models: Annotated[
        tuple[Literal[".pb", ".pt", ".hlo", ".zip", ".pth"], ...], Separated
    ] = Field(
        default=(".pb", ".pt", ".hlo", ".zip"),
        description="comma-separated suffixes of model files that this worker loads to start a "
        "training from (.zip: checkpoints); .pth files can execute code, so add .pth only if you "
        "trust all submitters",
    )
