"""Vacancies, interstitials, surfaces and γ-lines: energies relative to the perfect crystal.

In a compound, an added or removed atom counts with the crystal's mean energy per atom. This is
sufficient to compare two methods, but is not a formation energy at a given chemical potential.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np

from dpstream.properties.basis import (
    PER_SQUARE_METRE,
    Curve,
    PropertyResult,
    PropertySettings,
    PropertyValue,
    energy,
    like,
    relaxed,
    supercell,
)
from dpstream.shared.atoms.builders import slab
from dpstream.shared.atoms.frames import Floats, from_ase, to_ase
from dpstream.shared.errors import Permanent

VOIDS = 2
"""Number of holes tried, the largest first."""
SAME = 0.1
"""Å; holes whose radii differ by less are considered equivalent."""
POINTS = 7
"""Points of a γ-line, including both ends."""


def vacancy(atoms: Any, how: PropertySettings) -> PropertyResult:
    """Energy of removing each symmetrically distinct atom from a supercell, with relaxed ions."""
    perfect = supercell(atoms, how.size)
    mean = energy(atoms) / len(atoms)
    values = []
    for number, site in enumerate(_different_sites(atoms), start=1):
        defect = perfect.copy()
        symbol = defect[site].symbol
        del defect[site]
        rest = relaxed(like(defect, atoms.calc), how)
        values.append(PropertyValue(f"{symbol} {number}", "eV", energy(rest) - len(rest) * mean))
    return PropertyResult(tuple(values))


def _different_sites(atoms: Any) -> list[int]:
    """The index of one atom per symmetry class, which is also valid in a supercell."""
    import spglib

    cell = (atoms.cell[:], atoms.get_scaled_positions(), atoms.numbers)
    with catch_warnings():
        simplefilter("ignore", DeprecationWarning)  # spglib warns if it finds no symmetry
        symmetry = spglib.get_symmetry_dataset(cell, symprec=1e-3)
    if symmetry is None:
        return list(range(len(atoms)))
    return sorted(set(map(int, symmetry.equivalent_atoms)))


def interstitial(atoms: Any, how: PropertySettings) -> PropertyResult:
    """Energy of adding each element to the largest holes of a supercell, with relaxed ions."""
    mean = energy(atoms) / len(atoms)
    values = []
    for number, place in enumerate(holes(atoms), start=1):
        for symbol in sorted(set(atoms.get_chemical_symbols())):
            defect = supercell(atoms, how.size)
            defect.append(symbol)
            defect.positions[-1] = place
            rest = relaxed(like(defect, atoms.calc), how)
            value = energy(rest) - len(rest) * mean
            values.append(PropertyValue(f"{symbol} in hole {number}", "eV", value))
    return PropertyResult(tuple(values))


def holes(atoms: Any) -> list[Floats]:
    """Positions `(3,)` in Å farthest from all atoms, the vertices of the Voronoi cells; one of each
    kind, the largest first."""
    from scipy.spatial import Voronoi, cKDTree

    repeated = atoms.repeat(3)
    middle = atoms.cell[:].sum(axis=0)
    places = Voronoi(repeated.positions - middle).vertices
    inside = np.all(np.abs(atoms.cell.scaled_positions(places) - 0.5) <= 0.5 + 1e-6, axis=1)
    radii, _ = cKDTree(repeated.positions - middle).query(places[inside])
    kept: list[tuple[float, Floats]] = []
    for index in np.argsort(-radii, kind="stable"):
        if all(abs(radii[index] - radius) > SAME for radius, _ in kept):
            kept.append((float(radii[index]), places[inside][index]))
    return [place for _, place in kept[:VOIDS]]


# ------------------------------------------------------------------------------ surfaces


def surfaces(atoms: Any, how: PropertySettings) -> PropertyResult:
    """Surface energies from slabs with relaxed ions."""
    mean = energy(atoms) / len(atoms)
    values = []
    for miller in how.millers:
        rest = relaxed(_slab(atoms, miller, how), how)
        excess = energy(rest) - len(rest) * mean
        name = "".join(map(str, miller))
        gamma = excess / (2 * _area(rest)) / PER_SQUARE_METRE
        values.append(PropertyValue(f"({name})", "J/m²", gamma))
    return PropertyResult(tuple(values))


def _slab(atoms: Any, miller: tuple[int, int, int], how: PropertySettings) -> Any:
    frame = slab(from_ase(atoms), miller, how.vacuum, thickness=how.size)
    return like(to_ase(frame), atoms.calc)


def _area(atoms: Any) -> float:
    """Area of a slab's face, Å²."""
    return float(np.linalg.norm(np.cross(atoms.cell[0], atoms.cell[1])))


def gamma_line(atoms: Any, how: PropertySettings) -> PropertyResult:
    """Energies while the upper half of a slab is shifted within its plane; ions relax along the
    normal only (V. Vitek, Phil. Mag. 18, 773 (1968))."""
    miller, along = how.line
    rest = _slab(atoms, miller, how)
    shares = np.linspace(0.0, 1.0, POINTS)
    energies = [energy(relaxed(shifted, how)) for shifted in _shifted(rest, along, shares)]
    gamma = (np.array(energies) - energies[0]) / _area(rest) / PER_SQUARE_METRE
    points = tuple(zip(shares.tolist(), gamma.tolist(), strict=True))
    name = "".join(map(str, miller))
    values = tuple(PropertyValue(f"({name}) at {x:.2f}", "J/m²", y) for x, y in points[1:-1])
    return PropertyResult(values, Curve("share of the shift", "γ (J/m²)", points))


def _shifted(rest: Any, along: tuple[float, float], shares: Floats) -> Iterator[Any]:
    from ase.constraints import FixedLine

    height = rest.positions[:, 2]
    upper = height > (height.min() + height.max()) / 2
    if upper.all() or not upper.any():
        raise Permanent("γ-line: the slab has a single layer; increase --size")
    first, second = _in_plane(rest)
    vector = along[0] * first + along[1] * second
    for share in shares:
        shifted = like(rest, rest.calc)
        shifted.positions[upper] += share * vector
        shifted.set_constraint(FixedLine(list(range(len(shifted))), (0, 0, 1)))
        yield shifted


def _in_plane(rest: Any) -> tuple[Floats, Floats]:
    """The in-plane vectors `(3,)` of a slab, at an angle of at least 90°. Without this choice,
    rounding errors would decide between 60° and 120° for a hexagonal face."""
    first, second = np.asarray(rest.cell[0]), np.asarray(rest.cell[1])
    return first - np.ceil(first @ second / (second @ second) - 1e-6) * second, second
