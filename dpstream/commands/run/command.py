"""The command `dpstream run`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dpstream.commands.import_dpgen import read_machine_file
from dpstream.commands.options import (
    DEFAULT_ROOT,
    Broker,
    Code,
    CrossCheck,
    Force,
    MachinePath,
    Mode,
    NewName,
    Root,
    SpecFile,
    parse_workers,
    within,
)
from dpstream.commands.read_spec import prepared
from dpstream.commands.run.joined import run_mixed
from dpstream.commands.run.local import run_campaign
from dpstream.commands.steer.amend import agree
from dpstream.running.connection import is_folder
from dpstream.running.first_checks import FirstChecks
from dpstream.shared.errors import SpecError
from dpstream.terminal.console import console
from dpstream.terminal.status import GO_ON

WORKERS = {"trainer": 2, "explorer": 2, "labeler": 2}
CREW = ",".join(f"{service}={count}" for service, count in WORKERS.items())


def run(
    spec: SpecFile,
    machine: MachinePath = None,
    mode: Mode = None,
    workers: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Workers of each service on this machine; services not listed keep the default. "
            "With --broker, 0 is allowed, and coordinator=1 starts a coordinator.",
        ),
    ] = CREW,
    root: Root = DEFAULT_ROOT,
    broker: Broker = None,
    name: NewName = None,
    code: Code = None,
    cross_check: CrossCheck = True,
    force: Force = False,
    amend: Annotated[
        bool,
        typer.Option(
            "--amend",
            help="If SPEC differs from the plan of the campaign, change the plan after "
            "confirmation.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --amend: do not ask.")] = False,
) -> None:
    """Run a campaign on this machine, or resume it.

    Models, dataset and report are written to DIR/NAME.
    After Ctrl-C or a crash, run the same command to continue; only work in progress is lost.
    From a second terminal, status, watch, pause, resume, cancel, retry and amend reach the run.

    With --broker and --store, submits the campaign to that deployment, adds workers on this
    machine and waits for the end. The deployment needs a coordinator; --workers coordinator=1
    starts one here, which replaces a running one.

    Exit status: 0 converged, 1 not converged, cancelled or paused, 2 bad input,
    3 internal error, 130 interrupted.
    """
    services = (*WORKERS, "coordinator") if broker else tuple(WORKERS)
    crew = {**WORKERS, **parse_workers(workers, services, least=0 if broker else 1)}
    if broker is None and not is_folder(root):
        raise SpecError(
            f"--store: {root}: requires --broker; to run on this machine, give a folder"
        )
    if broker is not None and amend:
        raise SpecError("--amend: in a deployment, type: dpstream amend NAME SPEC")
    given = read_machine_file(spec, machine)
    loaded, gathered, recipe = prepared(spec, mode, name, broker is None, code, given)
    checks = FirstChecks(spec, cross_check, force)
    with within(root):
        if broker is None:
            agreed = partial(agree, yes=yes) if amend else None
            here = Path(root)
            status = run_campaign(
                loaded, gathered, recipe, checks, here, crew, console, agreed, GO_ON
            )
            raise typer.Exit(status)
        raise typer.Exit(run_mixed(loaded, gathered, recipe, checks, root, broker, crew, console))
