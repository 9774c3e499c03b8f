"""What a person wants to know of a campaign, from its state: on a screen, as log lines, and from
`dpstream status`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from services.coordinator.convergence import by_condition
from services.coordinator.folds.tasks import is_live
from services.coordinator.state import State, Task
from shared import messages as m

SERVICES: Mapping[str, tuple[type[m.Command], ...]] = {
    "trainer": (m.Train,),
    "explorer": (m.Explore, m.Judge, m.Select, m.Audit, m.Verify),
    "labeler": (m.Label, m.Reference),
}
SHOWN = 2
"""Running tasks named per service."""


def headline(state: State) -> str:
    """Stage, committee version and round in one line; at the end, the verdict."""
    if state.finished is not None:
        return f"{state.finished.verdict}: {state.finished.why}"
    if state.paused is not None:
        return f"paused: {state.paused}"
    if state.stages_over:
        return "stages over, final model"
    stage = state.spec.stages[state.stage.index]
    training = "" if state.training is None else f", training {state.training}"
    return (
        f"stage {stage.name} ({state.stage.index + 1} of {len(state.spec.stages)})"
        f" · committee {state.version}{training} · round {state.stage.rounds}"
    )


def facts(state: State) -> dict[str, str]:
    """The figures worth following, by name."""
    return {
        "accurate / candidate / failed": _shares(state),
        "labels": _labels(state),
        "force RMSE (eV/Å)": ", ".join(_errors(state)) or "-",
    }


def screen(state: State, progress: Mapping[str, str], elapsed: float) -> RenderableType:
    """The live view."""
    return Group(
        Text(f"{state.spec.name}: {headline(state)}", style="bold"),
        _services(state, progress),
        *(Text(f"{name:32s}{fact}") for name, fact in facts(state).items()),
        Text(f"{'elapsed':32s}{elapsed / 60:.1f} min"),
    )


def summary(state: State) -> RenderableType:
    """One look, at rest."""
    stages = [f"{state.spec.stages[e.stage].name} {e.verdict}" for e in state.ended]
    return Group(
        Text(f"{state.spec.name}: {headline(state)}", style="bold"),
        _services(state, {}),
        *(Text(f"{name:32s}{fact}") for name, fact in facts(state).items()),
        Text(f"{'stages ended':32s}{', '.join(stages) or '-'}"),
    )


def _services(state: State, progress: Mapping[str, str]) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("service", "running", "waiting", "at work on"):
        table.add_column(column, justify="right" if column in ("running", "waiting") else "left")
    for service, kinds in SERVICES.items():
        live = [t for t in state.tasks.values() if is_live(t) and isinstance(t.command, kinds)]
        running = [task for task in live if task.status == "running"]
        words = "; ".join(_task_words(task, progress) for task in running[:SHOWN])
        table.add_row(service, str(len(running)), str(len(live) - len(running)), words)
    return table


def _task_words(task: Task, progress: Mapping[str, str]) -> str:
    detail = progress.get(task.command.task)
    return task.command.title + (f" ({detail})" if detail else "")


def _shares(state: State) -> str:
    """Of the running round."""
    counts = list(by_condition(state.round).values()) if state.round else []
    total = sum(c.total for c in counts)
    if not total:
        return "-"
    parts = (
        sum(c.accurate for c in counts),
        sum(c.candidate for c in counts),
        sum(c.failed for c in counts),
    )
    return " / ".join(f"{part / total:.1%}" for part in parts)


def _labels(state: State) -> str:
    frames = list(state.frames.values())
    done = [frame for frame in frames if frame.status == "labelled"]
    audits = sum(frame.purpose == "audit" for frame in done)
    rejected = sum(frame.status == "rejected" for frame in frames)
    return (
        f"{len(done)} done ({state.reused} reused, {audits} for the audit), "
        f"{rejected} rejected, {state.pending} waiting"
    )


def _errors(state: State) -> Iterator[str]:
    """Training, audit and held-out errors of the newest models, mean over members."""
    members = [state.final] if state.final else list(state.members.values())
    for name in ("train", "audit", "test"):
        found = [getattr(member, name) for member in members]
        forces = [rmse.force for rmse in found if rmse is not None]
        if forces:
            yield f"{name} {sum(forces) / len(forces):.4f}"
