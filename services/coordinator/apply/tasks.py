"""How tasks come, go and are lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from immutables import Map

from dpstream.services.coordinator.state import State, Task
from dpstream.shared import messages as m

V = TypeVar("V")


def timeless(message: V) -> V:
    """Without what depends on when and in which order messages came."""
    assert isinstance(message, m.Message)
    return message.model_copy(update={"time": 0.0, "cause": None})


def changed(state: State, **changes: Any) -> State:
    return state.model_copy(update=changes)


Live = Map[str, Map[str, None]]
"""Ids by kind."""


def with_live(live: Live, command: m.Command) -> Live:
    kind = type(command).__name__
    return live.set(kind, live.get(kind, Map()).set(command.task, None))


def without_live(live: Live, command: m.Command) -> Live:
    kind = type(command).__name__
    return live.set(kind, live[kind].delete(command.task))


def settle(state: State, task: Task, status: str, **changes: Any) -> State:
    """The task comes to an end."""
    ended = task.model_copy(update={"status": status, **changes})
    live = without_live(state.live, task.command) if is_live(task) else state.live
    return changed(state, tasks=state.tasks.set(task.command.task, ended), live=live)


def is_live(task: Task) -> bool:
    return task.status in ("open", "running", "lost")


def chunk_counted(state: State, task: Task, event: m.Chunk, **changes: Any) -> tuple[State, bool]:
    """With one more chunk of a task's result; and whether that was all of it, so that the task
    has come to its end."""
    chunks = task.chunks | {event.chunk}
    last = event.chunk if event.last else task.last_chunk
    changes |= {"chunks": chunks, "last_chunk": last}
    if last is not None and chunks.issuperset(range(last + 1)):
        return settle(state, task, "done", **changes), True
    task = task.model_copy(update=changes)
    return changed(state, tasks=state.tasks.set(event.task, task)), False


def current_task(state: State, event: m.TaskEvent) -> Task | None:
    """The task an event speaks of, if it speaks of the attempt that is under way."""
    task = state.tasks.get(event.task)
    if task is None or task.status not in ("open", "running"):
        return None
    return task if task.command.attempt == event.attempt else None


def task_claimed(state: State, event: m.TaskClaimed) -> State:
    task = current_task(state, event)
    if task is None or task.status == "running":
        return state
    return changed(
        state, tasks=state.tasks.set(event.task, task.model_copy(update={"status": "running"}))
    )


def task_lost(held_against: bool) -> Callable[[State, Any], State]:
    def change(state: State, event: Any) -> State:
        task = current_task(state, event)
        if task is None:
            return state
        delay = getattr(event, "delay", 0.0)
        update = {
            "status": "lost",
            "lapses": task.lapses + held_against,
            "not_before": event.time + delay if delay else 0.0,
        }
        return changed(state, tasks=state.tasks.set(event.task, task.model_copy(update=update)))

    return change


def checkpoint_saved(state: State, event: m.CheckpointSaved) -> State:
    task = current_task(state, event)
    if task is None or not isinstance(task.command, m.Train):
        return state
    command = task.command.model_copy(update={"resume": event.checkpoint})
    if command == task.command:
        return state
    return changed(
        state, tasks=state.tasks.set(event.task, task.model_copy(update={"command": command}))
    )


def task_cancelled(state: State, decision: m.TaskCancelled) -> State:
    """Wished for; it is over when the edge has won the claim, or the worker has stopped."""
    task = state.tasks[decision.task]
    if isinstance(task.command, m.Label):
        return state
    return settle(state, task, "cancelled")
