"""Who worked on what, and when: spans of work, idle shares, overlap, and the lane chart's time.

All times in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dpstream.shared import messages as m
from dpstream.shared.codec import kind_of

SERVICES: Mapping[str, m.Service] = {kind_of(command): command.SERVICE for command in m.COMMANDS}
"""Service by kind of task, in loop order."""
PAUSE = 60.0
"""A longer time without any task in hand is no idleness: nobody was running."""

Interval = tuple[float, float]
Key = tuple[str, int]


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
    def interval(self) -> Interval:
        return self.start, self.end

    @property
    def service(self) -> m.Service:
        return SERVICES[self.kind]


@dataclass(frozen=True)
class Share:
    """A service's time. `busy`: worker seconds with a task in hand; `idle`: share of all worker
    seconds without."""

    service: str
    workers: int
    tasks: int
    lost: int
    busy: float
    idle: float


def spans_of(messages: Iterable[m.Message]) -> list[Span]:
    """Work from claim to result, in order of starting. What has no end yet ends with the last
    message. A claim said twice, or a late second result, changes nothing."""
    commands: dict[str, m.Command] = {}
    claims: dict[Key, m.TaskClaimed] = {}
    ends: dict[Key, tuple[float, str]] = {}
    last = 0.0
    for message in messages:
        last = max(last, message.time)
        if isinstance(message, m.Command):
            commands.setdefault(message.task, message)
        elif isinstance(message, m.TaskClaimed):
            claims.setdefault((message.task, message.attempt), message)
        elif isinstance(message, m.TaskEvent) and _ending(message) is not None:
            ends.setdefault((message.task, message.attempt), (message.time, str(_ending(message))))
    spans = [
        _span(commands[task], claim, *ends.get((task, attempt), (last, "running")))
        for (task, attempt), claim in claims.items()
        if task in commands
    ]
    return sorted(spans, key=lambda span: (span.start, span.worker))


def _span(command: m.Command, claim: m.TaskClaimed, end: float, outcome: str) -> Span:
    end = max(end, claim.time)
    return Span(claim.worker, kind_of(command), command.title, claim.time, end, outcome)


def _ending(event: m.TaskEvent) -> str | None:
    """What an event makes of its attempt; None while it goes on."""
    if isinstance(event, m.Result):
        going_on = isinstance(event, m.Chunk) and not event.last
        return None if going_on else "done"
    if isinstance(event, m.TaskReleased):
        return "released"
    if isinstance(event, m.TaskFailed):
        return "failed"
    return "lapsed" if isinstance(event, m.LeaseLapsed) else None


# ------------------------------------------------------------------------------- measures


def union(intervals: Iterable[Interval], join: float = 0.0) -> list[Interval]:
    """The same time as disjoint intervals in order; gaps up to `join` are closed."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1] + join:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def length(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in intervals)


def overlap(one: Sequence[Interval], other: Sequence[Interval]) -> float:
    """Time in both; each a union."""
    both, i, j = 0.0, 0, 0
    while i < len(one) and j < len(other):
        both += max(0.0, min(one[i][1], other[j][1]) - max(one[i][0], other[j][0]))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return both


def beside(spans: Sequence[Span], kind: str, others: Sequence[str]) -> float | None:
    """Share of the time of one kind of task during which one of `others` ran too; None if there
    was none."""
    mine = union(span.interval for span in spans if span.kind == kind)
    theirs = union(span.interval for span in spans if span.kind in others)
    total = length(mine)
    return overlap(mine, theirs) / total if total else None


def activity(spans: Sequence[Span]) -> list[Interval]:
    """When the campaign was being worked on at all."""
    return union((span.interval for span in spans), join=PAUSE)


def service_shares(spans: Sequence[Span]) -> list[Share]:
    """Busy and idle time of each service while the campaign was being worked on."""
    active = length(activity(spans))
    shares = []
    for service in m.SERVICES:
        mine = [span for span in spans if span.service == service]
        if mine:
            workers = len({span.worker for span in mine})
            busy = sum(span.end - span.start for span in mine)
            lost = sum(span.outcome in ("released", "failed", "lapsed") for span in mine)
            idle = 1 - busy / (workers * active) if active else 0.0
            shares.append(Share(service, workers, len(mine), lost, busy, max(0.0, idle)))
    return shares


@dataclass(frozen=True)
class Clock:
    """Time of activity: seconds since the beginning, pauses left out."""

    pieces: Sequence[Interval]

    def __call__(self, time: float) -> float:
        passed = 0.0
        for start, end in self.pieces:
            if time <= end:
                return passed + max(0.0, time - start)
            passed += end - start
        return passed

    @property
    def total(self) -> float:
        return length(self.pieces)

    @property
    def breaks(self) -> list[float]:
        """Where pauses were cut out."""
        return [self(start) for start, _ in self.pieces[1:]]
