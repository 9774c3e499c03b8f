"""Tasks of one campaign that nobody has started: ranked here, published a few at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.messages import Command, Explore, Label, Reference, Train, encode, queue_of
from shared.ports import Bus, Outgoing

MINIMUM = 20
"""Tasks in flight per queue, at the least."""
RANK = {Label: 1, Train: 1, Explore: 2, Reference: 2}
"""Short tasks that others wait for (select, judge, audit, verify) go first."""


@dataclass(order=True)
class Waiting:
    rank: int
    number: int
    command: Command = field(compare=False)
    not_before: float = field(compare=False)
    published: float | None = field(default=None, compare=False)


@dataclass
class Backlog:
    """Publishes at most a bounded number of tasks per queue; a task that nobody claims for
    `reissue_after` seconds is published again, under the same attempt."""

    reissue_after: float
    limits: dict[str, int] = field(default_factory=dict)
    """By queue: twice its workers; never fewer than `MINIMUM`."""
    _tasks: dict[str, Waiting] = field(default_factory=dict)
    _numbered: int = 0

    def add(self, command: Command, not_before: float) -> None:
        self._numbered += 1
        rank = RANK.get(type(command), 0)
        self._tasks[command.task] = Waiting(rank, self._numbered, command, not_before)

    def claimed(self, task: str) -> None:
        self._tasks.pop(task, None)

    def waiting(self, queue: str) -> int:
        return sum(queue_of(w.command) == queue for w in self._tasks.values())

    def publish(self, bus: Bus, now: float, share: int) -> None:
        """Fill every queue up to this campaign's share of its limit (`share` campaigns)."""
        due: list[Outgoing] = []
        in_flight: dict[str, int] = {}
        for task in sorted(self._tasks.values()):
            queue = queue_of(task.command)
            limit = max(1, max(MINIMUM, self.limits.get(queue, 0)) // share)
            if in_flight.setdefault(queue, 0) >= limit or now < task.not_before:
                continue
            in_flight[queue] += 1
            if task.published is None or now - task.published > self.reissue_after:
                task.published = now
                due.append(Outgoing(encode(task.command), queue=queue))
        if due:
            bus.publish(due)
