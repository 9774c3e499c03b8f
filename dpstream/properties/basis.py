"""Types and helpers that all properties share: settings, results, relaxation, supercells.

Units: eV, Å, GPa, J/m², THz.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ase.units import J, m

from dpstream.shared.errors import Permanent

PER_SQUARE_METRE = J / m**2
"""J/m² in eV/Å²."""


@dataclass(frozen=True)
class PropertySettings:
    """fmax: largest force after a relaxation, eV/Å; steps: largest number of relaxation steps;
    size: smallest edge of a supercell and thickness of a slab, Å; vacuum: vacuum of a slab, Å;
    millers: surfaces; line: plane of the γ-line, and its last shift in units of the slab's in-plane
    cell vectors (for a conventional fcc cell, the default passes through both stacking faults to
    the next lattice point)."""

    fmax: float = 0.01
    steps: int = 300
    size: float = 8.0
    vacuum: float = 10.0
    millers: tuple[tuple[int, int, int], ...] = ((1, 0, 0), (1, 1, 0), (1, 1, 1))
    line: tuple[tuple[int, int, int], tuple[float, float]] = ((1, 1, 1), (0.5, -0.5))


@dataclass(frozen=True)
class PropertyValue:
    name: str
    unit: str
    number: float


@dataclass(frozen=True)
class Curve:
    x_title: str
    y_title: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class PropertyResult:
    values: tuple[PropertyValue, ...]
    curve: Curve | None = None


PropertyFunction = Callable[[Any, PropertySettings], PropertyResult]
"""Computes a property of `ase.Atoms` that are relaxed with their own calculator. Raises Permanent
if it cannot be computed."""


def like(atoms: Any, calculator: Any) -> Any:
    """A copy with another calculator and without earlier results."""
    copy = atoms.copy()
    copy.calc = calculator
    return copy


def relaxed(atoms: Any, how: PropertySettings, *, cell: bool = False) -> Any:
    """A copy relaxed to forces below `how.fmax`; `cell`: relax the cell too. Raises Permanent after
    `how.steps` steps."""
    from ase.filters import FrechetCellFilter
    from ase.optimize import BFGS

    copy = like(atoms, atoms.calc)
    target = FrechetCellFilter(copy) if cell else copy
    if not BFGS(target, logfile=None).run(fmax=how.fmax, steps=how.steps):
        raise Permanent(
            f"{atoms.get_chemical_formula()}: not relaxed to {how.fmax:g} eV/Å within {how.steps} "
            "steps"
        )
    return copy


def energy(atoms: Any) -> float:
    """The potential energy, eV."""
    return float(atoms.get_potential_energy())


def supercell(atoms: Any, size: float) -> Any:
    """The structure repeated until opposite faces are at least `size` Å apart."""
    from dpstream.services.labeler.codes.base import cell_widths

    widths = cell_widths(atoms.cell[:])
    repeat = [max(1, -int(-size // width)) for width in widths]
    return like(atoms * repeat, atoms.calc)
