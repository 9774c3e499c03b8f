"""Builds structures from structures: scaled, strained, perturbed, repeated, cut into slabs.

Pure functions from frames to canonical frames; the caller passes the random number generator.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from dpstream.shared.atoms.frames import Floats, Frame, canonical, closest_pair, from_ase, to_ase

TRIES = 100
"""Maximum draws of one perturbed copy."""


def perturbed(frame: Frame, displace: float, strain: float, rng: np.random.Generator) -> Frame:
    """A canonical copy of `frame` with atoms displaced uniformly within a ball of radius `displace`
    Å. A cell, with its atoms, is first strained by a symmetric tensor with components within
    ±`strain`."""
    positions, cell = frame.positions, frame.cell
    if cell is not None:
        upper = np.triu(rng.uniform(-strain, strain, (3, 3)))
        deformation = np.eye(3) + upper + np.triu(upper, 1).T
        positions, cell = positions @ deformation, cell @ deformation
    moved = positions + displace * _in_ball(len(positions), rng)
    return canonical(replace(frame, positions=moved, cell=cell)).frame


def perturbed_apart(
    frame: Frame, displace: float, strain: float, shortest: float, rng: np.random.Generator
) -> Frame:
    """A `perturbed` copy whose atoms are all at least `shortest` Å apart, drawn repeatedly until
    they are. Raises ValueError if no draw succeeds."""
    for _ in range(TRIES):
        copy = perturbed(frame, displace, strain, rng)
        if closest_pair(copy, shortest) is None:
            return copy
    raise ValueError(
        f"{displace:g} Å keeps bringing atoms closer than labels.min_distance ({shortest:g} Å) "
        f"in {frame.formula}"
    )


def strained(frame: Frame, deformation: Floats) -> Frame:
    """`frame` with cell vectors and positions multiplied by `deformation` `(3, 3)` from the right.
    Raises ValueError for a molecule."""
    if frame.cell is None:
        raise ValueError(f"{frame.formula} has no cell")
    moved = replace(frame, positions=frame.positions @ deformation, cell=frame.cell @ deformation)
    return canonical(moved).frame


def scaled(frame: Frame, factor: float) -> Frame:
    """`frame` with cell and positions scaled by `factor`; a molecule is scaled about its centre."""
    if frame.cell is not None:
        moved = replace(frame, positions=frame.positions * factor, cell=frame.cell * factor)
        return canonical(moved).frame
    centre = frame.positions.mean(axis=0)
    return canonical(replace(frame, positions=centre + factor * (frame.positions - centre))).frame


def shuffled(frame: Frame, rng: np.random.Generator) -> Frame:
    """`frame` with the positions of its atoms permuted at random, so that the elements occupy the
    same sites in another order."""
    return canonical(replace(frame, positions=rng.permutation(frame.positions))).frame


def supercell(frame: Frame, repeat: tuple[int, int, int]) -> Frame:
    """`frame` repeated along its cell vectors. Raises ValueError for a molecule."""
    return canonical(from_ase(_crystal(frame) * repeat)).frame


def slab(
    frame: Frame,
    miller: tuple[int, int, int],
    vacuum: float,
    *,
    layers: int | None = None,
    thickness: float | None = None,
) -> Frame:
    """The surface `miller` (indices in the cell of `frame`, usually the conventional one) of a
    crystal, with the third cell vector perpendicular to it and `vacuum` Å between periodic images.
    `layers`: number of cells stacked along the normal; or as many as `thickness` Å requires.

    Raises ValueError for a molecule, and unless exactly one of `layers` and `thickness` is given.
    """
    if (layers is None) == (thickness is None):
        raise ValueError("give either layers or thickness")
    from ase.build import surface  # deferred: slow to import

    crystal = _crystal(frame)
    if thickness is not None:
        one = surface(crystal, miller, 1, periodic=True)
        layers = max(1, math.ceil(thickness / float(one.cell[2, 2]) - 1e-6))
    cut = surface(crystal, miller, layers, vacuum=vacuum / 2, periodic=True)
    return canonical(from_ase(cut)).frame


def _crystal(frame: Frame) -> Any:
    if frame.cell is None:
        raise ValueError(f"{frame.formula} has no cell")
    return to_ase(frame)


def _in_ball(count: int, rng: np.random.Generator) -> Floats:
    """Points `(count, 3)` uniform in the unit ball."""
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    radii = np.cbrt(rng.uniform(size=(count, 1)))
    return np.asarray(directions * radii, dtype=np.float64)
