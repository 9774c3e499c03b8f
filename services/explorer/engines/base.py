"""The protocol of an exploration engine. See `docs/adding-an-exploration-engine.md`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dpstream.services.explorer.resources import ExplorerResources, LoadedCommittee
from dpstream.shared.atoms.frames import Batch, Frame
from dpstream.shared.messages import Explore
from dpstream.shared.runtime.context import Context
from dpstream.shared.spec import Md, Stage
from dpstream.shared.spec.engines import EngineSettings


@dataclass
class TrajectoryRequest:
    """One trajectory to be made: where it starts, and the committee that judges it now. `frame`
    is canonical; `committee` changes when a newer one takes over."""

    resources: ExplorerResources
    command: Explore
    context: Context
    frame: Frame
    committee: LoadedCommittee

    @property
    def stage(self) -> Stage:
        return self.context.spec().stages[self.command.stage]

    @property
    def md(self) -> Md:
        return self.stage.md

    @property
    def settings(self) -> EngineSettings:
        return self.stage.engine

    @property
    def folder(self) -> Path:
        """Private to this task."""
        return self.context.scratch.resolve()

    @property
    def vacuum(self) -> bool:
        return self.frame.cell is None


@dataclass(frozen=True, eq=False)
class TrajectorySegment:
    """What came of some checks. `made` of them; `streak`: failed ones in a row up to now;
    `stopped`: None, or why the trajectory ends here; `frames`: canonical, one of each check (of
    each of its beads, if there are several), with arrays devi_f (eV/Å), devi_v (eV per atom, zero
    in vacuum) and time_ps, None where none was made; `complete`: there is no more to check, and
    what was planned beyond is not missing."""

    made: int
    streak: int
    stopped: str | None
    frames: Batch | None
    complete: bool = False


class ExplorationEngine(Protocol):
    """Drives one trajectory. Either `start` or `resume` comes first, once.

    Raises ValueError for settings that can never work, EngineError where its program refuses,
    EngineCrashed where it dies. What goes astray on the way is a `TrajectorySegment` that says so.
    """

    def start(self) -> None:
        """At the frame of the trip."""

    def resume(self, state: bytes) -> None:
        """Where another attempt called `save`, under the committee of the trip."""

    def advance(self, checks: int, streak: int) -> TrajectorySegment:
        """Up to `checks` more checks, md.every steps apart; fewer end the trajectory, and so do
        md.stop_after failed ones in a row, of which `streak` are made already."""

    def switch_committee(self) -> None:
        """Go on under what is now the committee of the trip."""

    def save(self) -> bytes:
        """What `resume` needs."""


def failures_in_a_row(
    failed: Iterable[bool], streak: int, most: int
) -> tuple[int, int, str | None]:
    """How many of these checks are made, failed ones in a row after them (`streak` before), and why
    the trajectory ends with the last of them, if it does: there were `most` in a row."""
    made = 0
    for each in failed:
        made += 1
        streak = streak + 1 if each else 0
        if streak >= most:
            return made, streak, f"{streak} checks in a row above the upper trust level"
    return made, streak, None
