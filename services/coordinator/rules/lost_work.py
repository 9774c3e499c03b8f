"""Decides what follows when an attempt was released, failed or lost.

The task gets another attempt under the same id, until `max_attempts` attempts have counted against
it or the failure is permanent. Then it is abandoned. If the campaign cannot continue without the
task, it is paused until a user resumes it; `dpstream retry` revives any abandoned task that is
still of use.
"""

from __future__ import annotations

from typing import Any

from dpstream.services.coordinator.decisions import Decisions, cancel, tasks_of
from dpstream.services.coordinator.rules.cross_check import is_check_of_use
from dpstream.services.coordinator.state import State, Task
from dpstream.shared import messages as m
from dpstream.shared.values import stable_id

ESSENTIAL = (m.Train, m.Select, m.Audit, m.Measure)
"""Tasks the campaign cannot continue without: abandoning one pauses it."""
LOST = "the worker was lost"
FROM_THE_START: dict[type[m.Command], dict[str, Any]] = {
    m.Train: {"resume": None},
    m.Explore: {"resume": None, "from_chunk": 0},
    m.Label: {"resume": None},
}
"""Progress of earlier attempts that a new attempt discards in a reproducible campaign."""


def reissue_lost(decisions: Decisions) -> None:
    """Issues the next attempt of a task that was released, failed or lapsed, or abandons it."""
    event = decisions.event
    assert isinstance(event, m.TaskEvent)
    task = decisions.state.tasks.get(event.task)
    if task is None or task.status != "lost" or decisions.state.finished is not None:
        return
    reason = getattr(event, "reason", "") or LOST
    if isinstance(event, m.TaskFailed) and event.permanent:
        _abandon(decisions, task, reason)
    else:
        _reissue_or_abandon(decisions, task, reason)


def reissue_all_lost(decisions: Decisions) -> None:
    """Issues the next attempt of the tasks that were lost while the campaign had ended."""
    for task in decisions.state.under_way():
        if task.status == "lost":
            _reissue_or_abandon(decisions, task, LOST)


def _reissue_or_abandon(decisions: Decisions, task: Task, reason: str) -> None:
    if task.lapses >= decisions.state.spec.max_attempts:
        _abandon(decisions, task, reason)
    else:
        _reissue(decisions, task)


def _reissue(decisions: Decisions, task: Task) -> None:
    command, attempt = task.command, task.command.attempt + 1
    update: dict[str, Any] = {"attempt": attempt, "id": stable_id(command.task, attempt)}
    if isinstance(command, m.Label):
        update["distrusted"] = decisions.state.labels.distrusted
    if decisions.state.plan.number > 1:
        update |= _as_planned(decisions.state, command)
    if decisions.state.spec.starts_over:
        update |= FROM_THE_START.get(type(command), {})
    decisions.decide(command.model_copy(update={**update, "time": decisions.event.time}))


def _as_planned(state: State, command: m.Command) -> dict[str, Any]:
    """Where and for how long a task runs under an amended plan."""
    labels = state.spec.labels
    if isinstance(command, m.Label):
        seconds = labels.max_seconds * len(command.frames)
        return {"capability": labels.capability, "max_seconds": seconds}
    if isinstance(command, m.CheckLabel):
        return {"capability": labels.capability, "max_seconds": labels.max_seconds}
    if isinstance(command, m.Reference):
        return {"capability": labels.capability}
    if isinstance(command, m.Train):
        return {"max_seconds": state.spec.training.max_hours * 3600}
    return {}


def move_open_labels(decisions: Decisions) -> None:
    """Has the label tasks that no worker has taken done by the workers that the plan names."""
    capability = decisions.state.spec.labels.capability
    for kind in (m.Label, m.CheckLabel, m.Reference):
        for task in tasks_of(decisions.state, kind, "open"):
            assert isinstance(task.command, (m.Label, m.CheckLabel, m.Reference))
            if task.command.capability == capability:
                continue
            if isinstance(task.command, m.Label):  # its frames go to a new task
                cancel(decisions, task, "the plan names other workers")
            else:
                _reissue(decisions, task)


def _abandon(decisions: Decisions, task: Task, reason: str) -> None:
    command = task.command
    attempts = f"after {command.attempt} attempt{'s' if command.attempt > 1 else ''}"
    why = f"{attempts}: {reason}"
    task_id, attempt, title = command.task, command.attempt, command.title
    decisions.fact(m.TaskAbandoned, task_id, attempt, task=task_id, title=title, why=why)
    if isinstance(command, ESSENTIAL):
        decisions.fact(m.CampaignPaused, task_id, attempt, why=f"{title}: {why}")


def pause_until_served(decisions: Decisions) -> None:
    """Pauses the campaign until a worker claims a task of the queue."""
    event = decisions.event
    assert isinstance(event, m.WorkersMissing)
    decisions.fact(m.CampaignPaused, event.id, why=event.why)


def retry_abandoned(decisions: Decisions) -> None:
    """After `resume`, issues another attempt of the tasks that paused the campaign: label tasks,
    too, while it has no label."""
    kinds = ESSENTIAL if has_labels(decisions.state) else (*ESSENTIAL, m.Label)
    for task in abandoned(decisions.state):
        if isinstance(task.command, kinds):
            _reissue(decisions, task)


def has_labels(state: State) -> bool:
    """Whether there is anything to train on."""
    assert state.submitted is not None
    return bool(state.dataset.size or state.dataset.fresh or state.submitted.pack_frames)


def retry_requested(decisions: Decisions) -> None:
    """After `retry`, issues another attempt of the named tasks, or of all, that are still of
    use."""
    event = decisions.event
    assert isinstance(event, m.TasksRetried)
    for task in abandoned(decisions.state):
        named = not event.tasks or task.command.task in event.tasks
        if named and is_of_use(decisions.state, task):
            _reissue(decisions, task)


def abandoned(state: State) -> list[Task]:
    tasks = [task for task in state.tasks.values() if task.status == "abandoned"]
    return sorted(tasks, key=lambda task: task.command.task)


def is_of_use(state: State, task: Task) -> bool:
    """Whether a new attempt of an abandoned task could still change anything. The round of an
    abandoned trajectory or judgement has already counted it."""
    if isinstance(task.command, m.Reference):
        return state.dataset.test is None
    command = task.command
    if isinstance(command, m.CheckLabel) and state.is_of_import(command):
        return is_check_of_use(state, command.frame.key)
    return isinstance(command, (*ESSENTIAL, m.Label, m.CheckLabel))
