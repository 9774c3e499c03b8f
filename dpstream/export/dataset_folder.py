"""A folder with one labelled dataset: for DeePMD-kit, as extended xyz, and what made it.

dataset.json      which command made it, from what; marks the folder as ours
deepmd/FORMULA/   DeePMD-kit systems
dataset.extxyz    the same frames
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from ase.data import atomic_numbers

from dpstream.shared.atoms.dataset import Labelled, write_deepmd, write_extxyz
from dpstream.shared.errors import SpecError, write_errors
from dpstream.shared.files import write_whole
from dpstream.shared.spec.errors import did_you_mean

ABOUT = "dataset.json"

OutputFolder = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write the dataset to.")
]
TypeMap = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Chemical symbols in model order, e.g. C,H; default: that of the recipe file or "
        "of the campaigns, else the elements found, in alphabetical order.",
    ),
]


def claim(folder: Path, command: str) -> None:
    """Make the folder, unless it is there from the same command. Raises `SpecError` for one that
    holds anything else, or that cannot be made."""
    with write_errors(f"--output: {folder}"):
        if folder.is_dir() and any(folder.iterdir()) and _maker(folder) != command:
            raise SpecError(
                f"--output: {folder}: contains files that are not from dpstream {command}; "
                "give another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / ABOUT, json.dumps({"command": command}) + "\n")


def _maker(folder: Path) -> object:
    try:
        return json.loads((folder / ABOUT).read_text())["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_dataset(
    labelled: Sequence[Labelled], folder: Path, command: str, type_map: Sequence[str], **about: Any
) -> str:
    """Write the dataset into a folder that was claimed; the line says what is there now."""
    shutil.rmtree(folder / "deepmd", ignore_errors=True)
    (folder / "dataset.extxyz").unlink(missing_ok=True)
    systems = write_deepmd(labelled, folder / "deepmd", type_map)
    if labelled:
        write_extxyz(labelled, folder / "dataset.extxyz")
    document = {
        "command": command,
        "frames": len(labelled),
        "type_map": list(type_map),
        "systems": [f"deepmd/{system.name}" for system in systems],
        **about,
    }
    write_whole(folder / ABOUT, json.dumps(document, indent=1) + "\n")
    return f"{folder}: {len(labelled)} labelled frames, for DeePMD-kit and as extxyz"


def type_map_for(given: str | None, default: Sequence[str], species: Iterable[str]) -> list[str]:
    """The type map asked for, else `default`, else the elements found. Raises `SpecError` where
    an element found is not in it."""
    found = sorted(set(species))
    chosen = list(filter(None, map(str.strip, given.split(",")))) if given else list(default)
    for symbol in chosen:
        if symbol not in atomic_numbers:
            hint = did_you_mean(symbol, atomic_numbers)
            raise SpecError(f"--type-map: {symbol!r} is not a chemical symbol{hint}")
    missing = [symbol for symbol in found if symbol not in chosen]
    if chosen and missing:
        raise SpecError(f"--type-map: {','.join(chosen)}: lacks {', '.join(missing)}")
    return chosen or found
