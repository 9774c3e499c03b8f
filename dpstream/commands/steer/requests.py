"""Requests to a coordinator: `pause`, `resume`, `cancel`, `retry`.

They go over the bus, and wait there while no coordinator runs. For a store in a folder, without a
broker, they go to the `dpstream run` that is at work there."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import typer

from dpstream.commands.options import DEFAULT_ROOT, Broker, Root, Wait, named, there, within
from dpstream.running.amend import once_more
from dpstream.running.connection import ANSWER_SECONDS, once_taken_in, request
from dpstream.running.requests import waits_for_coordinator, way_to
from dpstream.services.coordinator.ledger.ledger import load_state, verdict
from dpstream.services.coordinator.views.overview import verdict_line
from dpstream.services.coordinator.views.tasks import TaskLine, retryable
from dpstream.shared.errors import SpecError
from dpstream.shared.messages import (
    CampaignCancelled,
    CampaignPaused,
    CampaignResumed,
    Message,
    TasksRetried,
)
from dpstream.shared.ports import Store
from dpstream.terminal.console import console, print_line
from dpstream.terminal.status import print_standing

GOES_ON = (
    "; to continue it, change its plan: dpstream run SPEC --amend (in a deployment: dpstream amend "
    "NAME SPEC)"
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Campaign.")]
REASON = "Reason, shown by dpstream status and logs."


def pause(
    campaign: Name,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help=REASON)] = "on request",
    root: Root = DEFAULT_ROOT,
    broker: Broker = None,
    wait: Wait = ANSWER_SECONDS,
) -> None:
    """Pause a campaign: no new task starts; running tasks finish and their results are kept."""
    _send_request(request(CampaignPaused, _checked(campaign, root), why=why), root, broker, wait)


def resume(
    campaign: Name, root: Root = DEFAULT_ROOT, broker: Broker = None, wait: Wait = ANSWER_SECONDS
) -> None:
    """Resume a paused campaign. If an abandoned task paused it, that task is retried.

    If a campaign has ended because its final model could not be verified, the model is verified
    again.
    """
    if not _continued(campaign, root, broker, wait):
        _send_request(request(CampaignResumed, _checked(campaign, root)), root, broker, wait)


def cancel(
    campaign: Name,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help=REASON)] = "",
    root: Root = DEFAULT_ROOT,
    broker: Broker = None,
    wait: Wait = ANSWER_SECONDS,
) -> None:
    """Cancel a campaign for good. Results are kept; running label tasks finish."""
    _send_request(request(CampaignCancelled, _checked(campaign, root), why=why), root, broker, wait)


def retry(
    campaign: Name,
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TASK]…",
            help="Task ids, or the first characters of them; default: all abandoned tasks.",
        ),
    ] = None,
    root: Root = DEFAULT_ROOT,
    broker: Broker = None,
    wait: Wait = ANSWER_SECONDS,
) -> None:
    """Retry abandoned tasks.

    Abandoned trajectories are not retried: their round has continued without them. In a campaign
    that has ended, only the verification of the final model can be retried.
    """
    if _continued(campaign, root, broker, wait):
        return
    name = _checked(campaign, root)
    with within(root):
        useful = retryable(load_state(there(root), name))
    chosen = [_chosen(begins, useful) for begins in tasks or ()]
    if not useful:
        raise SpecError(f"{name}: no abandoned task can be retried")
    _send_request(
        request(TasksRetried, name, tasks=[task.task for task in chosen]), root, broker, wait
    )
    for task in chosen or useful:
        print_line(console, f"retry requested: {task.task} {task.title}")


def _chosen(begins: str, tasks: list[TaskLine]) -> TaskLine:
    found = [task for task in tasks if task.task.startswith(begins)]
    if len(found) != 1:
        known = ", ".join(f"{task.task} ({task.title})" for task in tasks) or "none"
        what = f"matches {len(found)} abandoned tasks" if found else "no such abandoned task"
        raise SpecError(f"TASK: {begins!r}: {what}; tasks that can be retried: {known}")
    return found[0]


def _continued(campaign: str, root: str, broker: str | None, wait: float) -> bool:
    """Has a campaign go on that ended for want of something that can be tried again; whether it was
    such a one."""
    with within(root):
        store, name = named(campaign, root)
        found = None if verdict(store, name) is None else once_more(store, name, time.time())
        if found is None:
            return False
        with way_to(root, broker, name, "dpstream run SPEC --amend") as way:
            message = found.announced(store)
            way.send(message)
            print_answer(store, message, wait, way.unanswered)
    return True


def _checked(campaign: str, root: str) -> str:
    """The name, if there is such a campaign and it has not ended."""
    with within(root):
        store, name = named(campaign, root)
        last = verdict(store, name)
    if last is not None:
        for_good = f"; dpstream new NAME --from {name} begins a campaign with its labels"
        instead = for_good if last.verdict == "cancelled" else GOES_ON
        raise SpecError(f"{name}: the campaign has already ended ({verdict_line(last)}){instead}")
    return name


def _send_request(message: Message, root: str, broker: str | None, wait: float) -> None:
    with within(root), way_to(root, broker, message.campaign) as way:
        way.send(message)
        print_answer(there(root), message, wait, way.unanswered)


def print_answer(
    store: Store,
    message: Message,
    wait: float,
    unanswered: Callable[[Message, float], str] = waits_for_coordinator,
) -> None:
    """Print where the campaign stands once the coordinator has taken a message in."""
    now = once_taken_in(store, message, wait)
    if now is not None:
        print_standing(now)
    else:
        print_line(console, unanswered(message, wait))
