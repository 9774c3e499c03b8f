"""Commands that show a campaign: `status`, `report`, `why`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from dpstream.commands.options import DEFAULT_ROOT, AsJson, Campaign, Root, named, within
from dpstream.report import write_report
from dpstream.running.requests import rests
from dpstream.services.coordinator.fleet.spending import spending_by_deployment
from dpstream.services.coordinator.ledger.archive_mark import mark_of
from dpstream.services.coordinator.ledger.ledger import verdict
from dpstream.services.coordinator.views.campaign import CampaignView
from dpstream.services.coordinator.views.overview import overview
from dpstream.services.coordinator.views.why import why as why_frame
from dpstream.shared.errors import SpecError
from dpstream.shared.store.dead_letters import count_buried
from dpstream.shared.values import DEADLETTER_PREFIX
from dpstream.terminal.console import console, notes, print_line
from dpstream.terminal.pace import remaining
from dpstream.terminal.status import next_step, summary


def status(campaign: Campaign = None, root: Root = DEFAULT_ROOT, as_json: AsJson = False) -> None:
    """Show the progress of a campaign, running or ended, from its ledger."""
    with within(root):
        store, name = named(campaign, root)
        view = CampaignView.read(store, name)
        found = view.status
        if as_json:
            last = verdict(store, name)
            now = overview(view.state, None if last is None else mark_of(store, last))
            print_line(console, now.model_dump_json(indent=2))
            return
        console.print(summary(found, remaining(found.overview, view.pace)))
        buried, spending = count_buried(store), spending_by_deployment(store)
    broker = os.environ.get("DPSTREAM_BROKER")
    if step := next_step(found.overview) or rests(root, broker, name):
        print_line(notes, step)
    for pool, spent in spending.items():
        console.print(f"workers of {pool}: {spent.describe()}", highlight=False)
    if buried:
        console.print(
            f"{buried} messages could not be decoded; they are kept in the store under "
            f"{DEADLETTER_PREFIX}"
        )


def report(
    campaign: Campaign = None,
    root: Root = DEFAULT_ROOT,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")
    ] = Path("report.html"),
) -> None:
    """Write a report of a campaign, finished or not: one HTML file that works offline."""
    with within(root):
        store, name = named(campaign, root)
        write_report(store, name, output)
    print_line(console, f"wrote {output}")


def why(
    frame: Annotated[
        str,
        typer.Argument(
            metavar="FRAME", help="Frame key, or the first characters of it; the report lists some."
        ),
    ],
    campaign: Campaign = None,
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Explain why a frame was or was not labelled: its history from the ledger."""
    if not frame:
        raise SpecError("FRAME: '' is not a frame key; give a key, or the first characters of it")
    with within(root):
        store, name = named(campaign, root)
        lines = [*why_frame(store, name, frame)]
    if as_json:
        console.print_json(data={"campaign": name, "frame": frame, "history": lines})
        return
    for line in lines:  # wrapped at words for a reader
        console.print(line, soft_wrap=not console.is_terminal, markup=False, highlight=False)
