"""Tasks of one campaign that nobody has started: ranked here, published a few at a time."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from dpstream.shared.codec import encode, queue_of
from dpstream.shared.errors import BusError
from dpstream.shared.messages import Command, Explore, Label, Reference, Screen, Train
from dpstream.shared.ports import Bus, Outgoing

MINIMUM = 20
"""Tasks in flight per queue, at the least."""
NOBODY: Mapping[str, int] = MappingProxyType({})
RANK = {Label: 1, Train: 1, Screen: 1, Explore: 2, Reference: 2}
"""Short tasks that others wait for (select, judge, audit, verify) go first."""


@dataclass(order=True)
class QueuedTask:
    rank: tuple[int, int]
    number: int
    command: Command = field(compare=False)
    not_before: float = field(compare=False)


@dataclass
class Lane:
    """The tasks of one queue. What left the backlog is only skipped over in the heaps."""

    ranked: list[QueuedTask] = field(default_factory=list)
    delayed: list[tuple[float, QueuedTask]] = field(default_factory=list)
    in_flight: dict[str, tuple[float, QueuedTask]] = field(default_factory=dict)
    """Published tasks and when, the oldest first."""

    def join(self, task: QueuedTask) -> None:
        if task.not_before:
            heapq.heappush(self.delayed, (task.not_before, task))
        else:
            heapq.heappush(self.ranked, task)

    def due(self, now: float, limit: int, reissue_after: float) -> Iterable[QueuedTask]:
        """Published too long ago, then the best ranked up to `limit` in flight."""
        while self.delayed and self.delayed[0][0] <= now:
            heapq.heappush(self.ranked, heapq.heappop(self.delayed)[1])
        while self.in_flight:
            name, (published, task) = next(iter(self.in_flight.items()))
            if now - published <= reissue_after:
                break
            del self.in_flight[name]
            yield task
        while self.ranked and len(self.in_flight) < limit and not self._enough_references():
            yield heapq.heappop(self.ranked)

    def _enough_references(self) -> bool:
        """Reference dynamics is long and nobody waits for it: one lies ready, so that labels that
        are asked for later need not queue behind all of it."""
        return isinstance(self.ranked[0].command, Reference) and any(
            isinstance(task.command, Reference) for _, task in self.in_flight.values()
        )


@dataclass
class TaskQueue:
    """Publishes at most a bounded number of tasks per queue; a task that nobody claims for
    `reissue_after` seconds is published again, under the same attempt. What one call costs does
    not depend on how many tasks wait."""

    reissue_after: float
    busy: Counter[str] = field(default_factory=Counter)
    """By queue: tasks at work, one per busy worker."""
    _at_work: dict[str, str] = field(default_factory=dict)
    _tasks: dict[str, QueuedTask] = field(default_factory=dict)
    _lines: dict[str, Lane] = field(default_factory=dict)
    _numbered: int = 0

    def add(self, command: Command, not_before: float) -> None:
        """A task to be published `not_before` a time (seconds since the epoch); of one that is
        known already only this newer attempt counts."""
        self.ended(command.task)
        self._numbered += 1
        rank = RANK.get(type(command), 0), -getattr(command, "priority", 0)
        task = QueuedTask(rank, self._numbered, command, not_before)
        self._tasks[command.task] = task
        self._lines.setdefault(queue_of(command), Lane()).join(task)

    def claimed(self, task: str) -> None:
        """Nothing to publish any more."""
        known = self._tasks.pop(task, None)
        if known is not None:
            self._lines[queue_of(known.command)].in_flight.pop(task, None)

    def started(self, command: Command) -> None:
        """A worker has it."""
        self.claimed(command.task)
        if command.task not in self._at_work:
            self._at_work[command.task] = queue = queue_of(command)
            self.busy[queue] += 1

    def ended(self, task: str) -> None:
        """Nobody has it any more, and nobody should."""
        self.claimed(task)
        queue = self._at_work.pop(task, None)
        if queue is not None:
            self.busy[queue] -= 1

    def whence(self, task: str) -> str | None:
        """The queue of a task that is not ended."""
        known = self._tasks.get(task)
        return self._at_work.get(task) if known is None else queue_of(known.command)

    def in_flight(self, queue: str) -> int:
        """Published tasks that nobody is known to have."""
        return len(self._lines[queue].in_flight) if queue in self._lines else 0

    def publish(self, bus: Bus, now: float, share: int, busy: Mapping[str, int] = NOBODY) -> None:
        """Fill every queue up to this campaign's share (of `share` campaigns) of its limit: twice
        as many tasks as workers are `busy` there for any campaign, and at least `MINIMUM`. Idle
        workers need no counting: they take what is there, and then they are busy."""
        due = [
            task
            for queue in self._lines
            for task in self._due(queue, now, max(MINIMUM, 2 * busy.get(queue, 0)) // share)
        ]
        if not due:
            return
        try:
            bus.publish([Outgoing(encode(t.command), queue=queue_of(t.command)) for t in due])
        except BusError:
            for task in due:
                self.add(task.command, task.not_before)
            raise

    def _due(self, queue: str, now: float, limit: int) -> Iterable[QueuedTask]:
        line = self._lines[queue]
        for task in line.due(now, max(1, limit), self.reissue_after):
            name = task.command.task
            if self._tasks.get(name) is task:
                line.in_flight[name] = now, task
                yield task
