"""What the workers of a simulated campaign find, by its spec and what is assumed."""

from __future__ import annotations

import random
from collections.abc import Container

from dpstream.services.coordinator.fleet.assumptions import Assumptions
from dpstream.services.coordinator.simulation.results import SimulatedResults
from dpstream.shared import messages as m
from dpstream.shared.ports import Store
from dpstream.shared.spec import Spec
from dpstream.shared.values import CandidatePool, Chosen

NAMED = 100
"""Frames that one event of a selection names: as many as a message has room for."""


class _FromStore(dict[str, str]):
    """Manifests, read when they are needed and not kept."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store

    def __missing__(self, key: str) -> str:
        return self.store.get(key).decode()


class AssumedResults(SimulatedResults):
    """Every committee of a stage finds its assumed share of candidates; trainings, audits and the
    final model are good. `stored`: frames whose label is in the store."""

    def __init__(
        self,
        spec: Spec,
        assumptions: Assumptions,
        seed: int,
        store: Store,
        stored: Container[str],
    ) -> None:
        super().__init__(
            manifests=_FromStore(store),
            named=NAMED,
            force_error=0.0,
            reservoir=spec.audit.reservoir,
        )
        self.spec, self.assumptions, self.seed, self.stored = spec, assumptions, seed, stored
        self.first: dict[int, int] = {}
        """Version of the first committee of each stage."""
        self._chosen: dict[str, str] = {}
        """The select task that has chosen a frame."""

    def is_ripe(self, version: int) -> bool:
        return not self._share(max(self.first, default=0), version)

    def _share(self, stage: int, version: int) -> float:
        number = version - self.first.get(stage, version)
        candidates = self.assumptions.candidates
        return candidates[number] if number < len(candidates) else 0.0

    def chunks_of(self, command: m.Explore) -> list[int]:
        stage = self.spec.stages[command.stage]
        each = stage.frames if command.pinned else min(stage.md.chunk, stage.frames)
        whole, rest = divmod(stage.frames, each)
        return [each] * whole + ([rest] if rest else [])

    def found(self, command: m.Explore, checks: int) -> int:
        self.first.setdefault(command.stage, command.version)
        expected = checks * self._share(command.stage, command.version)
        drawn = random.Random(f"{self.seed} found {command.trajectory} {command.version}")
        return min(checks, int(expected + drawn.random()))

    def choose(self, command: m.Select, found: list[Chosen], pool: CandidatePool) -> list[Chosen]:
        """New ones only, within the share of each trajectory."""
        share = self.spec.selection.per_trajectory
        left = {name: share - pool.used.get(name, 0) for name in {c.trajectory for c in found}}
        chosen: list[Chosen] = []
        for each in found:
            mine = self._chosen.get(each.key, command.task) == command.task
            if mine and left[each.trajectory] > 0 and len(chosen) < command.labels:
                left[each.trajectory] -= 1
                self._chosen[each.key] = command.task
                chosen.append(each)
        return chosen

    def rejects(self, frame: str) -> bool:
        share = self.assumptions.rejected
        return bool(share) and random.Random(f"{self.seed} rejected {frame}").random() < share

    def writer(self, frame: str) -> str | None:
        return "" if frame in self.stored else None

    def label_seconds(self, frame: str) -> float:
        return self.assumptions.times("label").draw(self.seed, frame)

    def audit_errors(self, version: int) -> tuple[float, float]:
        return 0.0, 0.0
