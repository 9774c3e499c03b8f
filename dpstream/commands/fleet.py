"""`dpstream fleet`: the fleet file of a deployment, and the workers that its pools run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from dpstream.services.coordinator.fleet.engines import FleetEngine, each_once, engines_of
from dpstream.services.coordinator.fleet.pools import (
    LABEL,
    SERVICES,
    FleetFile,
    queue_code,
    queue_kind,
    read_fleet,
)
from dpstream.services.labeler.codes import CODES
from dpstream.shared.errors import FleetError, SpecError
from dpstream.shared.files import write_whole
from dpstream.shared.ports import Launch
from dpstream.shared.spec.errors import did_you_mean
from dpstream.terminal.console import console, print_line
from dpstream.terminal.tables import text_table

fleet = typer.Typer(
    help="Prepare and inspect workers on demand; the coordinator starts them, as processes, as "
    "jobs of a batch system (Slurm, Grid Engine, PBS, Torque, LSF, AWS Batch) or of Kubernetes.",
    epilog="The coordinator reads the fleet file that DPSTREAM_FLEET names. To start: dpstream "
    "fleet init; edit fleet.yaml; dpstream fleet check; then start the coordinator with "
    "DPSTREAM_FLEET=fleet.yaml.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
File = Annotated[Path, typer.Argument(metavar="[FILE]", help="The fleet file.", show_default=True)]
Pool = Annotated[
    str | None, typer.Option("--pool", metavar="NAME", help="Only this pool; default: all.")
]
HERE = Path("fleet.yaml")
EXAMPLE = """\
# The pools of workers of one deployment. Times: 90s, 10m, 23h. Every key: dpstream fleet schema

deployment: lab                  # in the name of every job; one per coordinator
budget: {}                       # e.g. {worker_hours: 2000, currency_per_day: 150, hard: false}
pools:
  trainers:
    engine: process              # processes on the coordinator's machine
    serves: [train]              # queues of one service: train; explore, judge, screen; label.CODE
    source: [trainer.env]        # exports DPSTREAM_BROKER, DPSTREAM_STORE, keys
    max: 2                       # slurm, kubernetes: with gpus: 1 each gets a GPU, and demands it
  explorers:
    engine: process
    serves: [explore, judge, screen]
    source: [explorer.env]
    max: 2
  campus:
    engine: slurm
    serves: [label.cp2k]
    cpus: 32
    memory: 120G
    max: 40
    lifetime: 23h                # below the walltime
    source: [/home/me/labeler.env]
    modules: [cp2k/2024.1]
    slurm: {partition: large, time_limit: "24:00:00"}   # submit_prefix: [ssh, login1]
