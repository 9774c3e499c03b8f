"""Work that was released, failed or lost: the next attempt, or the end."""

from __future__ import annotations

from typing import Any

from dpstream.services.coordinator.decisions import Decisions
from dpstream.services.coordinator.state import State, Task
from dpstream.shared import messages as m
from dpstream.shared.values import stable_id

ESSENTIAL = (m.Train, m.Select, m.Audit, m.Measure)
"""The campaign cannot go on without these: abandoning one pauses it."""
FROM_THE_START: dict[type[m.Command], dict[str, Any]] = {
    m.Train: {"resume": None},
    m.Explore: {"resume": None, "from_chunk": 0},
}
"""What a new attempt forgets of the earlier ones in a reproducible campaign."""


def reissue_lost(decisions: Decisions) -> None:
    """The next attempt of a task that was released, failed or lapsed; or its end."""
    event = decisions.event
    assert isinstance(event, m.TaskEvent)
    task = decisions.state.tasks.get(event.task)
    if task is None or task.status != "lost" or decisions.state.finished is not None:
        return
    permanent = isinstance(event, m.TaskFailed) and event.permanent
    if permanent or task.lapses >= decisions.state.spec.max_attempts:
        reason = getattr(event, "reason", "its worker was lost")
        _abandon(decisions, task, reason)
    else:
        _reissue(decisions, task)


def _reissue(decisions: Decisions, task: Task) -> None:
    command, attempt = task.command, task.command.attempt + 1
    update: dict[str, Any] = {"attempt": attempt, "id": stable_id(command.task, attempt)}
    if decisions.state.spec.starts_over:
        update |= FROM_THE_START.get(type(command), {})
    decisions.decide(command.model_copy(update={**update, "time": decisions.event.time}))


def _abandon(decisions: Decisions, task: Task, reason: str) -> None:
    command = task.command
    attempts = f"after {command.attempt} attempt{'s' if command.attempt > 1 else ''}"
    why = f"{attempts}: {reason}"
    decisions.fact(
        m.TaskAbandoned,
        command.task,
        command.attempt,
        task=command.task,
        title=command.title,
        why=why,
    )
    if isinstance(command, ESSENTIAL):
        decisions.fact(
            m.CampaignPaused, command.task, command.attempt, why=f"{command.title}: {why}"
        )


def retry_abandoned(decisions: Decisions) -> None:
    """A person said go on: what paused the campaign gets another attempt."""
    for task in abandoned(decisions.state):
        if isinstance(task.command, ESSENTIAL):
            _reissue(decisions, task)


def retry_asked(decisions: Decisions) -> None:
    """A person wants the tasks named, or all, tried again: those that are still of use."""
    event = decisions.event
    assert isinstance(event, m.TasksRetried)
    for task in abandoned(decisions.state):
        named = not event.tasks or task.command.task in event.tasks
        if named and is_of_use(decisions.state, task):
            _reissue(decisions, task)


def abandoned(state: State) -> list[Task]:
    given_up = [task for task in state.tasks.values() if task.status == "abandoned"]
    return sorted(given_up, key=lambda task: task.command.task)


def is_of_use(state: State, task: Task) -> bool:
    """Whether a new attempt of an abandoned task could still change anything. Trajectories and
    verdicts given up are in the books of their round already."""
    if isinstance(task.command, m.Reference):
        return state.dataset.test is None
    return isinstance(task.command, (*ESSENTIAL, m.Label))
