"""Reads files of structures through ASE and dpdata."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpstream.inputs.reading.lammps_data import check_has_elements, elements_of_types
from dpstream.inputs.reading.patterns import inside
from dpstream.inputs.reading.poscars import are_several, one_by_one
from dpstream.inputs.reading.recognise import ase_format, plainly_named, unpacked
from dpstream.inputs.reading.site_occupancy import check_occupancy
from dpstream.inputs.structure_faults import XYZ, WrongLine, fault_in, line_after
from dpstream.shared.errors import SpecError, errors_at

POSCAR_FORMS = ("vasp/poscar", "poscar", "vasp/contcar", "contcar")
LAMMPS_FORMS = ("lammps/lmp", "lmp", "lammps/dump", "dump")


def one_line(error: Exception) -> str:
    """An exception as one line; its class is added if the message is a single word."""
    text = " ".join(str(error).split())
    return text if " " in text else f"{type(error).__name__}: {text}".rstrip(": ")


def read_ase(path: Path, **known: str) -> list[Any]:
    """Every frame of a file, compressed or not, as `ase.Atoms`. `known`: `format`, if it is known.
    Raises `SpecError` if ASE cannot read it: `WrongLine` where the line is known."""
    if path.is_symlink() and not path.exists():
        raise SpecError(f"{path}: is a link to {path.readlink()}, which does not exist")
    if not path.is_file():
        raise SpecError(f"{path}: is a folder, not a file of structures")
    if path.stat().st_size == 0:
        raise SpecError(f"{path}: is empty")
    with unpacked(path) as plain:
        try:
            return _read(plain, known or ase_format(plain))
        except SpecError as error:
            raise type(error)(f"{path}: {error}") from error.__cause__


def _read(path: Path, known: Mapping[str, str]) -> list[Any]:
    import ase.io

    if known.get("format") == "vasp" and are_several(path.read_text(errors="replace")):
        several = one_by_one(path.read_text(errors="replace"))
        return [parsed(text, "vasp", f"line {line}") for line, text in several]
    if known.get("format") == "lammps-data":
        check_has_elements(path.read_text(errors="replace"))
    is_xyz = known.get("format") == "extxyz"
    try:
        frames = list(ase.io.read(path, index=":", do_not_split_by_at_sign=True, **known))
    except Exception as error:  # ASE's readers raise many kinds
        if (fault := fault_in(path, is_xyz)) is not None:
            raise WrongLine(fault) from error
        raise SpecError(f"cannot be read as a structure: {one_line(error)}") from error
    if path.suffix in XYZ or is_xyz:  # ASE reads them up to the first line that begins no frame
        fault = fault_in(path, True) or line_after(path, list(map(len, frames)))
        if fault is not None:
            raise WrongLine(fault)
    if not frames or not all(len(atoms) for atoms in frames):
        raise SpecError("contains no atoms")
    for atoms in frames:
        check_occupancy(atoms)
    return frames


def parsed(text: str, form: str, where: str) -> Any:
    """One structure in ASE's format `form`, as `ase.Atoms`. Raises `SpecError` with `where`."""
    from ase.io import read

    try:
        return read(io.StringIO(text), format=form)
    except Exception as error:  # ASE's readers raise many kinds
        reason = " ".join(str(error).split())
        raise SpecError(f"{where}: cannot be read as a structure: {reason}") from error


def read_dpdata(
    path: Path,
    form: str,
    type_map: Sequence[str],
    tell: Callable[[str], None] = lambda text: None,
) -> list[Any]:
    """Every frame of a file, compressed or not, or folder in dpdata's format `form` as `ase.Atoms`.
    Numbered types have the elements of their masses, or else the model's order, which is reported.
    Raises `SpecError`."""
    import dpdata  # deferred: slow to import

    if path.is_dir():
        with inside(path):
            return _by_dpdata(dpdata, Path(), form, type_map, path)
    if not path.exists():
        raise SpecError(f"{path}: no such file")
    if form in POSCAR_FORMS:  # dpdata refuses left-handed cells
        return read_ase(path, format="vasp")
    with unpacked(path) as plain, plainly_named(plain) as file:
        return _by_dpdata(dpdata, file, form, _names(file, path, form, type_map, tell), path)


def _names(
    file: Path, shown: Path, form: str, type_map: Sequence[str], tell: Callable[[str], None]
) -> Sequence[str]:
    """The elements of numbered types."""
    if form not in LAMMPS_FORMS:
        return type_map
    with errors_at(str(shown), SpecError):
        names = elements_of_types(file, type_map)
    if names is None:
        tell(f"types 1, 2, … are read as {', '.join(type_map)}")
    return names or type_map


def _by_dpdata(dpdata: Any, path: Path, form: str, names: Sequence[str], shown: Path) -> list[Any]:
    try:
        system = dpdata.System(str(path), fmt=form, type_map=list(names))
        return list(system.to("ase/structure"))
    except Exception as error:  # dpdata's readers raise many kinds
        raise SpecError(f"{shown}: cannot be read as {form}: {one_line(error)}") from error
