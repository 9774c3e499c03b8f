"""Vacancies, interstitials, surfaces and γ-lines: energies against the perfect crystal.

Of a compound, an atom taken out or put in counts with the crystal's mean energy per atom: good for
comparing two methods, no formation energy at a chemical potential.
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
"""Largest holes of the crystal that are tried."""
SAME = 0.1
"""Å: holes whose radii differ by less are one kind."""
POINTS = 7
"""Of a γ-line, both ends included."""


def vacancy(atoms: Any, how: PropertySettings) -> PropertyResult:
    """Each symmetrically different atom taken out of a supercell, ions relaxed."""
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
    """One atom of each symmetry class; the first copy in a supercell has the same number."""
    import spglib

    cell = (atoms.cell[:], atoms.get_scaled_positions(), atoms.numbers)
    with catch_warnings():
        simplefilter("ignore", DeprecationWarning)  # of its way to say that it found none
        found = spglib.get_symmetry_dataset(cell, symprec=1e-3)
    if found is None:
        return list(range(len(atoms)))
    return sorted(set(map(int, found.equivalent_atoms)))


def interstitial(atoms: Any, how: PropertySettings) -> PropertyResult:
    """Each element put into the largest holes of a supercell, ions relaxed."""
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
    """Places `(3,)` in Å farthest from all atoms, one of each kind, the largest first: vertices of
    the Voronoi cells."""
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
    """Energy per area of slabs, ions relaxed."""
    mean = energy(atoms) / len(atoms)
    values = []
    for miller in how.millers:
        rest = relaxed(_slab(atoms, miller, how), how)
        excess = energy(rest) - len(rest) * mean
        name = "".join(map(str, miller))
        values.append(
            PropertyValue(f"({name})", "J/m²", excess / (2 * _area(rest)) / PER_SQUARE_METRE)
        )
    return PropertyResult(tuple(values))


def _slab(atoms: Any, miller: tuple[int, int, int], how: PropertySettings) -> Any:
    frame = slab(from_ase(atoms), miller, how.vacuum, thickness=how.size)
    return like(to_ase(frame), atoms.calc)


def _area(atoms: Any) -> float:
    """Å² of a slab's face."""
    return float(np.linalg.norm(np.cross(atoms.cell[0], atoms.cell[1])))


def gamma_line(atoms: Any, how: PropertySettings) -> PropertyResult:
    """The upper half of a slab shifted step by step within its plane; ions relax along the normal
    only (V. Vitek, Phil. Mag. 18, 773 (1968))."""
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
        raise Permanent("γ-line: the slab is a single layer; give a larger --size")
    first, second = _in_plane(rest)
    vector = along[0] * first + along[1] * second
    for share in shares:
        shifted = like(rest, rest.calc)
        shifted.positions[upper] += share * vector
        shifted.set_constraint(FixedLine(list(range(len(shifted))), (0, 0, 1)))
        yield shifted


def _in_plane(rest: Any) -> tuple[Floats, Floats]:
    """Vectors `(3,)` of a slab's face, at an angle of 90° or more: whether a hexagonal face comes
    out at 60° or at 120° is decided by the last bit of the crystal's cell."""
    first, second = np.asarray(rest.cell[0]), np.asarray(rest.cell[1])
    return first - np.ceil(first @ second / (second @ second) - 1e-6) * second, second
