"""Who worked on what, and when: each attempt of a task, from the claim to its end.

Built from the ledger, for the report's times. Times are in seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dpstream.services.coordinator.views.projection import Projection
from dpstream.shared import messages as m
from dpstream.shared.codec import kind_of

SERVICES: Mapping[str, m.Service] = {kind_of(command): command.SERVICE for command in m.COMMANDS}
"""Service by kind of task, in loop order."""

FAILURES = {m.TaskReleased: "released", m.TaskFailed: "failed", m.LeaseLapsed: "lapsed"}
Attempt = tuple[str, int]
"""Task, and number of the attempt."""


@dataclass(frozen=True)
class Span:
    """One attempt of one task at one worker. `outcome`: *done*, *released*, *failed*, *lapsed* or
    *running*."""

    worker: str
    kind: str
    title: str
    start: float
    end: float
    outcome: str

    @property
    def interval(self) -> tuple[float, float]:
        return self.start, self.end

    @property
    def service(self) -> m.Service:
        return SERVICES[self.kind]


@dataclass
class Work(Projection):
    """`began`, `last`: times of the first and of the latest message."""

    began: float = 0.0
    last: float = 0.0
    abandoned: list[m.TaskAbandoned] = field(default_factory=list)
    _commands: dict[str, m.Command] = field(default_factory=dict)
    _claims: dict[Attempt, m.TaskClaimed] = field(default_factory=dict)
    _ends: dict[Attempt, tuple[float, str]] = field(default_factory=dict)

    def add(self, message: m.Message) -> None:
        """A second claim, or a late second result, changes nothing."""
        self.began = self.began or message.time
        self.last = max(self.last, message.time)
        if isinstance(message, m.Command):
            self._commands.setdefault(message.task, message)
        elif isinstance(message, m.TaskAbandoned):
            self.abandoned.append(message)
        elif isinstance(message, m.TaskClaimed):
            self._claims.setdefault((message.task, message.attempt), message)
        elif isinstance(message, m.TaskEvent) and (outcome := _outcome(message)) is not None:
            self._ends.setdefault((message.task, message.attempt), (message.time, outcome))

    @property
    def elapsed(self) -> float:
        """Seconds from the submission to the latest message."""
        return self.last - self.began

    def spans(self) -> list[Span]:
        """In order of starting. An attempt without an end lasts until the latest message."""
        spans = [self._span(claim) for claim in self._claims.values()]
        return sorted(filter(None, spans), key=lambda span: (span.start, span.worker))

    def _span(self, claim: m.TaskClaimed) -> Span | None:
        command = self._commands.get(claim.task)
        if command is None:
            return None
        end, outcome = self._ends.get((claim.task, claim.attempt), (self.last, "running"))
        end = max(end, claim.time)
        return Span(claim.worker, kind_of(command), command.title, claim.time, end, outcome)


def _outcome(event: m.TaskEvent) -> str | None:
    """How an event ends its attempt; None while it goes on."""
    if isinstance(event, m.Result):
        going_on = isinstance(event, m.Chunk) and not event.last
        return None if going_on else "done"
    return FAILURES.get(type(event))
