"""Applies events about tasks, and holds the helpers with which results find and end their task.

A result may arrive twice, late, or after its task has ended. Each helper returns None for such a
message, and the caller then returns the state unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.state import Declined, LostWork, State, Task
from dpstream.shared import messages as m
from dpstream.shared.codec import queue_of

MOST_REASONS = 5
"""Different reasons that are kept of workers that declined tasks of one queue."""


def settle(
    state: State, task: Task, status: Literal["done", "abandoned", "cancelled"] = "done"
) -> State:
    """Ends the task. It leaves the state for the archive, unless it can be tried again, or the
    label of one of its frames may still arrive."""
    task = replace(task, status=status)
    may_change = status == "abandoned" or task.label_frames
    return state.with_task(task) if may_change else state.without_task(task)


def chunk_counted(state: State, task: Task, event: m.Chunk) -> tuple[State, bool]:
    """Counts one more chunk of a result; ends the task and returns True if all have arrived."""
    last = event.chunk if event.last else task.last_chunk
    task = replace(task, chunks=task.chunks | {event.chunk}, last_chunk=last)
    if last is not None and task.chunks.issuperset(range(last + 1)):
        return settle(state, task), True
    return state.with_task(task), False


def issued_task(state: State, event: m.Result) -> Task | None:
    """The task of a result; None if the attempt was never issued: every worker can create the claim
    of an attempt that it makes up."""
    task = state.tasks.get(event.task)
    return task if task is not None and event.attempt <= task.command.attempt else None


def live_task(state: State, event: m.Result) -> Task | None:
    """The task that a result answers; None if it has ended."""
    task = issued_task(state, event)
    return task if task is not None and task.is_live else None


def unfinished_task(state: State, event: m.Chunk) -> Task | None:
    """The task that a chunk belongs to; None if it has ended or has the chunk already."""
    task = live_task(state, event)
    return None if task is None or event.chunk in task.chunks else task


def current_task(state: State, event: m.TaskEvent) -> Task | None:
    """The task of an event about an attempt; None if that attempt is not open or running."""
    task = state.tasks.get(event.task)
    if task is None or task.status not in ("open", "running"):
        return None
    return task if task.command.attempt == event.attempt else None


def task_claimed(state: State, event: m.TaskClaimed) -> State:
    task = current_task(state, event)
    if task is None or task.status == "running":
        return state
    state = served(state, queue_of(task.command))
    return state.with_task(replace(task, status="running"))


def served(state: State, queue: str) -> State:
    """A worker serves the queue, or the campaign needs none any more: if it was paused for want of
    one, it continues."""
    declined = state.declined.get(queue)
    if declined is None:
        return state
    paused = None if state.paused == declined.pause else state.paused
    return replace(state, declined=state.declined.delete(queue), paused=paused)


def task_declined(state: State, event: m.TaskDeclined) -> State:
    """Notes what the worker lacks, unless it is known or many reasons are."""
    task = current_task(state, event)
    if task is None or task.status == "running":
        return state
    queue = queue_of(task.command)
    declined = state.declined.get(queue, Declined())
    if event.reason in declined.reasons or len(declined.reasons) == MOST_REASONS:
        return state
    declined = replace(declined, reasons=(*declined.reasons, event.reason))
    return replace(state, declined=state.declined.set(queue, declined))


def workers_missing(state: State, event: m.WorkersMissing) -> State:
    declined = state.declined.get(event.queue)
    if declined is None or state.paused is not None or state.finished is not None:
        return state
    declined = replace(declined, pause=event.why)
    return replace(state, declined=state.declined.set(event.queue, declined))


def task_lost(counts: bool) -> Callable[[State, Any], State]:
    """Marks the task as lost; `counts`: the attempt counts towards `max_attempts`."""

    def change(state: State, event: Any) -> State:
        task = current_task(state, event)
        if task is None:
            return state
        delay = getattr(event, "delay", 0.0)
        lapses = task.lapses + counts
        state = replace(state, lost=_with_lost(state.lost, event))
        command = _resumed(task.command, event)
        return state.with_task(
            replace(task, command=command, status="lost", lapses=lapses, delay=delay)
        )

    return change


def _resumed(command: m.Command, event: m.TaskEvent) -> m.Command:
    """The command, continuing from the restart files that a released label left."""
    restart = event.restart if isinstance(event, m.TaskReleased) else None
    if restart is None or not isinstance(command, m.Label):
        return command
    return command.model_copy(update={"resume": restart})


def _with_lost(lost: LostWork, event: m.TaskEvent) -> LostWork:
    """With the work that an event ends without a result. What a failed attempt did is not counted:
    no worker was lost."""
    microseconds = lost.microseconds + round(1e6 * getattr(event, "seconds", 0.0))
    if isinstance(event, m.LeaseLapsed):
        return replace(lost, microseconds=microseconds)
    if isinstance(event, m.TaskReleased) and event.preempted:
        return LostWork(lost.preemptions + 1, microseconds)
    return lost


def checkpoint_saved(state: State, event: m.CheckpointSaved) -> State:
    task = current_task(state, event)
    if task is None or not isinstance(task.command, m.Train):
        return state
    command = task.command.model_copy(update={"resume": event.checkpoint})
    return state if command == task.command else state.with_task(replace(task, command=command))


def task_cancelled(state: State, decision: m.TaskCancelled) -> State:
    """Ends the task, unless it computes labels: those are worth keeping, and the task ends with its
    result or when the coordinator revokes it."""
    task = state.tasks[decision.task]
    return state if isinstance(task.command, m.Label) else settle(state, task, "cancelled")