"""


@fleet.command()
def init(file: File = HERE) -> None:
    """Write a commented fleet file to edit."""
    if file.exists():
        raise SpecError(f"{file}: exists; give another name")
    write_whole(file, EXAMPLE)
    print_line(console, f"wrote {file}; edit it, then run: dpstream fleet check {file}")


@fleet.command()
def schema() -> None:
    """Print the JSON Schema of the fleet file."""
    print(json.dumps(FleetFile.model_json_schema(), indent=1))


@fleet.command()
def check(file: File = HERE) -> None:
    """Check the fleet file, and whether its engines would accept a worker. Starts nothing.

    Prints the pools, the largest number of workers, its cost, and the queues without a pool.

    Exit status: 0 everything is accepted, 1 an engine refuses a pool, 2 the file is invalid.
    """
    found = read_fleet(file)
    engines = engines_of(found, file)
    table = text_table("pool", "engine", "serves", "max", "price/h", "")
    refused = False
    for name, pool in found.pools.items():
        problem = _problem(name, engines[name])
        refused = refused or bool(problem)
        served = ", ".join(pool.serves)
        table.add_row(
            name, pool.engine, served, str(pool.max), f"{pool.price:g}", problem or "accepted"
        )
    console.print(table)
    for line in [*_worst_case(found), *_unknown_codes(found)]:
        print_line(console, line)
    if refused:
        raise typer.Exit(1)


@fleet.command()
def render(file: File = HERE, pool: Pool = None) -> None:
    """Print exactly what is submitted for one worker of each pool."""
    found = read_fleet(file)
    engines = engines_of(found, file)
    for name in _named(found, pool):
        print_line(console, f"# pool {name}")
        print_line(console, engines[name].render(name))


@fleet.command()
def status(file: File = HERE) -> None:
    """Show the workers of every pool, as the engines list them."""
    found = read_fleet(file)
    table = text_table("pool", "launch", "waiting", "starting", "running", "ended", "")
    launches, is_complete = _launches(found, file)
    for _, launch in launches:
        ended = ", ".join(f"{count} × {reason}" for reason, count in sorted(launch.ended.items()))
        counts = (str(launch.waiting), str(launch.starting), str(launch.running))
        note = "; ".join(filter(None, (launch.reason, _overdue(launch, found))))
        table.add_row(launch.pool, launch.name, *counts, ended, note)
    console.print(table)
    if not is_complete:
        raise typer.Exit(1)


@fleet.command()
def stop(
    file: File = HERE,
    pool: Pool = None,
    now: Annotated[
        bool, typer.Option("--now", help="Also stop running workers, which release their tasks.")
    ] = False,
) -> None:
    """Cancel the workers that wait; with --now stop the others, too.

    Works without a coordinator. A running coordinator launches new ones if there are tasks: stop
    it first, or set the pool's max to 0 in its fleet file. Without --pool, also workers of pools
    that are no longer in the file.
    """
    found = read_fleet(file)
    _named(found, pool)
    launches, is_complete = _launches(found, file)
    for engine, launch in launches:
        if pool in (None, launch.pool) and launch.alive:
            try:
                done = _stopped(engine, launch, now)
            except FleetError as error:
                done, is_complete = str(error), False
            print_line(console, f"{launch.pool} {launch.name}: {done}")
    if not is_complete:
        raise typer.Exit(1)


def _overdue(launch: Launch, found: FleetFile) -> str:
    """A mark for a launch that runs longer than its workers may."""
    pool = found.pools.get(launch.pool)
    if pool is None or not launch.started:
        return ""
    longest = pool.lifetime + pool.longest_task + pool.grace
    return "older than lifetime and longest_task" if time.time() - launch.since > longest else ""


def _stopped(engine: FleetEngine, launch: Launch, now: bool) -> str:
    """What was done. Raises FleetError."""
    if not now:
        return f"{engine.retire(launch, launch.waiting)} taken back"
    engine.end(launch)
    return f"{launch.alive} stopping"


def _launches(found: FleetFile, file: Path) -> tuple[list[tuple[FleetEngine, Launch]], bool]:
    """All launches with their engines, and whether all engines have answered; one that has not
    gives one line instead."""
    launches: list[tuple[FleetEngine, Launch]] = []
    is_complete = True
    for engine, names in each_once(engines_of(found, file)):
        try:
            launches += [(engine, launch) for launch in engine.running()]
        except FleetError as error:
            print_line(console, f"{', '.join(names)}: {error}")
            is_complete = False
    return launches, is_complete


def _named(found: FleetFile, pool: str | None) -> list[str]:
    if pool is None:
        return list(found.pools)
    if pool not in found.pools:
        raise SpecError(f"--pool: {pool!r}: no such pool; pools: {', '.join(found.pools)}")
    return [pool]


def _problem(name: str, engine: FleetEngine) -> str:
    """Why the engine would not run a worker of this pool, or nothing."""
    try:
        engine.check(name)
    except FleetError as error:
        return str(error)
    return ""


def _worst_case(found: FleetFile) -> list[str]:
    served = {queue_kind(queue) for pool in found.pools.values() for queue in pool.serves}
    unserved = [kind for kind in SERVICES if kind not in served]
    most = sum(pool.max for pool in found.pools.values())
    cost = sum(pool.max * pool.price for pool in found.pools.values())
    lines = [f"at most {most} workers" + (f", {cost:g} per hour" if cost else "")]
    if unserved:
        names = ", ".join(f"{kind}CODE" if kind.endswith(".") else kind for kind in unserved)
        lines.append(f"no pool serves {names}: start those workers yourself")
    return lines


def _unknown_codes(found: FleetFile) -> list[str]:
    """A line for each code that this installation does not have; another one may."""
    queues = (queue for pool in found.pools.values() for queue in pool.serves)
    codes = {queue_code(queue) for queue in queues if queue.startswith(LABEL)}
    return [
        f"{LABEL}{code}: no labeling code of this installation{did_you_mean(code, CODES)}"
        for code in sorted(codes - CODES.keys())
    ]
