"""A campaign's status in words and tables: for `dpstream status`, the live screen and log lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from statistics import fmean

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dpstream.services.coordinator.views.campaign import Status
from dpstream.services.coordinator.views.committees import Errors, devices, force_errors
from dpstream.services.coordinator.views.overview import CampaignOverview
from dpstream.services.coordinator.views.tasks import ServiceWork, TaskLine
from dpstream.shared.messages import MemberTrained
from dpstream.terminal.console import console, notes, print_line

SHOWN = 2
"""Running tasks named per service."""
MOST_CONDITIONS = 5
"""Conditions shown."""
VERSIONS, LIVE_VERSIONS = 5, 3
"""Newest committees whose errors are shown, and on a live screen, which has 24 lines at least."""
GO_ON = "change the spec: dpstream run SPEC --amend"
ERRORS: Mapping[str, Errors] = {"train": "train", "audit": "audit", "held-out": "test"}


def figures(status: Status, versions: int = VERSIONS) -> dict[str, str]:
    """The figures to follow, by name; errors of so many of the newest committees."""
    now = status.overview
    explored = {} if now.stage is None else {"frames explored": _shares(now)}
    return {
        **explored,
        **_plan(now),
        **({"imported labels": now.cross_check} if now.cross_check else {}),
        "labels": _labels(now),
        **_budget(now),
        "force RMSE (eV/Å)": "\n".join(_models(status, versions)) or "nothing trained yet",
        **_trained_on(status),
        "finished stages": ", ".join(f"{end.name} {end.verdict}" for end in now.ended) or "none",
        **_lost_work(now),
        **_declined(now),
    }


def screen(
    status: Status,
    elapsed: float,
    foot: str,
    warning: str = "",
    remaining: str = "",
    most: int = MOST_CONDITIONS,
) -> RenderableType:
    """The live view, `elapsed` seconds after the start; `foot`: what Ctrl-C does; `warning`: the
    newest, if any; `remaining`: what is ahead; `most`: number of conditions shown."""
    ahead = {"remaining": remaining} if remaining else {}
    return Group(
        _title(status),
        _services(status.services),
        *_conditions(status.overview, most),
        _table({**figures(status, LIVE_VERSIONS), **ahead, "elapsed": clock(elapsed)}),
        *([Text(f"warning: {warning}", style="yellow")] if warning else []),
        Text(foot, style="dim"),
    )


def summary(status: Status, remaining: str = "") -> RenderableType:
    """The status at one moment; the services' work only while the campaign is not finished."""
    is_finished = status.overview.standing == "finished"
    work = [] if is_finished else [_services(status.services)]
    ahead = {"remaining": remaining} if remaining else {}
    conditions = _conditions(status.overview, len(status.overview.shares))
    return Group(_title(status), *work, *conditions, _table({**figures(status), **ahead}))


def print_standing(now: CampaignOverview) -> None:
    """Print where a campaign stands and what to type next."""
    print_line(console, f"{now.name}: {now.headline}")
    if step := next_step(now):
        print_line(notes, step)


def next_step(now: CampaignOverview) -> str:
    """What to type next; empty while the campaign goes on by itself."""
    if now.standing == "paused":
        accepting = " --no-cross-check" if now.imports_differ else ""
        run = f"dpstream run SPEC{accepting} if nothing runs it"
        return f"next: dpstream resume {now.name}, or {run}"
    if now.verdict == "converged":
        return f"next: dpstream export {now.name}, dpstream report {now.name}"
    if now.verdict == "cancelled":
        return f"next: dpstream new NAME --from {now.name} begins a campaign with its labels"
    if now.verdict is not None:
        return f"next: dpstream report {now.name}, or {GO_ON}"
    return ""


def figures_table(status: Status) -> RenderableType:
    return _table(figures(status))


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def progress_line(status: Status) -> str:
    """State and figures in one line."""
    now = status.overview
    parts = [now.headline]
    if now.labels is not None:
        parts.append(f"{now.labels.labelled} labels")
    if now.counts.total:
        parts.append(_shares(now))
    models = _models(status, 1)
    if models:
        parts.append(f"force RMSE {models[-1]} eV/Å")
    return "; ".join(parts)


def _title(status: Status) -> Text:
    return Text(f"{status.overview.name}: {status.overview.headline}", style="bold")


