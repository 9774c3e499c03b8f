"""Reads files of structures through ASE and dpdata."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpstream.inputs.reading.recognise import ase_format, unpacked
from dpstream.inputs.reading.site_occupancy import check_occupancy
from dpstream.inputs.structure_faults import XYZ, WrongLine, fault_in
from dpstream.shared.errors import SpecError


def one_line(error: Exception) -> str:
    """An exception as one line; its class is added if the message is a single word."""
    text = " ".join(str(error).split())
    return text if " " in text else f"{type(error).__name__}: {text}".rstrip(": ")


def read_ase(path: Path) -> list[Any]:
    """Every frame of a file, compressed or not, as `ase.Atoms`. Raises `SpecError` if ASE cannot
    read it: `WrongLine` where the line is known."""
    if path.is_symlink() and not path.exists():
        raise SpecError(f"{path}: is a link to {path.readlink()}, which does not exist")
    if not path.is_file():
        raise SpecError(f"{path}: is a folder, not a file of structures")
    if path.stat().st_size == 0:
        raise SpecError(f"{path}: is empty")
    try:
        with unpacked(path) as plain:
            return _read(plain)
    except OSError as error:  # not what its first bytes say
        raise SpecError(f"{path}: cannot be unpacked: {one_line(error)}") from error
    except SpecError as error:
        raise type(error)(f"{path}: {error}") from error.__cause__


def _read(path: Path) -> list[Any]:
    import ase.io

    try:
        frames = list(ase.io.read(path, index=":", **ase_format(path)))
    except Exception as error:  # ASE's readers raise many kinds
        if (fault := fault_in(path)) is not None:
            raise WrongLine(fault) from error
        raise SpecError(f"cannot be read as a structure: {one_line(error)}") from error
    fault = fault_in(path) if path.suffix in XYZ else None
    if fault is not None:  # ASE reads xyz files up to the first line that begins no frame
        raise WrongLine(fault)
    if not frames or not all(len(atoms) for atoms in frames):
        raise SpecError("contains no atoms")
    for atoms in frames:
        check_occupancy(atoms)
    return frames


def read_dpdata(path: Path, form: str, type_map: Sequence[str]) -> list[Any]:
    """Every frame of a file in dpdata's format `form` as `ase.Atoms`. Types in files without
    chemical symbols follow the model's order. Raises `SpecError`."""
    import dpdata  # deferred: slow to import

    try:
        system = dpdata.System(str(path), fmt=form, type_map=list(type_map))
        return list(system.to("ase/structure"))
    except Exception as error:  # dpdata's readers raise many kinds
        raise SpecError(f"{path}: cannot be read as {form}: {one_line(error)}") from error
