"""The `explore` task: runs one trajectory and judges its frames.

Pinned (lockstep): one committee throughout, one event. Streaming: one event per chunk, each with
the restart file from which another attempt resumes; between chunks the trajectory switches to the
newest committee. Step 0 is not checked, so a trajectory has `steps // every` checks, each counted
as accurate, candidate, failed or, after an early stop, dropped.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from dpstream.services.explorer.engines import ENGINES, ExplorationEngine, TrajectoryRequest
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.services.explorer.selection.reservoir import Reservoir, joined
from dpstream.shared.atoms.deviation import Verdict, count, histogram, verdict
from dpstream.shared.atoms.electron_temperature import heated
from dpstream.shared.atoms.frames import Batch, Frame, canonical
from dpstream.shared.errors import NotFound, Permanent
from dpstream.shared.messages import ChunkExplored, Explore
from dpstream.shared.runtime.context import Context
from dpstream.shared.spec import Md
from dpstream.shared.spec.engines import frames_per_check
from dpstream.shared.values import Committee, FrameRef, PoolItem, Ref, campaign_uri


def explore(resources: ExplorerResources, command: Explore, context: Context) -> ChunkExplored:
    """Run the command's trajectory from `from_chunk` on. Publishes all events but the last, which
    is returned.

    Raises Permanent for settings that can never work, EngineError for errors of LAMMPS during the
    set-up, and EngineCrashed if the child process dies. A trajectory that becomes unphysical stops
    early and is still a result.
    """
    run = TrajectoryRun(resources, command, context)
    run.start()
    while True:
        run.advance()
        if run.over:
            return run.report(last=True)
        context.publish(run.report(last=False))
        run.switch_to_newest()


@dataclass
class TrajectoryRun:
    """A running trajectory. `made`: checks so far; `streak`: consecutive failed checks at the end;
    `uniform`: one committee version since the start; `fresh`: frames of the current chunk with
    arrays devi_f, devi_v, time_ps, version, and `verdicts` on them."""

    resources: ExplorerResources
    command: Explore
    context: Context
    made: int = 0
    streak: int = 0
    stopped: str | None = None
    complete: bool = False
    uniform: bool = True
    chunk: int = 0
    fresh: list[Batch] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    @cached_property
    def request(self) -> TrajectoryRequest:
        frame = self._heated(starting_frame(self.command.structure, self.context))
        committee = self.resources.committee(self.command.committee, self.context)
        return TrajectoryRequest(self.resources, self.command, self.context, frame, committee)

    def _heated(self, frame: Frame) -> Frame:
        """`frame` with the electron temperature of the condition, if it has one."""
        carrier = self.context.spec().labels.electron_temperature
        kelvin = self.command.condition.electrons
        return frame if carrier is None or kelvin is None else heated(frame, carrier, kelvin)

    @cached_property
    def explorer(self) -> ExplorationEngine:
        return ENGINES[self.request.settings.kind](self.request)

    @cached_property
    def reservoir(self) -> Reservoir:
        return Reservoir(self.context.spec().audit.reservoir, self.command.seed)

    @property
    def md(self) -> Md:
        return self.request.md

    @property
    def planned(self) -> int:
        return self.md.steps // self.md.every

    @property
    def over(self) -> bool:
        return self.stopped is not None or self.complete or self.made >= self.planned

    @property
    def dropped(self) -> int:
        """Planned frames that will not be judged."""
        left = 0 if self.complete else self.planned - self.made
        return left * frames_per_check(self.request.settings)

    def start(self) -> None:
        """Start the engine at the first step, or resume after the last accepted chunk."""
        self.chunk = self.command.from_chunk
        try:
            if self.command.resume is None:
                self.explorer.start()
            else:
                self._resume(self.command.resume)
        except ValueError as error:
            raise Permanent(f"{self.command.condition}: {error}") from error

    def advance(self) -> None:
        """Run one chunk or, with a pinned committee, the whole trajectory in segments of one
        chunk."""
        self.fresh, self.verdicts = [], []
        while True:
            self._advance_segment(min(self.md.chunk, self.planned - self.made))
            self.context.progress(f"{self.made} of {self.planned} checks")
            if self.over or not self.command.pinned:
                return

    def switch_to_newest(self) -> None:
        """Switch to the newest committee, if there is a newer one."""
        self.chunk += 1
        if self._load_newest():
            self.uniform = False
            self.explorer.switch_committee()

    def _load_newest(self) -> bool:
        """Set the request's committee to the newest; False if it is already."""
        newest = newest_committee(self.request.committee.version, self.context)
        if newest is not None:
            self.request.committee = self.resources.load(newest, self.context)
        return newest is not None

    def report(self, last: bool) -> ChunkExplored:
        """Upload the frames of the current chunk and return its event."""
        devi_f = [batch.arrays["devi_f"] for batch in self.fresh]
        return ChunkExplored(
            **self.context.envelope(),
            version=self.request.committee.version,
            chunk=self.chunk,
            last=last,
            counts=count(self.verdicts),
            dropped=self.dropped if last else 0,
            stopped=self.stopped,
            uniform=self.uniform,
            candidates=self._candidates(),
            reservoir=self._item("reservoir.npz", self.reservoir.batch()) if last else None,
            restart=None if last else self._checkpoint(),
            histogram=tuple(histogram(np.concatenate([*devi_f, np.empty(0)])).tolist()),
        )

    def _advance_segment(self, checks: int) -> None:
        segment = self.explorer.advance(checks, self.streak)
        self.made += segment.made
        self.streak, self.stopped, self.complete = segment.streak, segment.stopped, segment.complete
        if segment.frames is not None:
            self._judge_after_skip(segment.frames)

    def _judge_after_skip(self, batch: Batch) -> None:
        """Judge the frames after md.skip steps; earlier ones are not equilibrated."""
        first = (self.md.skip - 0.5) * self.md.timestep
        rows = np.flatnonzero(batch.arrays["time_ps"] > first)
        if len(rows):
            self._judge(batch.take(rows.tolist()))

    def _judge(self, batch: Batch) -> None:
        vacuum, trust = self.request.vacuum, self.command.trust
        version = np.full(len(batch), self.request.committee.version)
        batch = replace(batch, arrays={**batch.arrays, "version": version})
        pairs = zip(batch.arrays["devi_f"], batch.arrays["devi_v"], strict=True)
        for row, (devi_f, devi_v) in enumerate(pairs):
            kind = verdict(float(devi_f), None if vacuum else float(devi_v), trust)
            self.verdicts.append(kind)
            self.reservoir.offer(kind, batch.take([row]))
        self.fresh.append(batch)

    def _candidates(self) -> PoolItem | None:
        rows = [row for row, kind in enumerate(self.verdicts) if kind == "candidate"]
        batch = joined(self.fresh).take(rows) if rows else None
        return self._item(f"candidates-{self.chunk}.npz", batch)

    def _item(self, name: str, batch: Batch | None) -> PoolItem | None:
        if batch is None:
            return None
        return PoolItem(
            frames=self.context.put(name, batch.dumps()),
            count=len(batch),
            trajectory=self.command.trajectory,
            condition=self.command.condition,
            version=self.request.committee.version,
            planned_ps=self.md.steps * self.md.timestep,
        )

    def _resume(self, ref: Ref) -> None:
        """Resume from the checkpoint of another attempt, with the newest committee."""
        saved, state, reservoir = read_checkpoint(self.context.fetch(ref))
        self.made, self.streak, self.uniform = state["made"], state["streak"], state["uniform"]
        self.reservoir.restore(state["seen"], reservoir)
        self._load_newest()
        self.uniform = self.uniform and self.request.committee.version == state["version"]
        self.explorer.resume(saved)

    def _checkpoint(self) -> Ref:
        state = {
            "made": self.made,
            "streak": self.streak,
            "uniform": self.uniform,
            "version": self.request.committee.version,
            "seen": self.reservoir.seen,
        }
        data = write_checkpoint(self.explorer.save(), state, self.reservoir.batch())
        return self.context.put(f"restart-{self.chunk}.npz", data)


