"""`dpstream propose`: offers structures to a running campaign.

Structures come from files, a stream or a watched folder, and are published as proposals. The
campaign answers with a verdict per frame: screened out, labelled or rejected.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from dpstream.commands.options import DEFAULT_ROOT, Broker, Root, there, within
from dpstream.generators.client import Generator, Verdict
from dpstream.generators.table import HEADER, row
from dpstream.generators.watch_folder import WatchedFolder
from dpstream.inputs.read_structures import read_structures, streamed
from dpstream.running.connection import open_bus
from dpstream.shared.atoms.frames import Frame, as_frame
from dpstream.shared.errors import BusError, SpecError
from dpstream.terminal.console import console, print_line


def propose(
    campaign: Annotated[
        str, typer.Option(metavar="NAME", help="Campaign to offer the structures to.")
    ],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="Structures in any format of ASE or dpdata; - reads extended xyz from standard "
            "input and offers each frame as soon as it arrives.",
        ),
    ] = None,
    label: Annotated[
        bool,
        typer.Option(
            "--label/--screen",
            help="Label the structures directly, or screen them with the committee first.",
        ),
    ] = False,
    generator: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Name of this generator, repeated in its verdicts.",
        ),
    ] = "propose",
    priority: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Priority of the labels: higher runs first; the campaign's own labels have 0.",
        ),
    ] = 0,
    wait: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", "--wait", help="Wait, and print the verdicts as they arrive."
        ),
    ] = False,
    watch: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Offer each structure that appears in this folder once, until Ctrl-C (POSCAR*, "
            "CONTCAR*, *_ori, gatheredPOSCARS, *.cif, *.xyz).",
        ),
    ] = None,
    root: Root = DEFAULT_ROOT,
    broker: Broker = None,
) -> None:
    """Offer structures to a running campaign, which returns a verdict for each."""
    if bool(files) == (watch is not None):
        raise SpecError("give FILE arguments (- for standard input) or --watch DIR, not both")
    how = {"label": label, "priority": priority}
    frames = [as_frame(a, f) for f in files or [] if f != "-" for a in read_structures(Path(f))]
    with within(root), closing(open_bus(broker)) as bus:
        client = Generator(bus, there(root), campaign, generator)
        if watch is not None:
            WatchedFolder(watch, client, _show, **how).run()
        stream = sys.stdin if "-" in (files or []) else None
        correlation, count = offer(client, frames, stream, **how)
        _print(f"proposed {count} frame{'s' * (count != 1)} to {campaign} as {correlation}")
        if wait:
            _wait_for_verdicts(client, correlation, count)


def _wait_for_verdicts(generator: Generator, correlation: str, count: int) -> None:
    try:
        _print(HEADER)
        for verdict in generator.verdicts_on(correlation, count):
            _print(row(verdict))
    except BusError as error:
        raise SpecError(f"--broker: {error}; see dpstream logs for later verdicts") from error


def _show(news: Verdict | str) -> None:
    _print(news if isinstance(news, str) else row(news))


def _print(line: str) -> None:
    print_line(console, line)


# ------------------------------------------------------------------------------ the work


def offer(
    generator: Generator, frames: Sequence[Frame], stream: TextIO | None, **how: Any
) -> tuple[str, int]:
    """Offer `frames`, then each frame of a stream as it arrives. Returns their correlation and
    their number."""
    correlation, count = str(uuid.uuid4()), len(frames)
    generator.propose(frames, correlation=correlation, **how)
    for atoms in streamed(stream) if stream else ():
        generator.propose([atoms], correlation=correlation, first=count, **how)
        count += 1
    return correlation, count
