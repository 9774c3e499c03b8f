"""The command `dpstream new`: the folder of a new campaign, with a spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from dpstream.commands.options import DEFAULT_ROOT, Root, named, within
from dpstream.export.results import CampaignResults
from dpstream.new_campaign.folder import check_name, create
from dpstream.new_campaign.full import template
from dpstream.new_campaign.labels import SETTINGS
from dpstream.new_campaign.short import Kind, given, short_spec, symbols_in
from dpstream.new_campaign.successor import Successor
from dpstream.shared.errors import SpecError
from dpstream.terminal.console import console, notes, print_line

CODE = "tblite"
"""Labels structures where no code is named."""


def new(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Name of the campaign and of the folder to create."),
    ],
    structure: Annotated[
        list[Path] | None,
        typer.Option(
            "--structure",
            metavar="FILE",
            help="Starting structure: POSCAR, extxyz, xyz, cif…; may be repeated. The spec is then "
            "short, and valid as it is.",
        ),
    ] = None,
    code: Annotated[
        str | None,
        typer.Option(
            metavar="CODE", help=f"Labeling code: {', '.join(SETTINGS)}. Default: {CODE}."
        ),
    ] = None,
    elements: Annotated[
        str | None,
        typer.Option(
            metavar="SYMBOLS",
            help="Elements of the model in the order of type_map, separated by commas; one element "
            "without --structure: its crystal.",
        ),
    ] = None,
    kind: Annotated[
        Kind | None,
        typer.Option(help="Kind of structures. Default: molecule without a cell, else bulk."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Write every key with its default and a comment.")
    ] = False,
    old: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="CAMPAIGN",
            help="Begin with the plan, the structures and all labels of this campaign in --store; "
            "elements, recipe and everything else can then be changed in the spec.",
        ),
    ] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Create a folder with a spec: a short one for given structures, else one with every key.

    Examples:  dpstream new copper --elements Cu --code vasp
               dpstream new water --structure water.xyz --code pyscf
               dpstream new copper-gold --from copper
    """
    symbols = symbols_in(elements or "")
    check_name(name)
    if old is not None:
        others = {"structure": structure, "code": code, "elements": elements, "kind": kind}
        for option in (each for each, given in {**others, "full": full}.items() if given):
            raise SpecError(f"--{option}: leave it out with --from; edit the spec instead")
        _write_successor(name, old, root)
        return
    if full and (structure or symbols):
        raise SpecError("--full: leave out --structure and --elements; edit the first part instead")
    if not structure and not symbols:
        _write(
            name,
            template(name),
            {},
            "put structures into {folder}/structures, edit the spec, then run: ",
        )
        return
    structures = given(structure or [], symbols)
    spec = short_spec(name, structures, code or CODE, symbols, kind)
    _write(name, spec, structures.files, "")


def _write_successor(name: str, old: str, root: str) -> None:
    with within(root):
        store, known = named(old, root)
        successor = Successor.of(CampaignResults.of(store, known), name)
        text, structures = successor.text, successor.structures
        _write(name, text, structures, "edit the spec, then run: ", successor.fill)


def _write(
    name: str,
    spec: str,
    files: Mapping[str, bytes],
    first: str,
    fill: Callable[[Path], None] = lambda folder: None,
) -> None:
    created = create(name, Path.cwd(), spec, files, fill)
    print_line(console, f"wrote {created}")
    before = first.format(folder=name)
    print_line(notes, f"next: {before}dpstream validate {Path(name) / created.name}")
