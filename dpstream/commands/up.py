"""`dpstream up` and `dpstream down`: a development cluster on this machine."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dpstream.commands.options import parse_workers
from dpstream.deploy.devcluster.record import WORKERS
from dpstream.terminal.console import console, say
from dpstream.terminal.interrupt import INTERRUPTED, signals
from dpstream.terminal.tables import listing_table

if TYPE_CHECKING:
    from dpstream.deploy.devcluster.cluster import Cluster

Dir = Annotated[
    Path, typer.Option("--dir", metavar="DIR", help="Folder of the cluster, for it alone.")
]
HERE = Path("cluster")


def up(
    folder: Dir = HERE,
    workers: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Workers of each service; those not named stay as many as they were, at first "
            + ",".join(f"{service}={count}" for service, count in WORKERS.items())
            + ".",
        ),
    ] = "",
) -> None:
    """Start a development cluster: RabbitMQ, an S3 server and the four services.

    Everything is below DIR, on free ports that only this machine sees, and goes on when this
    terminal is closed. On a cluster that is running already, what is missing is started.
    Variables DPSTREAM_… (threads, allowed calculators, …) are handed on to the services.
    """
    from dpstream.deploy.devcluster.cluster import Cluster, settings_for_services

    crew = parse_workers(workers, tuple(WORKERS), least=0) if workers else {}
    cluster = Cluster(folder)
    with signals(console) as asked:
        started = cluster.up(crew, settings_for_services(os.environ), asked)
    if asked.is_set():
        print("dpstream: interrupted; dpstream up goes on from here", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    console.print(_table(cluster, started))
    if not started:
        say(console, "it was running already")
    for line in _next(cluster, folder):
        say(console, line)


def down(
    folder: Dir = HERE,
    wipe: Annotated[
        bool, typer.Option("--wipe", help="Delete everything in it, campaigns and labels too.")
    ] = False,
) -> None:
    """End the cluster of DIR. What it keeps stays there for the next dpstream up."""
    from dpstream.deploy.devcluster.cluster import Cluster

    cluster = Cluster(folder)
    ended = cluster.wipe() if wipe else cluster.down()
    say(console, f"ended: {', '.join(ended)}" if ended else "nothing was running")
    if wipe:
        say(console, f"deleted: {folder}")


def _table(cluster: Cluster, started: Sequence[str]) -> Table:
    table = listing_table("name", "", "pid", "port", "log")
    for part in cluster.parts():
        how = "started" if part.name in started else "running"
        table.add_row(part.name, how, str(part.pid), str(part.port), _short(part.log))
    return table


def _next(cluster: Cluster, folder: Path) -> tuple[str, ...]:
    given = "" if folder == HERE else f" --dir {shlex.quote(str(folder))}"
    return (
        f"dashboard: {cluster.dashboard}",
        f"next: source {shlex.quote(_short(cluster.environment_file))}",
        "      dpstream submit SPEC, dpstream watch, dpstream list",
        f"      dpstream down{given} ends it; what it keeps stays",
    )


def _short(path: Path) -> str:
    """As seen from here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
