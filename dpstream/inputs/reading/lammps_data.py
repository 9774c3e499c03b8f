"""Elements of LAMMPS data files and dumps, whose atoms have numbered types."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase.data import atomic_masses, atomic_numbers

from dpstream.shared.errors import SpecError

MASSES = re.compile(
    r"^[ \t]*Masses\b[^\n]*\n\s*((?:[ \t]*\d+[ \t]+[\d.eE+-]+[^\n]*\n?)+)", re.MULTILINE
)
COLUMNS = re.compile(r"^ITEM: ATOMS (.*)\n", re.MULTILINE)
LABELS = re.compile(r"^[ \t]*Atom Type Labels\b", re.MULTILINE)
CLOSE = 1.5
"""amu; deuterium is hydrogen, and masses are rounded."""


def check_has_elements(text: str) -> None:
    """Raises `SpecError` for a file that tells its elements neither by masses nor by labels: ASE
    would take types 1, 2, … for H, He, …"""
    if MASSES.search(text) is None and LABELS.search(text) is None:
        raise SpecError(
            "LAMMPS data without Masses, so that its types have no elements; add Masses, or set "
            "format: lammps/lmp if the types are numbered as in type_map"
        )


def elements_of_types(path: Path, type_map: Sequence[str]) -> list[str] | None:
    """The elements of types 1, 2, … of a LAMMPS data file by its masses, or of a dump by its column
    `element`; None if it has neither. Raises `SpecError` for a mass of no element in `type_map`."""
    text = path.read_text(errors="replace")
    found, columns = MASSES.search(text), COLUMNS.search(text)
    if found is None:
        return _elements_of_dump(text, columns) if columns else None
    rows = [line.split()[:2] for line in found[1].splitlines() if line.strip()]
    masses = {int(number): float(mass) for number, mass in rows}
    return [_element(number, masses.get(number), type_map) for number in range(1, max(masses) + 1)]


def _elements_of_dump(text: str, columns: re.Match[str]) -> list[str] | None:
    """The elements in the first frame of a dump."""
    names = columns[1].split()
    if "element" not in names or "type" not in names:
        return None
    rows = (line.split() for line in text[columns.end() :].partition("ITEM:")[0].splitlines())
    found = {int(row[names.index("type")]): row[names.index("element")] for row in rows if row}
    return [found.get(number, "X") for number in range(1, max(found, default=0) + 1)]


def _element(number: int, mass: float | None, type_map: Sequence[str]) -> str:
    if mass is None:
        raise SpecError(f"Masses: type {number} is missing")
    apart = np.abs(atomic_masses[[atomic_numbers[symbol] for symbol in type_map]] - mass)
    if apart.min() > CLOSE:
        raise SpecError(
            f"Masses: type {number} has the mass {mass:g}, of no element in type_map "
            f"({', '.join(type_map)})"
        )
    return type_map[int(apart.argmin())]
