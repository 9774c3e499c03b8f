"""`dpstream amend`: changes the plan of a campaign that runs, is paused or has ended."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from dpstream.commands.import_dpgen import read_machine_file
from dpstream.commands.options import (
    DEFAULT_ROOT,
    Broker,
    Code,
    Force,
    MachinePath,
    Mode,
    Root,
    SpecFile,
    Wait,
    Yes,
    named,
    within,
)
from dpstream.commands.read_spec import prepared
from dpstream.inputs.gather import plausible
from dpstream.running.amend import Draft, draft
from dpstream.running.connection import ANSWER_SECONDS, is_folder, once_taken_in
from dpstream.running.requests import Way, way_to
from dpstream.running.workers_version import with_workers_version
from dpstream.services.coordinator.ledger.ledger import read_messages
from dpstream.services.coordinator.views.amendment import answer_to, is_done
from dpstream.services.coordinator.views.overview import headline_of
from dpstream.shared.errors import SpecError
from dpstream.shared.messages import CampaignAmended
from dpstream.shared.ports import Store
from dpstream.shared.spec import Spec
from dpstream.terminal.console import console, print_line


def amend(
    campaign: Annotated[str, typer.Argument(metavar="NAME", help="Campaign.")],
    spec: SpecFile,
    machine: MachinePath = None,
    mode: Mode = None,
    code: Code = None,
    root: Root = DEFAULT_ROOT,
    broker: Broker = None,
    wait: Wait = ANSWER_SECONDS,
    force: Force = False,
    yes: Yes = False,
) -> None:
    """Change the plan of a campaign to that of SPEC, while it runs, is paused or has ended.

    Stages can be added, dropped and changed; so can trust levels, selection, audit, convergence,
    budgets, the training of later committees, and workers. Labels and models stay. If a criterion
    becomes stricter, a converged stage is judged again.

    Shows what differs and what follows from it, and asks for confirmation. On this machine, a
    dpstream run of the campaign must be active; otherwise type dpstream run SPEC --amend.
    """
    machines = read_machine_file(spec, machine)
    with within(root):
        store, name = named(campaign, root)
    loaded, gathered, recipe = prepared(spec, mode, name, False, code, machines)
    with within(root):
        loaded, _ = with_workers_version(loaded, recipe, store)
        found = draft(store, loaded, plausible(gathered, force), time.time())
        if found is None:
            print_line(console, f"{name}: nothing differs from its plan")
            return
        if broker is None and is_folder(root):
            check_workers(found, loaded)
        with way_to(root, broker, name, f"dpstream run {spec} --amend") as way:
            agree(found, yes)
            message = found.announced(store)
            way.send(message)
            _answer(store, found, message, way, wait)


def agree(found: Draft, yes: bool) -> None:
    """Show an amendment and ask; ends the program without a yes."""
    for line in found.lines():
        print_line(console, line)
    if not yes:
        typer.confirm("Change the plan?", abort=True)


def check_workers(found: Draft, after: Spec) -> None:
    """Raises SpecError if the labelers of a run on this machine would not serve the new plan."""
    if found.other_workers:
        raise SpecError(
            f"{after.name}: labels.worker_class: the workers of this run serve the former class; "
            "stop it with Ctrl-C, then type: dpstream run SPEC --amend"
        )


def _answer(store: Store, found: Draft, message: CampaignAmended, way: Way, wait: float) -> None:
    """Print what the coordinator has made of an amendment; ends the program if it has not answered.
    Raises SpecError if it was refused."""
    name = found.event.campaign
    now = once_taken_in(store, found.event, wait)
    if now is None:
        print_line(console, way.unanswered(message, wait))
        raise typer.Exit(1)
    messages = list(read_messages(store, name))
    why = answer_to(messages, found.event)
    if why is not None:
        raise SpecError(f"{name}: refused: {why}")
    print_line(console, headline_of(now, found.event.follows + 1, is_done(messages, found.event)))
