"""What a person wants to know of a campaign, from its state: the same facts on a screen, as log
lines, and from `dpstream status`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from services.coordinator.convergence import by_condition
from services.coordinator.state import State, Task, is_live
from shared.messages import (
    Audit,
    Command,
    Explore,
    Judge,
    Label,
    MemberTrained,
    Reference,
    Select,
    Train,
    Verify,
)

SERVICES: Mapping[str, tuple[type[Command], ...]] = {
    "trainer": (Train,),
    "explorer": (Explore, Judge, Select, Audit, Verify),
    "labeler": (Label, Reference),
}
SHOWN = 3
"""Running tasks named per service."""


@dataclass(frozen=True)
class LabelCount:
    done: int
    rejected: int
    waiting: int
    audit: int


def label_count(state: State) -> LabelCount:
    statuses = [frame.status for frame in state.frames.values()]
    audits = sum(f.purpose == "audit" and f.status == "labelled" for f in state.frames.values())
    return LabelCount(statuses.count("labelled"), statuses.count("rejected"), state.pending, audits)


def headline(state: State) -> str:
    """Stage, committee version and round in one line."""
    if state.finished is not None:
        return f"{state.finished.verdict}: {state.finished.why}"
    if state.paused is not None:
        return f"paused: {state.paused}"
    if state.stages_over:
        return "all stages over: the final model"
    stage = state.spec.stages[state.stage.index]
    training = "" if state.training is None else f", training {state.training}"
    return (
        f"stage {stage.name} ({state.stage.index + 1} of {len(state.spec.stages)})"
        f" · committee {state.version}{training} · round {state.stage.rounds}"
    )


def shares(state: State) -> str:
    """Accurate / candidate / failed of the running round."""
    if state.round is None:
        return "-"
    counts = by_condition(state.round).values()
    total = sum(c.total for c in counts)
    if not total:
        return "-"
    parts = (
        sum(c.accurate for c in counts),
        sum(c.candidate for c in counts),
        sum(c.failed for c in counts),
    )
    return " / ".join(f"{part / total:.0%}" for part in parts)


def errors(state: State) -> Iterator[tuple[str, str]]:
    """Training, audit and held-out force RMSE of the newest models, eV/Å."""
    members: list[MemberTrained] = list(state.members.values())
    if state.final is not None:
        members = [state.final]
    if not members:
        return
    for name in ("train", "audit", "test"):
        found = [getattr(member, name) for member in members]
        forces = [rmse.force for rmse in found if rmse is not None]
        if forces:
            yield name, f"{sum(forces) / len(forces):.4f}"


def running(state: State, service: str) -> list[Task]:
    kinds = SERVICES[service]
    return [
        t for t in state.tasks.values() if t.status == "running" and isinstance(t.command, kinds)
    ]


def waiting(state: State, service: str) -> int:
    kinds = SERVICES[service]
    return sum(
        is_live(t) and t.status != "running" and isinstance(t.command, kinds)
        for t in state.tasks.values()
    )


def screen(
    state: State, progress: Mapping[str, str], reused: int, elapsed: float
) -> RenderableType:
    """The live view."""
    table = Table(box=None, padding=(0, 2), show_header=True, header_style="dim")
    for column in ("service", "running", "waiting", "at work on"):
        table.add_column(column, justify="right" if column in ("running", "waiting") else "left")
    for service in SERVICES:
        tasks = running(state, service)
        names = [_task_words(task, progress) for task in tasks[:SHOWN]]
        table.add_row(service, str(len(tasks)), str(waiting(state, service)), "; ".join(names))
    return Group(
        Text(f"{state.spec.name}  {headline(state)}", style="bold"),
        table,
        Text(f"accurate / candidate / failed   {shares(state)}"),
        Text(labels_line(state, reused)),
        Text(errors_line(state)),
        Text(f"elapsed {elapsed / 60:.1f} min", style="dim"),
    )


def labels_line(state: State, reused: int) -> str:
    count = label_count(state)
    return (
        f"labels {count.done} done ({reused} reused, {count.audit} for the audit), "
        f"{count.rejected} rejected, {count.waiting} waiting"
    )


def errors_line(state: State) -> str:
    parts = [f"{name} {value}" for name, value in errors(state)]
    return f"force RMSE (eV/Å)   {', '.join(parts) or '-'}"


def _task_words(task: Task, progress: Mapping[str, str]) -> str:
    detail = progress.get(task.command.task)
    return task.command.title + (f" ({detail})" if detail else "")
