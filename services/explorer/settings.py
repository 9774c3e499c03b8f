"""What an explorer is told by its environment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dpstream.shared.settings import Separated, WorkerSettings


class ExplorerSettings(WorkerSettings):
    explorer_queues: Annotated[tuple[Literal["explore", "judge"], ...], Separated] = Field(
        default=("explore", "judge"),
        min_length=1,
        description="comma-separated work queues, each served by an engine of its own: explore "
        "(trajectories), judge (short tasks that others wait for)",
    )
    explorer_models: Annotated[tuple[Literal[".pb", ".pth"], ...], Separated] = Field(
        default=(".pb",),
        min_length=1,
        description="comma-separated suffixes of model files that are loaded; .pth can run code "
        "of its own, so add it only where nobody else writes to the store",
    )
    explorer_templates: Literal["safe", "any"] = Field(
        default="safe",
        description="what LAMMPS, Colvars and PLUMED inputs of campaigns may do: safe refuses what "
        "runs code or leaves the worker's folder; any trusts everybody who submits campaigns",
    )
