"""Cuts molecular clusters from periodic frames, for labeling codes that compute molecules.

A cluster consists of the whole molecules that have an atom within a radius of its centre. Atoms are
bonded if they are closer than `BOND` times the sum of their covalent radii.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dpstream.shared.atoms.frames import Floats, Frame, canonical, to_ase

BOND = 1.3
CLOSED = 0.1
"""Å; a molecule whose bonds lead back to an atom farther than this from itself has no end."""

Bonds = dict[int, list[tuple[int, Floats]]]
"""For each atom its bonded atoms, and the vectors to them, Å."""


def centres(frame: Frame, deviation: Floats, low: float, separation: float, most: int) -> list[int]:
    """The atom with the largest deviation `(n_atoms,)`, then at most `most` - 1 further ones with
    at least `low`, each at least `separation` Å from those before it."""
    atoms, chosen = to_ase(frame), list[int]()
    for atom in np.argsort(-deviation, kind="stable").tolist():
        if len(chosen) == most or (chosen and deviation[atom] < low):
            break
        if not chosen or atoms.get_distances(atom, chosen, mic=True).min() >= separation:
            chosen.append(atom)
    return chosen


def cluster(frame: Frame, centre: int, radius: float) -> Frame:
    """The molecules of `frame` with an atom within `radius` Å of atom `centre`, without cell.

    Raises ValueError for a frame without cell, a sphere that does not fit into the cell, and a
    molecule that reaches through it, as crystals do.
    """
    if frame.cell is None:
        raise ValueError("the frame has no cell")
    width = float(np.min(1 / np.linalg.norm(np.linalg.inv(frame.cell), axis=0)))
    if 2 * radius > width:
        raise ValueError(f"the cell is {width:.3g} Å wide, less than twice the radius")
    atoms = to_ase(frame)
    vectors = atoms.get_distances(centre, range(len(atoms)), mic=True, vector=True)
    distances = np.linalg.norm(vectors, axis=1)
    bonds, placed = _bonds(frame), dict[int, Floats]()
    for atom in np.argsort(distances, kind="stable").tolist():
        if distances[atom] > radius:
            break
        if atom not in placed:
            placed |= _molecule(atom, vectors[atom], bonds)
    return _taken(frame, sorted(placed), np.array([placed[atom] for atom in sorted(placed)]))


def _bonds(frame: Frame) -> Bonds:
    from ase.neighborlist import natural_cutoffs, neighbor_list  # deferred: slow to import

    atoms = to_ase(frame)
    bonds: Bonds = defaultdict(list)
    cutoffs = natural_cutoffs(atoms, mult=BOND)
    for first, second, vector in zip(*neighbor_list("ijD", atoms, cutoffs), strict=True):
        bonds[int(first)].append((int(second), vector))
    return bonds


def _molecule(first: int, place: Floats, bonds: Bonds) -> dict[int, Floats]:
    """The positions of all atoms bonded to atom `first`, directly or not, along the bonds."""
    placed, waiting = {first: place}, deque([first])
    while waiting:
        atom = waiting.popleft()
        for other, vector in bonds[atom]:
            there = placed[atom] + vector
            if other not in placed:
                placed[other] = there
                waiting.append(other)
            elif np.linalg.norm(placed[other] - there) > CLOSED:
                raise ValueError("a molecule reaches through the cell")
    return placed


def _taken(frame: Frame, atoms: Sequence[int], positions: Floats) -> Frame:
    species = tuple(frame.species[atom] for atom in atoms)
    aparam = None if frame.aparam is None else frame.aparam[list(atoms)]
    return canonical(
        replace(frame, species=species, positions=positions, cell=None, aparam=aparam)
    ).frame
