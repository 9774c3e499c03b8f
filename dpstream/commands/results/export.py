"""The command `dpstream export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpstream.commands.options import DEFAULT_ROOT, Campaign, Root, named, within
from dpstream.export.dpgen_layout import export_layout
from dpstream.export.folder import export as export_campaign
from dpstream.shared.errors import SpecError
from dpstream.terminal.console import console, print_line


def export(
    campaign: Campaign = None,
    root: Root = DEFAULT_ROOT,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write to.")
    ] = Path("export"),
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Include the ledger and all labels; the folder then works as --store."
        ),
    ] = False,
    archive: Annotated[
        bool,
        typer.Option("--archive", help="Also write DIR.zip, with everything that --full includes."),
    ] = False,
    all_formats: Annotated[
        bool,
        typer.Option(
            "--all-formats",
            help="Also write the dataset as DeePMD-kit's mixed type, for MACE, as extxyz split for "
            "training and validation, and as an ASE database.",
        ),
    ] = False,
    licence: Annotated[
        str,
        typer.Option(metavar="TEXT", help="Licence of the dataset, for its card, e.g. CC-BY-4.0."),
    ] = "",
    layout: Annotated[
        str, typer.Option(metavar="LAYOUT", help="dpstream, or dpgen: iter.* folders as in DP-GEN.")
    ] = "dpstream",
) -> None:
    """Write models, dataset and report to a folder.

    The dataset is written for DeePMD-kit and as extxyz, with a card that states its contents,
    recipe and licence.
    """
    if layout not in ("dpstream", "dpgen"):
        raise SpecError(f"--layout: {layout!r}: allowed: dpstream, dpgen")
    extras = {"full": full, "archive": archive, "all-formats": all_formats, "licence": licence}
    for option in (option for option, given in extras.items() if given and layout == "dpgen"):
        raise SpecError(f"--{option}: allowed only with --layout dpstream")
    with within(root):
        store, name = named(campaign, root)
        if layout == "dpgen":
            lines = export_layout(store, name, output)
        else:
            extent = {"archive": archive, "all_formats": all_formats}
            lines = export_campaign(store, name, output, full, **extent, licence=licence)
        for line in lines:
            print_line(console, line)
