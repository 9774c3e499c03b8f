"""The tasks of a campaign: those at work by service, and those that may be tried again.

Built from the state; which worker has a task and how far it is comes from the heartbeats, which no
ledger keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from dpstream.services.coordinator.rules.lost_work import abandoned, is_of_use
from dpstream.services.coordinator.state import EndedTask, State, Task
from dpstream.services.coordinator.views.overview import View
from dpstream.shared import messages as m
from dpstream.shared.codec import kind_of

UNKNOWN: Mapping[str, str] = {}


class TaskLine(View):
    task: str
    kind: str
    title: str
    status: str
    attempt: int
    lapses: int = Field(description="attempts that count against the task")
    worker: str | None
    progress: str | None


@dataclass(frozen=True)
class ServiceWork:
    """The live tasks of one service. `running`: by task id; `waiting`: number of the others."""

    service: m.Service
    running: tuple[TaskLine, ...]
    waiting: int


def task_line(
    task: Task, workers: Mapping[str, str] = UNKNOWN, progress: Mapping[str, str] = UNKNOWN
) -> TaskLine:
    command = task.command
    return TaskLine(
        task=command.task,
        kind=kind_of(command),
        title=command.title,
        status=task.status,
        attempt=command.attempt,
        lapses=task.lapses,
        worker=workers.get(command.task),
        progress=progress.get(command.task) or None,
    )


def ended_line(task: str, ended: EndedTask) -> TaskLine:
    return TaskLine(task=task, worker=None, progress=None, **ended._asdict())


def service_work(state: State, progress: Mapping[str, str] = UNKNOWN) -> list[ServiceWork]:
    """Of every service, in loop order."""
    found = []
    for service in m.SERVICES:
        live = state.under_way(*m.commands_of(service))
        running = [task_line(task, progress=progress) for task in live if task.status == "running"]
        found.append(ServiceWork(service, tuple(running), len(live) - len(running)))
    return found


def retryable(state: State) -> list[TaskLine]:
    """Abandoned tasks whose result would still be of use."""
    return [task_line(task) for task in abandoned(state) if is_of_use(state, task)]
