"""What exploration has found: verdicts on rounds, deviations, trust levels, audits.

Built from the ledger. The numbers of the running round are in the overview.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from dpstream.services.coordinator.views.projection import Changes, Projection
from dpstream.shared import messages as m
from dpstream.shared.atoms.deviation import BINS
from dpstream.shared.atoms.frames import Ints
from dpstream.shared.values import Trust

Place = tuple[int, int]
"""Stage, counted from 0, and committee version."""


@dataclass
class Rounds(Projection):
    """`judged`: verdicts on rounds; `histograms`: frames by deviation in `BINS`, `(48,)`, by stage
    and version; `stopped`: reasons why trajectories stopped early; `refused`: reasons why
    candidates were not chosen."""

    judged: list[m.RoundJudged] = field(default_factory=list)
    trusts: list[m.TrustChanged] = field(default_factory=list)
    audits: list[m.AuditDone] = field(default_factory=list)
    histograms: dict[Place, Ints] = field(default_factory=dict)
    stopped: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    _commands: dict[str, Any] = field(default_factory=dict)
    _counted: set[tuple[str, int]] = field(default_factory=set)

    def add(self, message: m.Message) -> None:
        if isinstance(message, m.Command):
            self._commands.setdefault(message.task, message)
        if not isinstance(message, m.Result) or self._counts(message):
            super().add(message)

    def trust_at(self, place: Place) -> Trust | None:
        """The trust levels in force in a stage under a version."""
        known = [t for t in self.trusts if t.stage == place[0] and t.version <= place[1]]
        return known[-1].trust if known else None

    def newest_audits(self) -> dict[int, m.AuditDone]:
        """The last audit of each stage."""
        return {audit.stage: audit for audit in self.audits}

    def _counts(self, result: m.Result) -> bool:
        """The first result of a task counts, and so does the first of each chunk."""
        place = (result.task, result.chunk if isinstance(result, m.Chunk) else 0)
        first = place not in self._counted
        self._counted.add(place)
        return first and result.task in self._commands

    def _chunk(self, event: m.ChunkExplored) -> None:
        place = (self._commands[event.task].stage, event.version)
        empty: Ints = np.zeros(len(BINS) - 1, dtype=np.int64)
        counts = np.array(event.histogram, dtype=np.int64)
        self.histograms[place] = self.histograms.get(place, empty) + counts
        if event.stopped:
            self.stopped[event.stopped] += 1

    CHANGES: ClassVar[Changes] = {
        m.ChunkExplored: _chunk,
        m.AuditDone: lambda rounds, event: rounds.audits.append(event),
        m.RoundJudged: lambda rounds, decision: rounds.judged.append(decision),
        m.TrustChanged: lambda rounds, decision: rounds.trusts.append(decision),
        m.CandidatesSelected: lambda rounds, event: rounds.refused.update(event.refused),
    }
