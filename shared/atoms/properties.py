"""Crystal properties from single points of fixed structures: equation of state, elastic constants,
vacancy energies.

Each property defines the structures it needs and computes its numbers from their energies and
stresses. Models and labeling codes compute the same structures, so that their numbers are
comparable. Atoms keep their fractional positions (no relaxation). Units: eV, Å, GPa.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from ase.units import GPa

from dpstream.shared.atoms.builders import scaled, strained
from dpstream.shared.atoms.frames import Floats, Frame, canonical

STRETCHES = np.linspace(0.94, 1.06, 7)
"""Volumes of the equation of state, relative to that of the given structure."""
STRAIN = 0.005
"""Strain of the elastic constants, applied in both directions."""
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


@dataclass(frozen=True, eq=False)
class StructurePoint:
    """A structure with its energy in eV and its virial `(3, 3)` in eV, if known."""

    frame: Frame
    energy: float
    virial: Floats | None = None


class Quantity(NamedTuple):
    name: str
    unit: str
    number: float


@dataclass(frozen=True)
class CrystalProperty:
    """`points` builds the canonical structures; `values` computes the numbers from their single
    points, in the same order. Both raise ValueError if the property is undefined."""

    points: Callable[[Frame], list[Frame]]
    values: Callable[[Sequence[StructurePoint]], list[Quantity]]


# ------------------------------------------------------------------------------ equation of state


class Equilibrium(NamedTuple):
    """Minimum of an equation of state: volume in Å³, energy in eV, bulk modulus in GPa."""

    volume: float
    energy: float
    bulk: float


def fit_birch_murnaghan(volumes: Floats, energies: Floats) -> Equilibrium:
    """Fits volumes `(n,)` in Å³ and energies `(n,)` in eV. Raises ValueError if the energies have
    no minimum."""
    from ase.eos import EquationOfState  # deferred: slow to import

    try:
        volume, energy, bulk = EquationOfState(volumes, energies, "birchmurnaghan").fit()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"no equation of state: {error}") from error
    low, high = float(np.min(volumes)), float(np.max(volumes))
    if not (low < volume < high and bulk > 0):
        raise ValueError(f"no equation of state: no minimum between {low:.4g} and {high:.4g} Å³")
    return Equilibrium(float(volume), float(energy), float(bulk) / GPa)


def _stretched(crystal: Frame) -> list[Frame]:
    _cell(crystal)
    return [scaled(crystal, float(np.cbrt(stretch))) for stretch in STRETCHES]


def _equilibrium(points: Sequence[StructurePoint]) -> Equilibrium:
    volumes = np.array([np.linalg.det(_cell(point.frame)) for point in points])
    return fit_birch_murnaghan(volumes, np.array([point.energy for point in points]))


def _volume(points: Sequence[StructurePoint]) -> list[Quantity]:
    per_atom = _equilibrium(points).volume / len(points[0].frame.species)
    return [Quantity("equilibrium volume", "Å³/atom", per_atom)]


def _bulk_modulus(points: Sequence[StructurePoint]) -> list[Quantity]:
    return [Quantity("bulk modulus", "GPa", _equilibrium(points).bulk)]


# ------------------------------------------------------------------------------ elastic constants


def deformations() -> Iterator[Floats]:
    """The identity, then each of the six strains in both directions: symmetric matrices `(3, 3)`
    that multiply row vectors from the right."""
    yield np.eye(3)
    for i, j in VOIGT:
        for strain in (STRAIN, -STRAIN):
            deformation = np.eye(3)
            deformation[i, j] += strain if i == j else strain / 2
            deformation[j, i] = deformation[i, j]
            yield deformation


def fit_stiffness(cells: Sequence[Floats], stresses: Sequence[Floats]) -> Floats:
    """C `(6, 6)` in GPa, Voigt order xx yy zz yz xz xy, engineering shear, from stresses `(3, 3)`
    in eV/Å³ of strained cells `(3, 3)`; the first cell is unstrained and defines the axes. Cells
    may be rotated together with their stress."""
    pairs = [_without_rotation(cells[0], c, s) for c, s in zip(cells, stresses, strict=True)]
    strains = np.stack([_voigt(strain) * (1, 1, 1, 2, 2, 2) for strain, _ in pairs])
    slopes = np.column_stack([np.ones(len(pairs)), strains])
    fit, *_ = np.linalg.lstsq(slopes, np.stack([_voigt(s) for _, s in pairs]), rcond=None)
    constants: Floats = (fit[1:] + fit[1:].T) / 2 / GPa
    return constants


def _without_rotation(rest: Floats, cell: Floats, stress: Floats) -> tuple[Floats, Floats]:
    """Strain `(3, 3)` of `cell` and its stress, both along the axes of `rest`."""
    from scipy.linalg import polar  # deferred: slow to import

    rotation, stretch = polar(np.linalg.solve(rest, cell), side="left")
    return stretch - np.eye(3), rotation @ stress @ rotation.T


def _voigt(tensor: Floats) -> Floats:
    return np.array([(tensor[i, j] + tensor[j, i]) / 2 for i, j in VOIGT])


def constant_names() -> Iterator[tuple[str, int, int]]:
    """Constants that do not vanish in crystals of high symmetry: C11, C12 … and C44, C55, C66."""
    for i in range(6):
        for j in range(i, 6):
            if j < 3 or i == j:
                yield f"C{i + 1}{j + 1}", i, j


def _strained(crystal: Frame) -> list[Frame]:
    _cell(crystal)
    return [strained(crystal, deformation) for deformation in deformations()]


def _elastic(points: Sequence[StructurePoint]) -> list[Quantity]:
    constants = fit_stiffness([_cell(p.frame) for p in points], [_stress(p) for p in points])
    return [
        Quantity(f"elastic constant {name}", "GPa", float(constants[i, j]))
        for name, i, j in constant_names()
    ]


def _stress(point: StructurePoint) -> Floats:
    if point.virial is None:
        raise ValueError("the stress is unknown")
    stress: Floats = -point.virial / np.linalg.det(_cell(point.frame))
    return stress


def _cell(frame: Frame) -> Floats:
    if frame.cell is None:
        raise ValueError(f"{frame.formula} has no cell")
    return frame.cell


# ------------------------------------------------------------------------------ vacancies


def _vacancies(crystal: Frame) -> list[Frame]:
    """The crystal, and copies without the first atom of each element."""
    _cell(crystal)
    if len(crystal.species) < 2:
        raise ValueError(f"{crystal.formula} is too small for a vacancy; give a supercell")
    firsts = [crystal.species.index(symbol) for symbol in sorted(set(crystal.species))]
    return [canonical(crystal).frame, *(_without(crystal, atom) for atom in firsts)]


def _without(frame: Frame, atom: int) -> Frame:
    kept = [i for i in range(len(frame.species)) if i != atom]
    aparam = None if frame.aparam is None else frame.aparam[kept]
    species = tuple(frame.species[i] for i in kept)
    return canonical(
        replace(frame, species=species, positions=frame.positions[kept], aparam=aparam)
    ).frame


def _vacancy(points: Sequence[StructurePoint]) -> list[Quantity]:
    """Vacancy energies; the removed atom counts with the crystal's mean energy per atom."""
    perfect, *defects = points
    mean = perfect.energy / len(perfect.frame.species)
    return [
        Quantity(
            f"vacancy energy of {symbol}", "eV", defect.energy - mean * len(defect.frame.species)
        )
        for symbol, defect in zip(sorted(set(perfect.frame.species)), defects, strict=True)
    ]


PROPERTIES = {
    "volume": CrystalProperty(_stretched, _volume),
    "bulk-modulus": CrystalProperty(_stretched, _bulk_modulus),
    "elastic": CrystalProperty(_strained, _elastic),
    "vacancy": CrystalProperty(_vacancies, _vacancy),
}
