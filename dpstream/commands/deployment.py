"""The commands that speak to a deployment. What they read comes from its store, where the ledger
is the truth; what they say goes over the bus, and waits there if no coordinator listens."""

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
    read_messages,
    verdict,
)
from dpstream.services.coordinator.rules.lost_work import abandoned, is_of_use
from dpstream.services.coordinator.state import Task
from dpstream.services.coordinator.views.overview import headline
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
from dpstream.terminal.status import Learning
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
            stands = f"{last.verdict}: {last.why}" if last else headline(load_state(store, name))
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
            followed = FollowedCampaign(LedgerReader.open(store, name), bus)
            status = look_on(store, followed, followed.goes_on)
        finally:
            if bus is not None:
                bus.close()
    raise typer.Exit(status)


def look_on(store: Store, followed: FollowedCampaign, going_on: Callable[[], bool]) -> int:
    """Show a campaign as long as `going_on`; the exit status."""
    learning = Learning.of(read_messages(store, followed.reading.campaign))
    LiveView(followed, learning, console, LEAVES).watch(going_on)
    state = followed.state
    say(console, f"{state.spec.name}: {headline(state)}")
    return 0 if state.finished is not None and state.finished.verdict == "converged" else 1


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
            for line in lines.of(messages_of(reading.new_segments())):
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
        state = load_state(there(root), name)
    useful = [task for task in abandoned(state) if is_of_use(state, task)]
    chosen = [_chosen(begins, useful) for begins in tasks or ()]
    if not useful:
        raise SpecError(f"{name}: no abandoned task that another try could help")
    _tell(
        word(TasksRetried, name, tasks=[task.command.task for task in chosen]), root, broker, wait
    )
    for task in chosen or useful:
        say(console, f"again: {task.command.task} {task.command.title}")


def _chosen(begins: str, tasks: list[Task]) -> Task:
    found = [task for task in tasks if task.command.task.startswith(begins)]
    if len(found) != 1:
        known = ", ".join(f"{task.command.task} ({task.command.title})" for task in tasks) or "none"
        what = f"{len(found)} abandoned tasks begin so" if found else "no such abandoned task"
        raise SpecError(f"TASK: {begins!r}: {what}; those to be retried: {known}")
    return found[0]


def _checked(campaign: str, root: str) -> str:
    """The name, if there is such a campaign and it has not ended."""
    with within(root):
        store, name = named(campaign, root)
        last = verdict(store, name)
    if last is not None:
        raise SpecError(f"{name}: it has ended, {last.verdict}: {last.why}")
    return name


def _tell(message: Message, root: str, broker: str | None, wait: float) -> None:
    with within(root), closing(open_bus(broker)) as bus:
        say_it(bus, message)
        _answer(there(root), message, wait)


def _answer(store: Store, message: Message, wait: float) -> None:
    """How the campaign stands once the coordinator has taken a message in."""
    state = heard(store, message, wait)
    if state is not None:
        say(console, f"{message.campaign}: {headline(state)}")
        return
    say(
        console,
        f"{message.campaign}: no coordinator has answered within {wait:g} s; what was said waits "
        "in its queue",
    )
