"""The commands for a deployment. They read from its store, where the ledger is authoritative. Their
requests go over the bus, and wait there while no coordinator runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import Annotated

import typer

from dpstream.commands.options import (
    DEFAULT_ROOT,
    Broker,
    Campaign,
    Mode,
    NewName,
    Root,
    SpecFile,
    named,
    prepared,
    there,
    within,
)
from dpstream.running.connection import (
    HEARD,
    LOOK,
    FollowedCampaign,
    heard,
    open_bus,
    open_store,
    say_it,
    word,
)
from dpstream.running.label_here import check_imported
from dpstream.running.submit import announced
from dpstream.running.submit import submit as freeze
from dpstream.services.coordinator.ledger.ledger import (
    LedgerReader,
    campaigns,
    load_state,
    messages_of,
    verdict,
)
from dpstream.services.coordinator.views.overview import headline, verdict_line
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
from dpstream.shared.values import campaign_uri
from dpstream.terminal.console import console, say
from dpstream.terminal.ledger_lines import LedgerLines
from dpstream.terminal.live import LiveView
from dpstream.terminal.tables import listing_table

LEAVES = "Ctrl-C ends the watching; the campaign goes on"

Wait = Annotated[
    float,
    typer.Option(
        "--wait", min=0.0, max=3600.0, metavar="SECONDS", help="How long to wait for an answer."
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Campaign.")]


def submit(
    spec: SpecFile,
    mode: Mode = None,
    name: NewName = None,
    root: Root = DEFAULT_ROOT,
    broker: Broker = None,
    wait: Wait = HEARD,
) -> None:
    """Give a campaign to a deployment, whose services do the rest. Engines are not needed here.

    The same campaign submitted again changes nothing.
    """
    loaded, gathered, recipe = prepared(spec, mode, name, engines=False)
    with within(root), closing(open_bus(broker)) as bus:
        store = open_store(root)
        if not store.exists(campaign_uri(loaded.name, "submitted.json")):
            check_imported(gathered, loaded, recipe)
        submitted = freeze(loaded, gathered, recipe, store, time.time())
        say_it(bus, announced(submitted))
        _answer(store, submitted, wait)


def list_(root: Root = DEFAULT_ROOT) -> None:
    """All campaigns and where they stand."""
    table = listing_table("campaign", "where it stands")
    with within(root):
        store = there(root)
        for name in campaigns(store):
            last = verdict(store, name)
            stands = verdict_line(last) if last else headline(load_state(store, name))
            table.add_row(name, stands)
    console.print(table if table.row_count else "no campaigns")


def watch(campaign: Campaign = None, root: Root = DEFAULT_ROOT, broker: Broker = None) -> None:
    """Look on while a campaign goes on; with a broker, also how far its tasks are.

    Exit status: 0 converged, 1 not converged, cancelled or paused.
    """
    with within(root):
        store, name = named(campaign, root)
        bus = open_bus(broker) if broker else None
        try:
            followed = FollowedCampaign.open(store, name, bus)
            status = look_on(followed, followed.goes_on)
        finally:
            if bus is not None:
                bus.close()
    raise typer.Exit(status)


def look_on(followed: FollowedCampaign, going_on: Callable[[], bool]) -> int:
    """Show a campaign while `going_on`; the exit status."""
    LiveView(lambda: followed.status, console, LEAVES).watch(going_on)
    now = followed.status.overview
    say(console, f"{now.name}: {now.headline}")
    return 0 if now.verdict == "converged" else 1


def logs(
    campaign: Campaign = None,
    root: Root = DEFAULT_ROOT,
    task: Annotated[
        str, typer.Option(metavar="TASK", help="Only of this task: its id, or how it begins.")
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is new.")] = False,
) -> None:
    """What happened in a campaign, from its ledger: events, decisions, failures with traces."""
    with within(root):
        store, name = named(campaign, root)
        reading, lines = LedgerReader.begin(store, name), LedgerLines(task)
        while True:
            for line in lines.of(messages_of(reading.news())):
                say(console, line)
            if not follow or reading.state.finished is not None:
                return
            time.sleep(4 * LOOK)


def pause(
    campaign: Name,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="Told to whoever asks.")],
    root: Root = DEFAULT_ROOT,
    broker: Broker = None,
    wait: Wait = HEARD,
) -> None:
    """Begin no more tasks of a campaign. Those at work are let finish, and their results kept."""
    _tell(word(CampaignPaused, _checked(campaign, root), why=why), root, broker, wait)


def resume(
    campaign: Name, root: Root = DEFAULT_ROOT, broker: Broker = None, wait: Wait = HEARD
) -> None:
    """Let a paused campaign go on; what paused it is tried again."""
    _tell(word(CampaignResumed, _checked(campaign, root)), root, broker, wait)


def cancel(
    campaign: Name,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="Told to whoever asks.")] = "",
    root: Root = DEFAULT_ROOT,
    broker: Broker = None,
    wait: Wait = HEARD,
) -> None:
    """End a campaign for good. What is computed stays; labels at work are let finish."""
    _tell(word(CampaignCancelled, _checked(campaign, root), why=why), root, broker, wait)


def retry(
    campaign: Name,
    tasks: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TASK]…", help="Ids, or how they begin; none: all abandoned."),
    ] = None,
    root: Root = DEFAULT_ROOT,
    broker: Broker = None,
    wait: Wait = HEARD,
) -> None:
    """Give abandoned tasks another try. Trajectories are not among them: their round went on."""
    name = _checked(campaign, root)
    with within(root):
        useful = retryable(load_state(there(root), name))
    chosen = [_chosen(begins, useful) for begins in tasks or ()]
    if not useful:
        raise SpecError(f"{name}: no abandoned task that another try could help")
    _tell(word(TasksRetried, name, tasks=[task.task for task in chosen]), root, broker, wait)
    for task in chosen or useful:
        say(console, f"again: {task.task} {task.title}")


def _chosen(begins: str, tasks: list[TaskLine]) -> TaskLine:
    found = [task for task in tasks if task.task.startswith(begins)]
    if len(found) != 1:
        known = ", ".join(f"{task.task} ({task.title})" for task in tasks) or "none"
        what = f"{len(found)} abandoned tasks begin so" if found else "no such abandoned task"
        raise SpecError(f"TASK: {begins!r}: {what}; those to be retried: {known}")
    return found[0]


def _checked(campaign: str, root: str) -> str:
    """The name, if there is such a campaign and it has not ended."""
    with within(root):
        store, name = named(campaign, root)
        last = verdict(store, name)
    if last is not None:
        raise SpecError(f"{name}: it has ended, {verdict_line(last)}")
    return name


def _tell(message: Message, root: str, broker: str | None, wait: float) -> None:
    with within(root), closing(open_bus(broker)) as bus:
        say_it(bus, message)
        _answer(there(root), message, wait)


def _answer(store: Store, message: Message, wait: float) -> None:
    """Print where the campaign stands once the coordinator has taken a message in."""
    now = heard(store, message, wait)
    if now is not None:
        say(console, f"{message.campaign}: {now.headline}")
        return
    say(
        console,
        f"{message.campaign}: no coordinator has answered within {wait:g} s; what was said waits "
        "in its queue",
    )
