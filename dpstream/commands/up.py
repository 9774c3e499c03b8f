"""`dpstream up` and `dpstream down`: start and stop a development cluster on this machine."""

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
from dpstream.services.coordinator.fleet.pools import read_fleet
from dpstream.terminal.console import console, print_line
from dpstream.terminal.interrupt import INTERRUPTED, signals
from dpstream.terminal.tables import listing_table

if TYPE_CHECKING:
    from dpstream.deploy.devcluster.cluster import Cluster

Dir = Annotated[
    Path,
    typer.Option(
        "--dir",
        metavar="DIR",
        help="Folder for all files of the cluster: new, empty or an earlier cluster's.",
    ),
]
HERE = Path("cluster")


def up(
    folder: Dir = HERE,
    workers: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Workers of each service; default: as in the last call, and in the first "
            + ",".join(f"{service}={count}" for service, count in WORKERS.items())
            + ". With --fleet the default is 0 for services that have a pool.",
        ),
    ] = "",
    fleet: Annotated[
        Path | None,
        typer.Option(
            "--fleet",
            metavar="FILE",
            help="Fleet file: the coordinator starts the workers of its pools on demand.",
        ),
    ] = None,
) -> None:
    """Start a development cluster: RabbitMQ, an S3 server and the four services.

    All files are in DIR. The servers use free ports of the loopback interface. The cluster keeps
    running when the terminal is closed. If it is already running, missing parts are started.
    Variables DPSTREAM_… (threads, allowed calculators, …) are passed on to the services.
    """
    from dpstream.deploy.devcluster.cluster import Cluster, settings_for_services

    crew = parse_workers(workers, tuple(WORKERS), least=0) if workers else {}
    cluster = Cluster(folder)
    settings = settings_for_services(os.environ)
    if fleet is not None:
        pools = read_fleet(fleet).pools.values()
        crew = dict.fromkeys((pool.service for pool in pools), 0) | crew
        settings["DPSTREAM_FLEET"] = str(fleet.absolute())
    with signals(console) as stopping:
        started = cluster.up(crew, settings, stopping)
    if stopping.is_set():
        print("dpstream: interrupted; run dpstream up again to continue", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    console.print(_table(cluster, started))
    if not started:
        print_line(console, "already running")
    for line in _next(cluster, folder):
        print_line(console, line)


def down(
    folder: Dir = HERE,
    wipe: Annotated[
        bool, typer.Option("--wipe", help="Delete all its data, including campaigns and labels.")
    ] = False,
) -> None:
    """Stop the cluster in DIR. Its data is kept for the next dpstream up."""
    from dpstream.deploy.devcluster.cluster import Cluster

    cluster = Cluster(folder)
    stopped = cluster.wipe() if wipe else cluster.down()
    print_line(console, f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")
    if wipe:
        print_line(console, f"deleted: {folder}")


def _table(cluster: Cluster, started: Sequence[str]) -> Table:
    table = listing_table("name", "", "pid", "port", "log")
    for part in cluster.parts():
        how = "started" if part.name in started else "running"
        table.add_row(part.name, how, str(part.pid), str(part.port), _short(part.log))
    return table


def _next(cluster: Cluster, folder: Path) -> tuple[str, ...]:
    option = "" if folder == HERE else f" --dir {shlex.quote(str(folder))}"
    return (
        f"dashboard: {cluster.dashboard}",
        f"next: source {shlex.quote(_short(cluster.environment_file))}",
        "      dpstream submit SPEC, dpstream watch, dpstream list",
        f"      dpstream down{option} stops it and keeps its data",
    )


def _short(path: Path) -> str:
    """Relative to the working folder if it is inside."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
