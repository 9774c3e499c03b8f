"""What a person wants to know of a campaign, from its state: on a screen, as log lines, and from
`dpstream status`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dpstream.services.coordinator.state import State, Task
from dpstream.services.coordinator.views.overview import headline, label_counts, round_counts
from dpstream.shared import messages as m

SHOWN = 2
"""Running tasks named per service."""
VERSIONS = 5
"""Newest committees whose errors are shown."""
FINAL = 1 << 30
"""The final model's place among the versions: after all of them."""


@dataclass
class Learning:
    """Members trained so far, by committee version and number: what their errors were."""

    members: dict[int, dict[int, m.MemberTrained]] = field(default_factory=dict)

    @staticmethod
    def of(messages: Iterable[m.Message]) -> Learning:
        """From a ledger's messages, heard and decided."""
        learning, final = Learning(), set[str]()
        for message in messages:
            if isinstance(message, m.Train) and message.final:
                final.add(message.task)
            elif isinstance(message, m.MemberTrained):
                learning._add(FINAL if message.task in final else message.version, message)
        return learning

    def watch(self, state: State) -> None:
        """Take in what is new in the state."""
        for member in state.committee.members.values():
            self._add(member.version, member)
        if state.final.model is not None:
            self._add(FINAL, state.final.model)

    def _add(self, version: int, member: m.MemberTrained) -> None:
        self.members.setdefault(version, {})[member.member] = member

    def lines(self) -> Iterator[str]:
        """Mean force RMSE over the members of each of the newest versions, eV/Å."""
        for version in sorted(self.members)[-VERSIONS:]:
            name = "final model" if version == FINAL else f"committee {version}"
            yield f"{name}: {_errors(self.members[version].values())}"


def facts(state: State, learning: Learning) -> dict[str, str]:
    """The figures worth following, by name."""
    learning.watch(state)
    explored = {} if state.stages_over else {"frames explored": _shares(state)}
    return {
        **explored,
        "labels": _labels(state),
        "force RMSE (eV/Å)": "\n".join(learning.lines()) or "nothing trained yet",
        "stages over": _stages(state),
    }


def screen(
    state: State,
    learning: Learning,
    progress: Mapping[str, str],
    elapsed: float,
    foot: str,
    warning: str = "",
) -> RenderableType:
    """The live view, `elapsed` seconds after the start; `foot`: what Ctrl-C does; `warning`: the
    newest, if any."""
    clock = f"{elapsed // 3600:.0f}:{elapsed // 60 % 60:02.0f}:{elapsed % 60:02.0f}"
    return Group(
        Text(f"{state.spec.name}: {headline(state)}", style="bold"),
        _services(state, progress),
        _table({**facts(state, learning), "elapsed": clock}),
        *([Text(f"warning: {warning}", style="yellow")] if warning else []),
        Text(foot, style="dim"),
    )


def summary(state: State, learning: Learning) -> RenderableType:
    """One look, at rest."""
    parts: list[RenderableType] = [Text(f"{state.spec.name}: {headline(state)}", style="bold")]
    if state.finished is None:
        parts.append(_services(state, {}))
    return Group(*parts, figures(state, learning))


def figures(state: State, learning: Learning) -> RenderableType:
    """The figures alone."""
    return _table(facts(state, learning))


def _table(named: Mapping[str, str]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in named.items():
        table.add_row(name, Text(fact))
    return table


def _services(state: State, progress: Mapping[str, str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
    for column in ("service", "running", "waiting"):
        right = column != "service"
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    table.add_column("at work on", overflow="ellipsis", no_wrap=True, ratio=1)  # what room is left
    for service in m.SERVICES:
        live = state.under_way(*m.commands_of(service))
        running = [task for task in live if task.status == "running"]
        words = "; ".join(_task_words(task, progress) for task in running[:SHOWN])
        more = f"; {len(running) - SHOWN} more" if len(running) > SHOWN else ""
        waiting = str(len(live) - len(running))
        table.add_row(service, str(len(running)), waiting, Text(words + more))
    return table


def _task_words(task: Task, progress: Mapping[str, str]) -> str:
    detail = progress.get(task.command.task)
    again = f", attempt {task.command.attempt}" if task.command.attempt > 1 else ""
    return task.command.title + again + (f" ({detail})" if detail else "")


def _shares(state: State) -> str:
    """Of the running round."""
    counts = round_counts(state)
    if not counts.total:
        return "none yet in this round"
    shares = counts.model_dump().items()
    words = ", ".join(f"{part / counts.total:.1%} {name}" for name, part in shares)
    return f"{words} of {counts.total}"


def _labels(state: State) -> str:
    labels = label_counts(state)
    return (
        f"{labels.labelled} done ({labels.reused} reused, {labels.audits} for the audit), "
        f"{labels.rejected} rejected, {labels.pending} waiting"
    )


def _errors(members: Iterable[m.MemberTrained]) -> str:
    """Training, audit and held-out errors, mean over members."""
    words = []
    trained = list(members)
    for name, key in (("train", "train"), ("audit", "audit"), ("held-out", "test")):
        measured = [getattr(member, key) for member in trained]
        forces = [rmse.force for rmse in measured if rmse is not None]
        if forces:
            words.append(f"{name} {fmean(forces):.4f}")
    return ", ".join(words)


def _stages(state: State) -> str:
    over = [f"{state.spec.stages[e.stage].name} {e.verdict}" for e in state.exploration.ended]
    return ", ".join(over) or "none"
