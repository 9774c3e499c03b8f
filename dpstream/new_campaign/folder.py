"""The folder of a new campaign: campaign.yaml, and the structures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import TypeAdapter, ValidationError

from dpstream.shared.errors import SpecError
from dpstream.shared.spec.errors import NAMES, shown
from dpstream.shared.values import Name

NOTE = """\
Put the starting structures of the campaign here, in any format that ASE reads: POSCAR, extxyz, xyz,
cif and others. `systems.start.structures` in campaign.yaml selects files by name. A file without a
cell is a molecule in vacuum.
"""


def check_name(name: str) -> None:
    """Raises SpecError for a name that no campaign can have."""
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise SpecError(f"NAME: {shown(name)}: {NAMES}") from error


def create(
    name: str,
    parent: Path,
    spec: str,
    structures: Mapping[str, bytes],
    fill: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Creates `parent/name/` with the text of a spec and files of structures by name; `fill` writes
    what else the spec names. The folder appears when it is complete.

    Returns the path of the spec. Raises `SpecError` for an invalid name, or a folder that exists or
    cannot be created.
    """
    check_name(name)
    folder = parent / name
    try:
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise SpecError(f"{folder}: already exists; choose another name")
        with TemporaryDirectory(prefix=".dpstream-", dir=parent) as room:
            made = Path(room) / name
            _write(made, spec, structures)
            fill(made)
            made.rename(folder)
    except OSError as error:
        raise SpecError(f"{folder}: cannot be written: {error.strerror}") from error
    return folder / "campaign.yaml"


def _write(folder: Path, spec: str, structures: Mapping[str, bytes]) -> None:
    (folder / "structures").mkdir(parents=True)
    (folder / "structures" / "README").write_text(NOTE, encoding="utf-8")
    for file, data in structures.items():
        (folder / "structures" / file).write_bytes(data)
    (folder / "campaign.yaml").write_text(spec, encoding="utf-8")
