"""Generates random symmetric crystals: a random space group with a compatible lattice and atoms.

After C. J. Pickard and R. J. Needs, J. Phys.: Condens. Matter 23, 053201 (2011): an atom near
images of itself is moved onto the special position between them, so that its orbit shrinks.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpstream.services.explorer.selection.geometry import GeometryLimits, refusal
from dpstream.shared.atoms.frames import Floats, Frame, canonical

HALLS = 530
"""Settings of the 230 space groups in spglib's database."""
TRIES_PER_ATOM = 4
SAME = 1e-4
"""Tolerance of fractional coordinates within which positions are equal."""
Operations = tuple[Floats, Floats]


@functools.cache
def operations(hall: int) -> Operations:
    """Rotations `(n, 3, 3)` and translations `(n, 3)` of fractional coordinates for Hall number
    `hall`. Raises ValueError if spglib is not installed."""
    try:
        import spglib  # deferred: only structure search needs it
    except ImportError as error:
        raise ValueError("search: needs spglib on this worker; pip install spglib") from error
    found: Any = spglib.get_symmetry_from_database(hall)
    return np.array(found["rotations"], dtype=np.float64), np.array(found["translations"])


def random_crystal(
    species: Sequence[str],
    volume: float,
    limits: GeometryLimits,
    rng: np.random.Generator,
    tries: int = 500,
) -> Frame:
    """A canonical frame of `species` with a cell of `volume` Å³ that satisfies `limits`. Raises
    ValueError if none is found in `tries` attempts."""
    spheres = sum(np.pi / 6 * limits.pairs[symbol, symbol] ** 3 for symbol in species)
    for _ in range(tries if spheres < volume else 0):
        hall = int(rng.integers(1, HALLS + 1))
        frame = _attempt(Counter(species), volume, operations(hall), rng)
        if frame is not None and refusal(frame, limits) is None:
            return frame
    raise ValueError(
        f"search: no random structure of {len(species)} atoms in {volume:.1f} Å³ satisfies "
        "min_distance; increase the volume or reduce the distance"
    )


def _attempt(
    wanted: Counter[str], volume: float, symmetry: Operations, rng: np.random.Generator
) -> Frame | None:
    cell = _lattice(symmetry[0], volume, rng)
    species: list[str] = []
    places: list[Floats] = []
    for symbol in sorted(wanted):
        orbits = _orbits(wanted[symbol], symmetry, cell, rng)
        if orbits is None:
            return None
        species += [symbol] * wanted[symbol]
        places.append(orbits)
    try:
        return canonical(Frame(tuple(species), np.concatenate(places) @ cell, cell)).frame
    except ValueError:  # a nearly flat cell
        return None


def _lattice(rotations: Floats, volume: float, rng: np.random.Generator) -> Floats:
    """Random cell vectors `(3, 3)` whose metric is invariant under the rotations."""
    vectors = np.diag(rng.uniform(0.5, 1.5, 3)) + np.tril(rng.uniform(-0.5, 0.5, (3, 3)), -1)
    metric = np.mean(rotations.transpose(0, 2, 1) @ (vectors @ vectors.T) @ rotations, axis=0)
    cell: Floats = np.linalg.cholesky(metric)
    scaled: Floats = cell * (volume / np.linalg.det(cell)) ** (1 / 3)
    return scaled


def _orbits(
    count: int, symmetry: Operations, cell: Floats, rng: np.random.Generator
) -> Floats | None:
    """Fractional positions `(count, 3)` in complete orbits, or None if the random draws do not
    fit."""
    found = np.empty((0, 3))
    for _ in range(TRIES_PER_ATOM * count):
        reach = rng.uniform(0.0, 0.5) * np.cbrt(np.linalg.det(cell))
        place = _settled(rng.uniform(size=3), symmetry, cell, reach)
        orbit = _orbit(place, symmetry, count - len(found))
        if orbit is not None:
            found = np.concatenate([found, orbit])
        if len(found) == count:
            return found
    return None


def _settled(place: Floats, symmetry: Operations, cell: Floats, reach: float) -> Floats:
    """`place` moved to the centre of its images within `reach` Å."""
    for _ in range(3):
        apart = _images(place, symmetry) - place
        apart -= np.rint(apart)
        near = np.linalg.norm(apart @ cell, axis=1) <= reach
        place = place + apart[near].mean(axis=0)
    return place


def _orbit(place: Floats, symmetry: Operations, most: int) -> Floats | None:
    """Distinct images of `place` in one cell; None if there are more than `most`."""
    kept: list[Floats] = []
    for image in _images(place, symmetry):
        apart = np.array(kept).reshape(-1, 3) - image
        if not (np.abs(apart - np.rint(apart)) < SAME).all(axis=1).any():
            kept.append(image)
        if len(kept) > most:
            return None
    return np.array(kept)


def _images(place: Floats, symmetry: Operations) -> Floats:
    rotations, translations = symmetry
    images: Floats = rotations @ place + translations
    return images
