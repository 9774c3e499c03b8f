"""Settings of the explorer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dpstream.shared.settings import Separated, Slots, WorkerSettings


class ExplorerSettings(WorkerSettings):
    explorer_queues: Annotated[tuple[Literal["explore", "judge", "screen"], ...], Separated] = (
        Field(
            default=("explore", "judge", "screen"),
            min_length=1,
            description="comma-separated work queues, each with its own child process: explore "
            "(trajectories), judge (short tasks on which others depend), screen (frames that "
            "generators offer)",
        )
    )
    explorer_slots: Slots = Field(
        default=1,
        description="tasks of the queue explore at once, each in a child process of its own; "
        "judge and screen keep one each beside them; without explore, judge has the slots; "
        "auto: by cores and memory",
    )
    explorer_models: Annotated[tuple[Literal[".pb", ".pth"], ...], Separated] = Field(
        default=(".pb",),
        min_length=1,
        description="comma-separated suffixes of model files that this worker loads; .pth files "
        "can execute code, so add .pth only if you trust everyone who can write to the store",
    )
    explorer_templates: Literal["safe", "any"] = Field(
        default="safe",
        description="LAMMPS, Colvars and PLUMED inputs allowed in campaigns: safe refuses inputs "
        "that run code or access files outside the worker's folder; any allows "
        "every input, for trusted submitters only",
    )
    explorer_gromacs: str = Field(
        default="gmx",
        description="the program of GROMACS for the engine gromacs: a name on PATH, or a path",
    )