def _table(named: Mapping[str, str]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in named.items():
        table.add_row(name, Text(fact))
    return table


def _services(services: Iterable[ServiceWork]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
    for column in ("service", "running", "waiting"):
        right = column != "service"
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    table.add_column(
        "running tasks", overflow="ellipsis", no_wrap=True, ratio=1
    )  # what room is left
    for work in services:
        running = len(work.running)
        words = "; ".join(map(_task_words, work.running[:SHOWN]))
        more = f"; {running - SHOWN} more" if running > SHOWN else ""
        table.add_row(work.service, str(running), str(work.waiting), Text(words + more))
    return table


def _conditions(now: CampaignOverview, most: int) -> Iterator[RenderableType]:
    """Shares of the running round by condition, the least accurate first."""
    found = sorted(
        ((name, counts) for name, counts in now.shares.items() if counts.total),
        key=lambda each: each[1].accurate / each[1].total,
    )
    if not found:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
    table.add_column("condition", no_wrap=True, overflow="ellipsis", ratio=1)
    needed = f"accurate (≥ {now.accurate_ratio:.0%})", f"failed (≤ {now.max_failed:.0%})"
    for column in (needed[0], "candidate", needed[1], "frames"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, counts in found[:most]:
        parts = (counts.accurate, counts.candidate, counts.failed)
        table.add_row(name, *(f"{part / counts.total:.1%}" for part in parts), str(counts.total))
    yield table
    if len(found) > most:
        yield Text(f"{len(found) - most} more, none less accurate", style="dim")


def _task_words(task: TaskLine) -> str:
    again = f", attempt {task.attempt}" if task.attempt > 1 else ""
    return task.title + again + (f" ({task.progress})" if task.progress else "")


def _shares(now: CampaignOverview) -> str:
    """Of the running round."""
    counts = now.counts
    if not counts.total:
        return "none yet in this round"
    shares = counts.model_dump().items()
    words = ", ".join(f"{part / counts.total:.1%} {name}" for name, part in shares)
    return f"{words} of {counts.total}"


def _plan(now: CampaignOverview) -> dict[str, str]:
    """The amended plan in force; nothing if the plan was never amended."""
    waiting = f"; {now.plans_waiting} more when the round has ended" if now.plans_waiting else ""
    if now.plan is None:
        return {"plan": f"1{waiting}"} if waiting else {}
    at = datetime.fromtimestamp(now.plan.time).strftime("%Y-%m-%d %H:%M")
    by = f" by {now.plan.author}" if now.plan.author else ""
    return {"plan": f"{now.plan.number}, {at}{by}: {'; '.join(now.plan.changes)}{waiting}"}


def _labels(now: CampaignOverview) -> str:
    labels = now.labels
    assert labels is not None, "only a campaign whose ledger cannot be read has no labels"
    return (
        f"{labels.labelled} done ({labels.reused} reused, {labels.audits} for the audit), "
        f"{labels.rejected} rejected, {labels.pending} waiting"
    )


def _budget(now: CampaignOverview) -> dict[str, str]:
    if not now.label_budget:
        return {}
    share = now.budget_used / now.label_budget
    return {"budget": f"{now.budget_used} of {now.label_budget} labels ({share:.1%})"}


def _lost_work(now: CampaignOverview) -> dict[str, str]:
    """What stopped and lost workers have cost; nothing without any."""
    if not (now.preemptions or now.work_lost_seconds):
        return {}
    count, seconds = now.preemptions, now.work_lost_seconds
    return {"work lost": f"{seconds:.0f} s with stopped and lost workers; preemptions: {count}"}


def _declined(now: CampaignOverview) -> dict[str, str]:
    """What the workers lack that have declined tasks; nothing once a worker serves the queue."""
    lines = [f"{queue}: {reason}" for queue, reasons in now.declined.items() for reason in reasons]
    return {"declined by workers": "\n".join(lines)} if lines else {}


def _models(status: Status, versions: int) -> list[str]:
    """Mean force RMSE over the members of each of the newest versions, eV/Å."""
    named = list(status.committees.by_name().items())
    return [f"{name}: {_errors(members)}" for name, members in named[-versions:]]


def _trained_on(status: Status) -> dict[str, str]:
    """Devices of the newest models; nothing where they are not known."""
    newest = [*status.committees.by_name().values()][-1:]
    found = devices(member for members in newest for member in members)
    return {"trained on": "; ".join(found)} if found else {}


def _errors(members: Iterable[MemberTrained]) -> str:
    found = {name: force_errors(members, on) for name, on in ERRORS.items()}
    return ", ".join(f"{name} {fmean(forces):.4f}" for name, forces in found.items() if forces)
