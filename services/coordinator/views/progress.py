"""What a report tells, gathered from the messages of a ledger: finished or not, it tells what is
known so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dpstream.services.coordinator.views.frames import History
from dpstream.shared import messages as m
from dpstream.shared.atoms.deviation import BINS
from dpstream.shared.atoms.frames import Ints
from dpstream.shared.values import Counts, Trust

Place = tuple[int, int]
"""Stage and committee version, both as in the messages."""


@dataclass
class Version:
    """One committee version. `cold`: trained from scratch."""

    number: int
    cold: bool = True
    members: dict[int, m.MemberTrained] = field(default_factory=dict)
    judged: m.TrainingJudged | None = None

    @property
    def frames(self) -> int | None:
        """Frames it was trained on."""
        return next((member.train.frames for member in self.members.values()), None)


@dataclass
class Facts:
    """A campaign so far. `histograms`: frames by deviation in `BINS`, `(48,)`, by stage and
    version; `running`: frames by condition since the last verdict on a round."""

    history: History = field(default_factory=History)
    versions: dict[int, Version] = field(default_factory=dict)
    final: m.MemberTrained | None = None
    audits: list[m.AuditDone] = field(default_factory=list)
    histograms: dict[Place, Ints] = field(default_factory=dict)
    rounds: list[m.RoundJudged] = field(default_factory=list)
    running: dict[tuple[int, str], Counts] = field(default_factory=dict)
    stages: dict[int, m.StageEnded] = field(default_factory=dict)
    trusts: list[m.TrustChanged] = field(default_factory=list)
    judged: list[m.TrainingJudged] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    stopped: Counter[str] = field(default_factory=Counter)
    abandoned: list[m.TaskAbandoned] = field(default_factory=list)
    paused: m.CampaignPaused | None = None
    verified: m.Verified | None = None
    finished: m.CampaignFinished | None = None
    began: float = 0.0
    last: float = 0.0
    _commands: dict[str, Any] = field(default_factory=dict)
    _done: set[tuple[str, int]] = field(default_factory=set)
    _round_tasks: set[str] = field(default_factory=set)

    @staticmethod
    def of(messages: Iterable[m.Message]) -> Facts:
        facts = Facts()
        for message in messages:
            facts.hear(message)
        return facts

    def hear(self, message: m.Message) -> None:
        """Take in the next message of the ledger."""
        self.began = self.began or message.time
        self.last = max(self.last, message.time)
        self.history.hear(message)
        if isinstance(message, m.Command):
            self._issued(message)
        elif isinstance(message, m.Result) and not self._first_word(message):
            return
        tell = TELL.get(type(message))
        if tell is not None:
            tell(self, message)

    def trust_at(self, place: Place) -> Trust | None:
        """The trust levels in force in a stage under a version."""
        known = [t for t in self.trusts if t.stage == place[0] and t.version <= place[1]]
        return known[-1].trust if known else None

    def newest_audits(self) -> dict[int, m.AuditDone]:
        """The last audit of each stage."""
        return {audit.stage: audit for audit in self.audits}

    def _issued(self, command: m.Command) -> None:
        self._commands.setdefault(command.task, command)
        if isinstance(command, m.Explore):
            self._round_tasks.add(command.task)
        if isinstance(command, m.Train) and not command.final:
            version = self.versions.setdefault(command.version, Version(command.version))
            version.cold = command.start is None

    def _first_word(self, result: m.Result) -> bool:
        """A task's first result stands, and so does the first of each chunk."""
        place = (result.task, result.chunk if isinstance(result, m.Chunk) else 0)
        first = place not in self._done
        self._done.add(place)
        return first and result.task in self._commands

    def _member(self, event: m.MemberTrained) -> None:
        if self._commands[event.task].final:
            self.final = event
        else:
            self.versions[event.version].members[event.member] = event

    def _chunk(self, event: m.ChunkExplored) -> None:
        command = self._commands[event.task]
        place = (command.stage, event.version)
        counts = np.array(event.histogram, dtype=np.int64)
        empty: Ints = np.zeros(len(BINS) - 1, dtype=np.int64)
        self.histograms[place] = self.histograms.get(place, empty) + counts
        if event.stopped:
            self.stopped[event.stopped] += 1
        if event.task in self._round_tasks:
            condition = (command.stage, str(command.condition))
            found = event.counts + Counts(failed=event.dropped)
            self.running[condition] = self.running.get(condition, Counts()) + found

    def _round(self, decision: m.RoundJudged) -> None:
        self.rounds.append(decision)
        self.running.clear()
        self._round_tasks.clear()

    def _stage(self, decision: m.StageEnded) -> None:
        self.stages[decision.stage] = decision
        self.running.clear()
        self._round_tasks.clear()

    def _training(self, decision: m.TrainingJudged) -> None:
        self.judged.append(decision)
        self.versions.setdefault(decision.version, Version(decision.version)).judged = decision

    def _selected(self, event: m.CandidatesSelected) -> None:
        self.refused.update(event.refused)

    def _pause(self, decision: m.CampaignPaused) -> None:
        self.paused = decision

    def _resume(self, event: m.CampaignResumed) -> None:
        self.paused = None

    def _verify(self, event: m.Verified) -> None:
        self.verified = event

    def _finish(self, decision: m.CampaignFinished) -> None:
        self.finished = decision


TELL: Mapping[type[m.Message], Callable[[Facts, Any], None]] = {
    m.MemberTrained: Facts._member,
    m.ChunkExplored: Facts._chunk,
    m.AuditDone: lambda facts, event: facts.audits.append(event),
    m.RoundJudged: Facts._round,
    m.StageEnded: Facts._stage,
    m.TrainingJudged: Facts._training,
    m.TrustChanged: lambda facts, decision: facts.trusts.append(decision),
    m.CandidatesSelected: Facts._selected,
    m.TaskAbandoned: lambda facts, decision: facts.abandoned.append(decision),
    m.CampaignPaused: Facts._pause,
    m.CampaignResumed: Facts._resume,
    m.Verified: Facts._verify,
    m.CampaignFinished: Facts._finish,
}


def learning_verdict(facts: Facts) -> tuple[str, str]:
    """Which of *converged*, *training-limited*, *label-noise-limited* and *data-limited* holds,
    and why; *not known yet* before the first committee."""
    if facts.finished is not None and facts.finished.verdict == "converged":
        return "converged", facts.finished.why
    if not facts.judged:
        return "not known yet", "no committee has been judged"
    newest = facts.judged[-1]
    if newest.verdict != "sound":
        return newest.verdict, newest.why
    return "data-limited", (
        f"committee {newest.version} has learned what its labels teach ({newest.why}); "
        "what is missing are labels of what it has not seen"
    )


def headline(facts: Facts) -> tuple[str, str]:
    """The verdict in a word, and why."""
    if facts.finished is not None:
        return facts.finished.verdict.replace("-", " "), facts.finished.why
    if facts.paused is not None:
        return "paused", facts.paused.why
    if facts.rounds:
        last = facts.rounds[-1]
        return "under way", f"round {last.round}: {last.why}"
    return "under way", "no round has been judged yet"
