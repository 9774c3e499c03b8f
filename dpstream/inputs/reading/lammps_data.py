"""Elements of LAMMPS data files, whose atoms have numbered types and, mostly, masses."""

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


def elements_by_mass(path: Path, type_map: Sequence[str]) -> list[str]:
    """The elements of types 1, 2, … of a LAMMPS data file by its masses, or `type_map` if it has
    none. Raises `SpecError` for a mass of no element in `type_map`."""
    found = MASSES.search(path.read_text(errors="replace"))
    if found is None:
        return list(type_map)
    rows = [line.split()[:2] for line in found[1].splitlines() if line.strip()]
    masses = {int(number): float(mass) for number, mass in rows}
    return [_element(number, masses.get(number), type_map) for number in range(1, max(masses) + 1)]


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
