"""One event being decided upon, and what every rule needs."""

from __future__ import annotations

from typing import Any

from dpstream.services.coordinator.apply import apply
from dpstream.services.coordinator.state import State, Task
from dpstream.shared import messages as m
from dpstream.shared.values import Ref, campaign_uri, stable_id

DAY = 86_400.0


class Decisions:
    """One event being decided upon: the state as it stands, and what was decided so far."""

    def __init__(self, state: State, event: m.Message) -> None:
        self.state, self.event = state, event
        self.decided: list[m.Message] = []

    def decide(self, decision: m.Message) -> None:
        self.decided.append(decision)
        self.state = apply(self.state, decision)

    def fact(self, kind: type[m.Message], *what: object, **fields: Any) -> None:
        """Decide a fact; its identity is what it is."""
        name = self.state.spec.name
        identity = stable_id(name, kind.__name__, *what)
        self.decide(
            kind(id=identity, campaign=name, time=self.event.time, cause=self.event.id, **fields)
        )

    def command(self, kind: type[m.Command], *what: object, **fields: Any) -> None:
        """Decide a new task; its identity is what it is."""
        name, submitted = self.state.spec.name, self.state.submitted
        assert submitted is not None
        task = stable_id(name, kind.__name__, *what)
        fields = {"max_seconds": DAY, "spec": submitted.spec, **fields}
        self.fact(kind, task, 1, task=task, **fields)

    def manifest(self, purpose: str, name: str, body: str) -> Ref:
        """Decide that `body` is stored; the reference to it."""
        ref = Ref.to(campaign_uri(self.state.spec.name, "manifests", f"{name}.json"), body.encode())
        self.fact(m.ManifestFrozen, ref.uri, purpose=purpose, manifest=ref, body=body)
        return ref


def tasks_of(state: State, kind: type[m.Command], *statuses: str) -> list[Task]:
    return [task for task in state.under_way(kind) if task.status in statuses]


def cancel(decisions: Decisions, task: Task, why: str) -> None:
    task_id, attempt = task.command.task, task.command.attempt
    decisions.fact(m.TaskCancelled, task_id, attempt, task=task_id, attempt=attempt, why=why)


def already_decided(decisions: Decisions, kind: type[m.Message]) -> bool:
    return any(isinstance(decision, kind) for decision in decisions.decided)


def frozen_once(decisions: Decisions, purpose: str, name: str, body: str) -> Ref:
    """Freeze a manifest unless this turn has done so already."""
    for decision in decisions.decided:
        if isinstance(decision, m.ManifestFrozen) and decision.body == body:
            return decision.manifest
    return decisions.manifest(purpose, name, body)
