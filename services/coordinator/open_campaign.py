"""One campaign in the memory of the coordinator.

Besides the ledger and the state, an open campaign has what no ledger records: the queue of tasks to
publish, and for each running task its worker, its progress and the end of its lease. All of it is
rebuilt from the state and the next heartbeats when the campaign is opened. After each segment,
`track` brings queue and leases in line with the new state.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from dpstream.services.coordinator.ledger.ledger import Ledger, Segment
from dpstream.services.coordinator.state import State, Task
from dpstream.services.coordinator.task_processes import TaskProcesses
from dpstream.services.coordinator.task_queue import TaskQueue
from dpstream.shared import messages as m
from dpstream.shared.codec import queue_of
from dpstream.shared.runtime.context import KEEPS, envelope_of
from dpstream.shared.values import stable_id

DECLINED_DELAY = 2.0
"""Seconds until a task that was declined is published again."""
REMEMBERED = 3600.0
"""Seconds for which a queue counts as declined for a fleet, as long as the longest pause of a pool:
that other workers have claimed its tasks since does not make those of the pool able to."""


@dataclass
class OpenCampaign:
    """Only the coordinator's thread changes it. Other threads may read it: `state` is immutable,
    and they copy the tables."""

    ledger: Ledger
    state: State
    task_queue: TaskQueue
    leases: dict[str, float] = field(default_factory=dict)
    """End of the lease of each running task, on the coordinator's monotonic clock, s."""
    progress: dict[str, str] = field(default_factory=dict)
    workers: dict[str, str] = field(default_factory=dict)
    processes: TaskProcesses = field(default_factory=TaskProcesses)
    """Of the running tasks; a task without an entry was claimed before the campaign was opened."""
    kept: dict[str, float] = field(default_factory=dict)
    """When the claim, or the last checkpoint or chunk, of each running task arrived, likewise;
    without an entry it is not known yet."""
    own_events: list[m.Message] = field(default_factory=list)
    """Events of the coordinator itself, handled before those from the bus."""
    parked: dict[str, m.Message] = field(default_factory=dict)
    """Those of them that were kept while the campaign could not be served, by key."""
    early: dict[str, list[m.Message]] = field(default_factory=dict)
    """Results that an overtaken coordinator received, of tasks that are not issued yet."""
    usual_seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of a usual task by queue: an average that favours the latest."""
    computed_labels: int = 0
    """Since the campaign was opened."""
    declined_since: dict[str, float] = field(default_factory=dict)
    """When the first task of a queue was declined since one was last claimed, likewise."""
    _declined_at: dict[str, float] = field(default_factory=dict)
    """When a task of a queue was last declined, likewise."""
    _earliest: float = 0.0
    """No lease ends before, so that the leases need not be looked through in every pass."""
    needs_recovery: bool = False
    """Whether a call to bus or store failed part-way, so that the ledger may be ahead of
    `state`."""

    def take_in_orphans(self) -> None:
        """Takes in the events that only overtaken coordinators have handled. Results of other work
        under the same task do not count."""
        for event in self.ledger.orphans:
            task = self.state.tasks.get(event.task) if isinstance(event, m.Result) else None
            if isinstance(event, m.Result) and self.state.archive.has_task(event.task):
                continue
            if isinstance(event, m.Result) and task is None:
                self.early.setdefault(event.task, []).append(event)
            elif task is None or self._was_issued(task.command) is not False:
                self.own_events.append(event)

    def _was_issued(self, command: m.Command) -> bool | None:
        """Whether an overtaken coordinator issued the same work under this task; None if it issued
        none."""
        former = self.ledger.former.get(command.task)
        return None if former is None else _work_of(former) == _work_of(command)

    def _results_of(self, command: m.Command) -> list[m.Message]:
        """Results of a task that is issued now, if the overtaken coordinator had issued the same
        work."""
        results = self.early.pop(command.task, [])
        return results if self._was_issued(command) else []

    @property
    def active(self) -> bool:
        return self.state.paused is None and self.state.finished is None

    def extend_lease(self, event: m.Message, now: float, seconds: float) -> bool:
        """Extends the lease of the event's task to `seconds` from `now`; a claim, which anyone may
        repeat, only begins it. Returns True for heartbeats, which need no further handling: they
        are not recorded in the ledger."""
        if isinstance(event, (m.TaskHeartbeat, m.TaskClaimed, *KEEPS)):
            task = self.state.tasks.get(event.task)
            if task is not None and task.is_live and task.command.attempt == event.attempt:
                if not isinstance(event, m.TaskClaimed) or event.task not in self.leases:
                    self.leases[event.task] = now + seconds
                self._take_in(event, now)
        if isinstance(event, m.TaskHeartbeat):
            self.progress[event.task] = event.progress
            return True
        return False

    def _take_in(self, event: m.TaskEvent, now: float) -> None:
        """Takes in which worker has a running task, and since when."""
        if isinstance(event, (m.TaskHeartbeat, m.TaskClaimed)):
            self.workers[event.task] = event.worker
            self.processes[event.task] = event.process
        if isinstance(event, m.TaskClaimed):
            self.kept.setdefault(event.task, now)
        elif isinstance(event, KEEPS):
            self.kept[event.task] = now

    def recall(self, task: str, claim: m.TaskClaimed | None, made: float) -> None:
        """Takes in the claim, `made` then, of a task that was running before the campaign was
        opened."""
        if task not in self.processes:
            self.processes[task] = claim.process if claim else None
        if claim is not None:
            self.kept.setdefault(task, made)

    def track(self, segment: Segment, now: float) -> None:
        """Updates the task queue and the leases after a segment."""
        for entry in segment.entries:
            for message in (entry.event, *entry.decided):
                if isinstance(message, m.Command):
                    self.own_events += self._results_of(message)
                    task = self.state.tasks.get(message.task)
                    if task and task.status == "open" and task.command.attempt == message.attempt:
                        self.add_task(task, now)
                elif isinstance(message, (m.TaskEvent, m.TaskCancelled)):
                    if (
                        isinstance(message, m.Result)
                        and message.seconds
                        and not _is_reused(message)
                    ):
                        self._time(message)
                    self._update_queue(message.task)
                    if isinstance(message, m.LabelsDone):
                        self.computed_labels += sum(not each.reused for each in message.accepted)

    def add_task(self, task: Task, now: float) -> None:
        """Queues an open task, to be published after its delay."""
        self.task_queue.add(task.command, now + task.delay if task.delay else 0.0)

    def _time(self, result: m.Result) -> None:
        """Counts the time of a result in `usual_seconds`."""
        queue = self.task_queue.queue_of_task(result.task)
        if queue is not None and result.seconds:
            before = self.usual_seconds.get(queue, result.seconds)
            self.usual_seconds[queue] = 0.8 * before + 0.2 * result.seconds

    def _update_queue(self, task_id: str) -> None:
        task = self.state.tasks.get(task_id)
        if task is not None and task.status == "running":
            self.task_queue.started(task.command)
            return
        if task is None or task.status != "open":
            self.task_queue.ended(task_id)
        self.processes.forget(task_id)
        for table in (self.leases, self.progress, self.workers, self.kept):
            table.pop(task_id, None)

    def put_back(self, event: m.TaskDeclined, now: float) -> None:
        """Queues a task again that a worker declined, for another one."""
        task = self.state.tasks.get(event.task)
        if task and task.status == "open" and task.command.attempt == event.attempt:
            self.task_queue.declined(event.task, now + DECLINED_DELAY)
            self._declined_at[queue_of(task.command)] = now

    def is_declined(self, queue: str, now: float) -> bool:
        """Whether some workers of the queue cannot serve this campaign."""
        at = self._declined_at.get(queue)
        return queue in self.state.declined or (at is not None and now - at < REMEMBERED)

    def unserved(self, now: float, patience: float, busy: Mapping[str, int]) -> list[str]:
        """Queues of which tasks were declined `patience` seconds ago, and none was claimed since.
        While workers are busy with tasks of a queue, one of them may serve it next."""
        for queue in self.state.declined:
            if busy.get(queue) or not self.task_queue.waiting[queue]:
                self.declined_since[queue] = now
            self.declined_since.setdefault(queue, now)
        for queue in self.declined_since.keys() - self.state.declined.keys():
            del self.declined_since[queue]
        late = [queue for queue, at in self.declined_since.items() if now - at >= patience]
        self.declined_since.update(dict.fromkeys(late, now))
        return late if self.active else []

    def overdue(self, now: float) -> list[str]:
        """Ids of tasks whose lease has ended. Leases are only prolonged, and a new one ends after
        those that stand."""
        if now <= self._earliest:
            return []
        late = [task for task, deadline in self.leases.items() if now > deadline]
        self._earliest = now if late else min(self.leases.values(), default=now)
        return late

    def orphaned(self, ended: Collection[str]) -> list[str]:
        """Ids of tasks with a lease whose process is among `ended`."""
        return [task for task in self.processes.tasks_of(ended) if task in self.leases]

    def of_unknown_process(self, most: int) -> list[str]:
        """Ids of up to `most` tasks with a lease of which it is not known which process runs
        them."""
        if len(self.processes) >= len(self.leases):
            return []
        return list(islice((task for task in self.leases if task not in self.processes), most))

    def lapse(self, task: str, now: float, time: float) -> m.LeaseLapsed:
        """Ends the lease of a task; returns the event that reports it, with this `time`."""
        late = now > self.leases.pop(task)
        reason = "" if late else f"the process {self.processes[task]} of the worker has ended"
        fields = header(self.state.tasks[task].command, "lapsed", time)
        seconds = max(0.0, now - self.kept.get(task, now))
        return m.LeaseLapsed(**fields, reason=reason, seconds=seconds)


def _work_of(command: m.Command) -> m.Command:
    """The command without what tells one attempt from another."""
    changes = {"id": "", "time": 0.0, "cause": None, "attempt": 1, "resume": None}
    return command.model_copy(update={k: v for k, v in changes.items() if hasattr(command, k)})


def _is_reused(result: m.Result) -> bool:
    """Whether a result cost no computation: the time of such a task is not usual. Of several
    chunks, the last one decides."""
    return (
        isinstance(result, m.LabelsDone)
        and all(accepted.reused for accepted in result.accepted)
        and not result.rejected
    )


def header(of: m.Command | m.TaskCancelled, what: str, now: float) -> dict[str, Any]:
    """Header fields of an event that reports `what` happened to an attempt. The id depends only on
    the attempt and on `what`, so that a repeated event has the same id."""
    return {**envelope_of(of), "id": stable_id(what, of.task, of.attempt), "time": now}
