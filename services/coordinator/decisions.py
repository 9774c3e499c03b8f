"""The decisions on one event while they are being made, and helpers that several rules use.

A rule reads `Decisions.state` and adds to `Decisions.decided` with `command`, `fact` or `manifest`.
Every decision is applied at once, so the state is always the one after the last decision. Ids are
hashes of what a decision is about: deciding the same thing twice gives the same id.
"""

from __future__ import annotations

from typing import Any

from dpstream.services.coordinator.apply import apply
from dpstream.services.coordinator.state import State, Task
from dpstream.shared import messages as m
from dpstream.shared.values import Ref, campaign_uri, stable_id

DAY = 86_400.0


class Decisions:
    """The event, the state before it and after the decisions so far, and these decisions."""

    def __init__(self, before: State, state: State, event: m.Message) -> None:
        self.before, self.state, self.event = before, state, event
        self.decided: list[m.Message] = []

    def decide(self, decision: m.Message) -> None:
        self.decided.append(decision)
        self.state = apply(self.state, decision)

    def fact(self, kind: type[m.Message], *what: object, **fields: Any) -> None:
        """Adds a fact. `what` identifies it among the facts of its class in the campaign."""
        name, event = self.state.spec.name, self.event
        identity = stable_id(name, kind.__name__, *what)
        self.decide(kind(id=identity, campaign=name, time=event.time, cause=event.id, **fields))

    def command(self, kind: type[m.Command], *what: object, **fields: Any) -> None:
        """Adds a new task. `what` identifies it among the tasks of its class in the campaign."""
        name, submitted = self.state.spec.name, self.state.submitted
        assert submitted is not None
        task = stable_id(name, kind.__name__, *what)
        fields = {"max_seconds": DAY, "spec": submitted.spec, **fields}
        self.fact(kind, task, 1, task=task, **fields)

    def manifest(self, purpose: str, name: str, body: str) -> Ref:
        """Adds a manifest with the content `body`; returns the reference to it."""
        ref = Ref.to(campaign_uri(self.state.spec.name, "manifests", f"{name}.json"), body.encode())
        self.fact(m.ManifestFrozen, ref.uri, purpose=purpose, manifest=ref, body=body)
        return ref


def plan_identity(state: State) -> tuple[object, ...]:
    """What tells a decision from the same one under an earlier plan; nothing under the first."""
    number = state.plan.number
    return () if number == 1 else (f"plan {number}",)


def tasks_of(state: State, kind: type[m.Command], *statuses: str) -> list[Task]:
    return [task for task in state.under_way(kind) if task.status in statuses]


def cancel(decisions: Decisions, task: Task, why: str) -> None:
    task_id, attempt = task.command.task, task.command.attempt
    decisions.fact(m.TaskCancelled, task_id, attempt, task=task_id, attempt=attempt, why=why)


def is_decided(state: State, kind: type[m.Command], *what: object) -> bool:
    """Whether a task of this identity was ever issued."""
    return state.has_task(stable_id(state.spec.name, kind.__name__, *what))


def already_decided(decisions: Decisions, kind: type[m.Message]) -> bool:
    return any(isinstance(decision, kind) for decision in decisions.decided)


def frozen_once(decisions: Decisions, purpose: str, name: str, body: str) -> Ref:
    """The manifest with the content `body`, added only if it is not among the decisions yet."""
    for decision in decisions.decided:
        if isinstance(decision, m.ManifestFrozen) and decision.body == body:
            return decision.manifest
    return decisions.manifest(purpose, name, body)
