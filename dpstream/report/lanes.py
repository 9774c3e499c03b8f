"""Time, measured on spans of work: idle shares, overlaps, and the time axis of the lane chart.

All times in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dpstream.services.coordinator.views.work import Span
from dpstream.shared.messages import SERVICES

PAUSE = 60.0
"""A longer time without any claimed task does not count as idle: nothing was running."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Share:
    """A service's time. `busy`: worker seconds with a task; `idle`: share of the worker seconds
    without one."""

    service: str
    workers: int
    tasks: int
    lost: int
    busy: float
    idle: float


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
    """When at least one worker had a task."""
    return union((span.interval for span in spans), join=PAUSE)


def service_shares(spans: Sequence[Span]) -> list[Share]:
    """Busy and idle time of each service while at least one worker had a task."""
    active = length(activity(spans))
    shares = []
    for service in SERVICES:
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
    """Time of activity: seconds since the beginning, without the pauses."""

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
