"""`dpstream propose`: offer structures to a campaign."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from dpstream.commands.options import DEFAULT_ROOT, Broker, Root, there, within
from dpstream.generators.client import Generator, Verdict
from dpstream.generators.watch_folder import WatchedFolder
from dpstream.inputs.read_structures import read_structures, streamed
from dpstream.running.connection import open_bus
from dpstream.shared.atoms.frames import Frame, as_frame
from dpstream.shared.errors import BusError, SpecError
from dpstream.terminal.console import console, say

OPEN = ("candidate",)
"""Verdicts that another follows."""
Say = Callable[[str], None]


def propose(
    campaign: Annotated[
        str, typer.Option(metavar="NAME", help="The campaign that is to judge them.")
    ],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="Structures, in any format that ASE or dpdata reads; - for a stream of extended "
            "xyz, each frame offered as it comes.",
        ),
    ] = None,
    label: Annotated[
        bool,
        typer.Option(
            "--label/--screen",
            help="Have them labelled straight away, or judged by the committee first.",
        ),
    ] = False,
    generator: Annotated[
        str, typer.Option(metavar="NAME", help="Who offers them; verdicts and limits go by it.")
    ] = "propose",
    priority: Annotated[
        int, typer.Option(metavar="N", help="Of their labels; higher first, the campaign's own 0.")
    ] = 0,
    wait: Annotated[
        bool, typer.Option("--wait", help="Print the verdicts as they come, to the last.")
    ] = False,
    watch: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Offer each new structure that appears in a folder (POSCAR*, CONTCAR*, *_ori, "
            "gatheredPOSCARS, *.cif, *.xyz), once; until Ctrl-C.",
        ),
    ] = None,
    root: Root = DEFAULT_ROOT,
    broker: Broker = None,
) -> None:
    """Offer structures to a running campaign; what becomes of each is its verdict."""
    if bool(files) == (watch is not None):
        raise SpecError("FILE: give files, - or --watch DIR, one of them")
    how = {"label": label, "priority": priority}
    frames = [as_frame(a, f) for f in files or [] if f != "-" for a in read_structures(Path(f))]
    with within(root), closing(open_bus(broker)) as bus:
        at = Generator(bus, there(root), campaign, generator)
        if watch is not None:
            WatchedFolder(watch, at, _shown, **how).run()
        stream = sys.stdin if "-" in (files or []) else None
        correlation, count = offer(at, frames, stream, **how)
        _say(f"proposed {count} frame{'s' * (count != 1)} to {campaign} as {correlation}")
        if wait:
            _followed(at, correlation, count)


def _followed(generator: Generator, correlation: str, count: int) -> None:
    try:
        follow(generator, correlation, count, _say)
    except BusError as error:
        raise SpecError(f"--broker: {error}; dpstream logs tells the rest") from error


def _shown(news: Verdict | str) -> None:
    _say(news if isinstance(news, str) else row(news))


def _say(line: str) -> None:
    say(console, line)


# ------------------------------------------------------------------------------ the work


def offer(
    generator: Generator, frames: Sequence[Frame], stream: TextIO | None, **how: Any
) -> tuple[str, int]:
    """Offer `frames`, then each of a stream as it comes: their correlation, and how many."""
    correlation, count = str(uuid.uuid4()), len(frames)
    generator.propose(frames, correlation=correlation, **how)
    for atoms in streamed(stream) if stream else ():
        generator.propose([atoms], correlation=correlation, first=count, **how)
        count += 1
    return correlation, count


def follow(generator: Generator, correlation: str, count: int, say: Say) -> None:
    """Print the verdicts on `count` frames as they come, until each has had its last."""
    say(HEADER)
    waiting = set(range(count))
    verdicts = generator.verdicts()
    while waiting:
        verdict = next(verdicts)
        if verdict.correlation == correlation:
            say(row(verdict))
            if verdict.verdict not in OPEN:
                waiting.discard(verdict.index)


HEADER = f"{'frame':>5}  {'verdict':<10}{'eV/Å':>8}  {'committee':>9}  {'energy (eV)':>12}  reason"


def row(verdict: Verdict) -> str:
    """A verdict as a line of the table."""
    deviation = "" if verdict.deviation is None else f"{verdict.deviation:.4f}"
    energy = "" if verdict.energy is None else f"{verdict.energy:.4f}"
    version = str(verdict.version or "")
    return (
        f"{verdict.index:>5}  {verdict.verdict:<10}{deviation:>8}  {version:>9}  {energy:>12}  "
        f"{verdict.reason}"
    ).rstrip()