def starting_frame(ref: FrameRef, context: Context) -> Frame:
    """The frame a trajectory starts from, canonical."""
    return canonical(Batch.loads(context.fetch(ref.batch))[ref.index]).frame


def newest_committee(version: int, context: Context) -> Committee | None:
    """The newest committee of the campaign after `version`, or None."""
    newest = None
    while True:
        version += 1
        key = campaign_uri(context.command.campaign, "committees", f"{version}.json")
        try:
            newest = Committee.model_validate_json(context.store.get(key))
        except NotFound:
            return newest


def write_checkpoint(saved: bytes, state: dict[str, Any], reservoir: Batch | None) -> bytes:
    """The state of an engine and of its trajectory as an `.npz` archive."""
    kept = b"" if reservoir is None else reservoir.dumps()
    out = io.BytesIO()
    np.savez(
        out,
        saved=np.frombuffer(saved, dtype=np.uint8),
        reservoir=np.frombuffer(kept, dtype=np.uint8),
        state=np.array(json.dumps(state)),
    )
    return out.getvalue()


def read_checkpoint(data: bytes) -> tuple[bytes, dict[str, Any], Batch | None]:
    """The inverse of `write_checkpoint`."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        kept: Sequence[int] = archive["reservoir"]
        reservoir = Batch.loads(bytes(kept)) if len(kept) else None
        return bytes(archive["saved"]), json.loads(str(archive["state"])), reservoir
