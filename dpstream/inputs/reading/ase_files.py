"""Reads files of structures through ASE and dpdata."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpstream.inputs.reading.lammps_data import check_has_elements, elements_by_mass
from dpstream.inputs.reading.patterns import inside
from dpstream.inputs.reading.poscars import are_several, read_several
from dpstream.inputs.reading.recognise import ase_format, unpacked
from dpstream.inputs.reading.site_occupancy import check_occupancy
from dpstream.inputs.structure_faults import XYZ, WrongLine, fault_in
from dpstream.shared.errors import SpecError, errors_at

LAMMPS_FORMS = ("lammps/lmp", "lmp")


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
    with unpacked(path) as plain:
        try:
            return _read(plain)
        except SpecError as error:
            raise type(error)(f"{path}: {error}") from error.__cause__


def _read(path: Path) -> list[Any]:
    import ase.io

    known = ase_format(path)
    if known.get("format") == "vasp" and are_several(path.read_text(errors="replace")):
        return list(read_several(path.read_text(errors="replace")))
    if known.get("format") == "lammps-data":
        check_has_elements(path.read_text(errors="replace"))
    try:
        frames = list(ase.io.read(path, index=":", do_not_split_by_at_sign=True, **known))
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
    """Every frame of a file, compressed or not, or folder in dpdata's format `form` as `ase.Atoms`.
    Types in files without chemical symbols follow their masses, else the model's order. Raises
    `SpecError`."""
    import dpdata  # deferred: slow to import

    if path.is_dir():
        with inside(path):
            return _by_dpdata(dpdata, Path(), form, type_map, path)
    if not path.exists():
        raise SpecError(f"{path}: no such file")
    with unpacked(path) as plain:
        names = type_map
        if form in LAMMPS_FORMS:
            with errors_at(str(path), SpecError):
                names = elements_by_mass(plain, type_map)
        return _by_dpdata(dpdata, plain, form, names, path)


def _by_dpdata(dpdata: Any, path: Path, form: str, names: Sequence[str], shown: Path) -> list[Any]:
    try:
        system = dpdata.System(str(path), fmt=form, type_map=list(names))
        return list(system.to("ase/structure"))
    except Exception as error:  # dpdata's readers raise many kinds
        raise SpecError(f"{shown}: cannot be read as {form}: {one_line(error)}") from error
