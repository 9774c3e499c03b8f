"""What a trainer is told by its environment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dpstream.shared.settings import Separated, WorkerSettings


class TrainerSettings(WorkerSettings):
    trainer_models: Annotated[
        tuple[Literal[".pb", ".pt", ".hlo", ".zip", ".pth"], ...], Separated
    ] = Field(
        default=(".pb", ".pt", ".hlo", ".zip"),
        description="comma-separated suffixes of given models that trainings may begin from (.zip: "
        "checkpoints); .pth can run code of its own, so add it only where you trust who submits",
    )
