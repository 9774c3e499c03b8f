"""One campaign at hand: its ledger and state, and what is known of tasks under way that no ledger
keeps: who works on them, how far they are, when their leases end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dpstream.services.coordinator.ledger.ledger import Ledger, Segment
from dpstream.services.coordinator.state import State
from dpstream.services.coordinator.task_queue import TaskQueue
from dpstream.shared import messages as m
from dpstream.shared.values import stable_id


@dataclass
class OpenCampaign:
    """Written by the coordinator's thread alone. Others may read it: `state` is immutable, of the
    tables they take copies."""

    ledger: Ledger
    state: State
    task_queue: TaskQueue
    leases: dict[str, float] = field(default_factory=dict)
    """Deadlines of running tasks."""
    progress: dict[str, str] = field(default_factory=dict)
    workers: dict[str, str] = field(default_factory=dict)
    own_events: list[m.Message] = field(default_factory=list)
    """Events that this edge says itself; they come before those of the bus."""
    in_doubt: bool = False
    """A call to bus or store failed half-way: what holds is what the ledger tells."""

    @property
    def active(self) -> bool:
        return self.state.paused is None and self.state.finished is None

    def is_sign_of_life(self, event: m.Message, deadline: float) -> bool:
        """Note that a worker lives; its lease ends at `deadline` now. True for heartbeats, which
        are neither ledgered nor decided."""
        if isinstance(event, (m.TaskHeartbeat, m.TaskClaimed, m.Chunk)):
            task = self.state.tasks.get(event.task)
            if task is not None and task.is_live and task.command.attempt == event.attempt:
                self.leases[event.task] = deadline
                if not isinstance(event, m.Chunk):
                    self.workers[event.task] = event.worker
        if isinstance(event, m.TaskHeartbeat):
            self.progress[event.task] = event.progress
            return True
        return False

    def track(self, segment: Segment) -> None:
        """Keep the backlog and the leases in step with the ledger."""
        for entry in segment.entries:
            for message in (entry.event, *entry.decided):
                if isinstance(message, m.Command):
                    task = self.state.tasks[message.task]
                    if task.status == "open" and task.command.attempt == message.attempt:
                        self.task_queue.add(message, task.not_before)
                elif isinstance(message, (m.TaskEvent, m.TaskCancelled)):
                    self._put_away(message.task)

    def _put_away(self, task_id: str) -> None:
        task = self.state.tasks.get(task_id)
        if task is not None and task.status == "running":
            self.task_queue.started(task.command)
            return
        if task is None or task.status != "open":
            self.task_queue.ended(task_id)
        for table in (self.leases, self.progress, self.workers):
            table.pop(task_id, None)

    def overdue(self, now: float) -> list[str]:
        """Tasks whose lease has ended."""
        return [task for task, deadline in self.leases.items() if now > deadline]

    def lapse(self, task: str, now: float) -> m.LeaseLapsed:
        del self.leases[task]
        return m.LeaseLapsed(**envelope(self.state.tasks[task].command, "lapsed", now))


def envelope(of: m.Command | m.TaskCancelled, what: str, now: float) -> dict[str, Any]:
    """`Event(**envelope(…), …)`: `what` became of it. Said once more it has the same id."""
    return {
        "id": stable_id(what, of.task, of.attempt),
        "campaign": of.campaign,
        "time": now,
        "cause": of.id,
        "task": of.task,
        "attempt": of.attempt,
    }
