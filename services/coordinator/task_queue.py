"""Ranks the tasks of one campaign that no worker has started, and publishes a few at a time.

The broker's queues are first in, first out. To let urgent tasks overtake others, most tasks wait
here, and only about twice as many as there are busy workers are published. A queue of the broker
corresponds to a `Lane`. A published task that no worker claims within `reissue_after` seconds is
published again under the same attempt, in case the message was lost; the claim keeps it from
running twice. As long as the broker holds a message for every published task, none was lost.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from dpstream.shared.codec import encode, queue_of
from dpstream.shared.errors import BusError
from dpstream.shared.messages import CheckLabel, Command, Explore, Label, Reference, Train
from dpstream.shared.ports import Bus, Outgoing

MINIMUM = 20
"""Smallest limit of published tasks per queue."""
NO_WORKERS: Mapping[str, int] = MappingProxyType({})
RANK = {Label: 1, Train: 1, Explore: 2, CheckLabel: 2, Reference: 2}
"""Lower ranks are published first. Commands not listed have rank 0: short tasks that the loop waits
for (judge, select, audit, measure, verify), and screen, which has a queue of its own."""


@dataclass(order=True)
class QueuedTask:
    rank: tuple[int, int]
    number: int
    command: Command = field(compare=False)
    due: float = field(compare=False)


@dataclass
class Lane:
    """The tasks of one queue. Tasks that were claimed or cancelled stay in the heaps and are
    skipped when they come up."""

    ranked: list[QueuedTask] = field(default_factory=list)
    delayed: list[tuple[float, QueuedTask]] = field(default_factory=list)
    in_flight: dict[str, tuple[float, QueuedTask]] = field(default_factory=dict)
    """Published tasks and the time of publication, the oldest first."""

    def push(self, task: QueuedTask) -> None:
        if task.due:
            heapq.heappush(self.delayed, (task.due, task))
        else:
            heapq.heappush(self.ranked, task)

    def due(self, now: float, limit: int, reissue_after: float) -> Iterable[QueuedTask]:
        """Yields tasks that were published too long ago, then those of the lowest rank up to
        `limit` in flight."""
        while self.delayed and self.delayed[0][0] <= now:
            heapq.heappush(self.ranked, heapq.heappop(self.delayed)[1])
        while self.is_overdue(now, reissue_after):
            yield self.in_flight.pop(next(iter(self.in_flight)))[1]
        while self.ranked and len(self.in_flight) < limit and not self._next_is_surplus_reference():
            yield heapq.heappop(self.ranked)

    def is_overdue(self, now: float, reissue_after: float) -> bool:
        """Whether the task that was published first has waited too long for a worker."""
        oldest = next(iter(self.in_flight.values()), None)
        return oldest is not None and now - oldest[0] > reissue_after

    def _next_is_surplus_reference(self) -> bool:
        """Whether the next task is reference dynamics and one is already published. These tasks are
        long and not urgent; publishing one at a time keeps them from delaying later labels."""
        return isinstance(self.ranked[0].command, Reference) and any(
            isinstance(task.command, Reference) for _, task in self.in_flight.values()
        )


@dataclass
class TaskQueue:
    """The tasks of one campaign that have not ended. The cost of a call does not depend on the
    number of waiting tasks. Times are those of the caller's monotonic clock, s."""

    reissue_after: float
    busy: Counter[str] = field(default_factory=Counter)
    """Running tasks by queue, one per busy worker."""
    waiting: Counter[str] = field(default_factory=Counter)
    """Tasks by queue that no worker has claimed."""
    _running: dict[str, str] = field(default_factory=dict)
    _tasks: dict[str, QueuedTask] = field(default_factory=dict)
    _lanes: dict[str, Lane] = field(default_factory=dict)
    _places: dict[str, int] = field(default_factory=dict)
    """Numbers of the tasks in the order in which they were first added."""
    _added: int = 0

    def add(self, command: Command, due: float = 0.0) -> None:
        """Adds a task to be published at `due` or later, 0 for at once. It replaces an earlier
        attempt of the same task, and takes its place: long tasks are interrupted most often, and
        behind all others they would run when little else is left to do."""
        self._stopped(command.task)
        self._added += 1
        place = self._places.setdefault(command.task, self._added)
        rank = RANK.get(type(command), 0), -getattr(command, "priority", 0)
        task = QueuedTask(rank, place, command, due)
        self._tasks[command.task] = task
        self.waiting[queue_of(command)] += 1
        self._lanes.setdefault(queue_of(command), Lane()).push(task)

    def claimed(self, task: str) -> None:
        """Removes a task from those to publish."""
        queued = self._tasks.pop(task, None)
        if queued is not None:
            queue = queue_of(queued.command)
            self._lanes[queue].in_flight.pop(task, None)
            self.waiting[queue] -= 1

    def declined(self, task: str, due: float) -> None:
        """A worker has declined the published task: it is published again at `due`."""
        queued = self._tasks.get(task)
        if queued is not None:
            self.add(queued.command, due)

    def started(self, command: Command) -> None:
        """Counts the task as running."""
        self.claimed(command.task)
        if command.task not in self._running:
            self._running[command.task] = queue = queue_of(command)
            self.busy[queue] += 1

    def ended(self, task: str) -> None:
        """Forgets a task."""
        self._stopped(task)
        self._places.pop(task, None)

    def _stopped(self, task: str) -> None:
        """The task neither waits nor runs: it has ended, or another attempt follows."""
        self.claimed(task)
        queue = self._running.pop(task, None)
        if queue is not None:
            self.busy[queue] -= 1

    def queue_of_task(self, task: str) -> str | None:
        """The queue of a task; None if it has ended."""
        queued = self._tasks.get(task)
        return self._running.get(task) if queued is None else queue_of(queued.command)

    def in_flight(self, queue: str) -> int:
        """Number of published tasks that no worker has claimed."""
        return len(self._lanes[queue].in_flight) if queue in self._lanes else 0

    def overdue(self, now: float) -> list[str]:
        """Queues with a task that was published too long ago."""
        return [
            queue for queue, lane in self._lanes.items() if lane.is_overdue(now, self.reissue_after)
        ]

    def confirm(self, queue: str, now: float) -> None:
        """The broker still holds the published tasks of the queue: they count as published now."""
        lane = self._lanes[queue]
        lane.in_flight = {name: (now, task) for name, (_, task) in lane.in_flight.items()}

    def publish(
        self, bus: Bus, now: float, share: int, busy: Mapping[str, int] = NO_WORKERS
    ) -> None:
        """Publishes tasks up to the limit of each queue: twice the number of workers `busy` there
        for any campaign, at least `MINIMUM`, divided by `share`, the number of active campaigns.
        Idle workers need no counting: they take a published task and are then busy. Raises
        BusError; the tasks are then published by a later call."""
        self._publish(
            bus,
            [
                task
                for queue in self._lanes
                for task in self._due(queue, now, max(MINIMUM, 2 * busy.get(queue, 0)) // share)
            ],
        )

    def publish_one(self, bus: Bus, now: float, queues: Iterable[str]) -> None:
        """Publishes one task of each queue, unless one is published: a worker that can serve it
        will claim it. Raises BusError, as `publish`."""
        lanes = [queue for queue in queues if queue in self._lanes]
        self._publish(bus, [task for queue in lanes for task in self._due(queue, now, 1)])

    def _publish(self, bus: Bus, due: Sequence[QueuedTask]) -> None:
        if not due:
            return
        try:
            bus.publish([Outgoing(encode(t.command), queue=queue_of(t.command)) for t in due])
        except BusError:
            for task in due:
                self.add(task.command, task.due)
            raise

    def _due(self, queue: str, now: float, limit: int) -> Iterable[QueuedTask]:
        lane = self._lanes[queue]
        for task in lane.due(now, max(1, limit), self.reissue_after):
            name = task.command.task
            if self._tasks.get(name) is task:
                lane.in_flight[name] = now, task
                yield task
