"""Commands that follow campaigns: `list`, `watch`, `logs`. They read the store, where the ledger is
authoritative."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import typer

from dpstream.commands.options import (
    DEFAULT_ROOT,
    AsJson,
    Broker,
    Campaign,
    Root,
    named,
    there,
    within,
)
from dpstream.running.connection import UPDATE_SECONDS, FollowedCampaign, open_bus
from dpstream.running.requests import rests
from dpstream.services.coordinator.ledger.archive_mark import mark_of
from dpstream.services.coordinator.ledger.ledger import (
    LedgerReader,
    campaigns,
    load_state,
    messages_of,
    verdict,
)
from dpstream.services.coordinator.views.overview import (
    CampaignOverview,
    finished_overview,
    overview,
)
from dpstream.shared.errors import CorruptLedger, DigestMismatch
from dpstream.shared.ports import Store
from dpstream.terminal.console import console, notes, print_line
from dpstream.terminal.ledger_lines import LedgerLines
from dpstream.terminal.live import LiveView
from dpstream.terminal.status import print_standing
from dpstream.terminal.tables import listing_table

LEAVES = "Ctrl-C stops watching; the campaign continues"


def list_(
    root: Root = DEFAULT_ROOT,
    archived: Annotated[
        bool, typer.Option("--archived", help="Also list archived campaigns.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List all campaigns with their progress."""
    with within(root):
        store = there(root)
        listed = [_listed(store, name) for name in campaigns(store)]
    shown = [now for now in listed if archived or now.archived is None]
    if as_json:
        console.print_json(data=[now.model_dump(mode="json") for now in shown])
        return
    table = listing_table("campaign", "progress")
    for now in shown:
        where = "" if now.archived is None else f"; archived as {now.archived}"
        table.add_row(now.name, now.headline + where)
    if shown:
        console.print(table)
    if len(shown) < len(listed):
        left_out = len(listed) - len(shown)
        them = "campaign is not listed; dpstream list --archived shows it"
        if left_out > 1:
            them = "campaigns are not listed; dpstream list --archived shows them"
        print_line(console, f"{left_out} archived {them}")
    elif not listed:
        print_line(console, "no campaigns")


def _listed(store: Store, name: str) -> CampaignOverview:
    """Where a campaign stands; its damage, so that the others are listed all the same."""
    try:
        last = verdict(store, name)
        if last is not None:
            return finished_overview(last, mark_of(store, last))
        return overview(load_state(store, name))
    except (CorruptLedger, DigestMismatch, ValueError) as error:
        reason = " ".join(str(error).split())
        line = f"damaged: {reason}; next: dpstream repair {name} lists what can be recovered"
        return CampaignOverview(name=name, standing="broken", headline=line)


def watch(campaign: Campaign = None, root: Root = DEFAULT_ROOT, broker: Broker = None) -> None:
    """Follow a campaign until it ends; with a broker, task progress is shown too.

    Exit status: 0 converged; 1 not converged, cancelled or paused.
    """
    with within(root):
        store, name = named(campaign, root)
        bus = open_bus(broker) if broker else None
        if verdict(store, name) is None and (remark := rests(root, broker, name)):
            print_line(notes, f"{name}: {remark}")
        try:
            followed = FollowedCampaign.open(store, name, bus)
            status = look_on(followed, followed.goes_on)
        finally:
            if bus is not None:
                bus.close()
    raise typer.Exit(status)


def look_on(followed: FollowedCampaign, going_on: Callable[[], bool]) -> int:
    """Show a campaign while `going_on`; the exit status."""
    LiveView(lambda: followed.status, notes, LEAVES, pace=followed.pace).watch(going_on)
    now = followed.status.overview
    print_standing(now)
    return 0 if now.verdict == "converged" else 1


def logs(
    campaign: Campaign = None,
    root: Root = DEFAULT_ROOT,
    task: Annotated[
        str, typer.Option(metavar="TASK", help="Only this task: its id, or the first characters.")
    ] = "",
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Keep printing new lines until the campaign ends."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the history of a campaign from its ledger: events, decisions, failures.

    With --json, one message in each line, as in docs/messages.schema.json.
    """
    with within(root):
        store, name = named(campaign, root)
        reading, lines = LedgerReader.begin(store, name), LedgerLines(task, as_json)
        while True:
            for line in lines.of(messages_of(reading.new_segments())):
                print_line(console, line)
            if not follow or reading.state.finished is not None:
                return
            time.sleep(4 * UPDATE_SECONDS)
