"""The protocol of exploration engines. See `docs/adding-an-exploration-engine.md`.

The task `explore` creates an engine for a `TrajectoryRequest` and calls `advance` repeatedly; each
call returns a `TrajectorySegment` with judged frames. Between segments the committee may change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dpstream.services.explorer.evaluation import verdicts_of, with_deviations
from dpstream.services.explorer.resources import ExplorerResources, LoadedCommittee
from dpstream.shared.atoms.frames import Batch, Floats, Frame
from dpstream.shared.messages import Explore
from dpstream.shared.runtime.context import Context
from dpstream.shared.spec import Md, Stage
from dpstream.shared.spec.engines import EngineSettings


@dataclass
class TrajectoryRequest:
    """One trajectory to run: its canonical starting frame and the committee that judges it.
    `committee` is replaced when the trajectory switches to a newer one."""

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
        """The task's private folder."""
        return self.context.scratch.resolve()

    @property
    def vacuum(self) -> bool:
        return self.frame.cell is None


@dataclass(frozen=True, eq=False)
class TrajectorySegment:
    """Results of some checks. `made`: number of checks made; `streak`: consecutive failed checks at
    the end; `stopped`: reason why the trajectory ends here, or None; `frames`: canonical frames,
    one per check (and bead), with arrays devi_f (eV/Å), devi_v (eV per atom, zero in vacuum) and
    time_ps, None without checks; `complete`: there is nothing left to check, and remaining planned
    checks do not count as dropped."""

    made: int
    streak: int
    stopped: str | None
    frames: Batch | None
    complete: bool = False


class ExplorationEngine(Protocol):
    """Runs one trajectory. Either `start` or `resume` is called first, once.

    Raises ValueError for settings that can never work, EngineError for errors of the engine, and
    EngineCrashed if the child process dies. A trajectory that becomes unphysical is not an error:
    the `TrajectorySegment` states why it stopped.
    """

    def start(self) -> None:
        """Start at the frame of the request."""

    def resume(self, state: bytes) -> None:
        """Resume from the state that another attempt saved, with the committee of the request."""

    def advance(self, checks: int, streak: int) -> TrajectorySegment:
        """Make up to `checks` more checks, md.every steps apart. The trajectory ends if fewer are
        made, or after md.stop_after consecutive failed checks, of which `streak` precede."""

    def switch_committee(self) -> None:
        """Continue with the present committee of the request."""

    def save(self) -> bytes:
        """The state for `resume`."""


def judged(
    request: TrajectoryRequest, batch: Batch, times: Floats, streak: int
) -> TrajectorySegment:
    """The segment of the checks `batch` at `times` (ps), up to too many consecutive failed ones, of
    which `streak` precede."""
    evaluation = request.resources.evaluate(request.committee.models, batch, request.context)
    trust = request.command.trust
    failed = (kind == "failed" for kind in verdicts_of(evaluation, trust))
    made, streak, stopped = failures_in_a_row(failed, streak, request.md.stop_after)
    frames = with_deviations(batch, evaluation, trust, time_ps=times).take(range(made))
    return TrajectorySegment(made, streak, stopped, frames)


def failures_in_a_row(
    failed: Iterable[bool], streak: int, most: int
) -> tuple[int, int, str | None]:
    """Number of checks made, consecutive failed checks at their end (`streak` before them), and the
    reason why the trajectory ends, or None: it ends after `most` consecutive failed checks."""
    made = 0
    for each in failed:
        made += 1
        streak = streak + 1 if each else 0
        if streak >= most:
            return made, streak, f"{streak} checks in a row above the upper trust level"
    return made, streak, None
