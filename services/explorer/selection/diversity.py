"""Farthest-point sampling over atomic environments.

The distance of a frame from the picked frames is the largest nearest-neighbour distance of its
atoms, i.e. the directed Hausdorff distance to all picked atoms. A Deep Potential is a sum over
atoms: a single unusual atom therefore counts fully, and an environment that occurs in any picked
frame counts as known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpstream.shared.atoms.frames import Floats, Ints

ROWS = 8192
"""Atoms compared at once, to bound memory."""


@dataclass(frozen=True, eq=False)
class Environments:
    """Atomic environments of a list of frames.

    species[k]: `(n_atoms,)`; descriptors[k]: `(n_atoms, n_features)`; deviations[k]: `(n_atoms,)`
    force deviation per atom, in the unit of low[k], the frame's lower trust level.
    """

    species: Sequence[Sequence[str]]
    descriptors: Sequence[Floats]
    deviations: Sequence[Floats]
    low: Sequence[float]

    def uncertain(self, frame: int) -> list[int]:
        """Atoms of `frame` with deviation ≥ low; the worst atom where none is (a frame can be a
        candidate by its virial alone)."""
        deviation = self.deviations[frame]
        atoms = np.flatnonzero(deviation >= self.low[frame])
        return [int(a) for a in atoms] if len(atoms) else [int(np.argmax(deviation))]


@dataclass(eq=False)
class _Element:
    """Uncertain atoms of one element: standardised descriptors `(n, n_features)`, the frame each
    belongs to `(n,)`, distance to the nearest picked atom `(n,)`."""

    points: Floats
    owners: Ints
    nearest: Floats


class FarthestPoint:
    """Distances of frames from a growing set of picked frames."""

    def __init__(self, environments: Environments) -> None:
        self._frames = len(environments.species)
        self._elements = _by_element(environments)

    def distances(self) -> Floats:
        """`(n_frames,)`: largest nearest-neighbour distance of each frame's uncertain atoms to the
        picked ones of the same element, in standard deviations; inf where there are none."""
        result = np.zeros(self._frames)
        for element in self._elements:
            np.maximum.at(result, element.owners, element.nearest)
        return result

    def pick(self, frame: int) -> None:
        """Add a frame to the picked frames."""
        for element in self._elements:
            picked = element.points[element.owners == frame]
            if len(picked):
                nearest = _nearest(element.points, picked)
                element.nearest = np.minimum(element.nearest, nearest)


def _by_element(environments: Environments) -> list[_Element]:
    rows: dict[str, list[Floats]] = {}
    owners: dict[str, list[int]] = {}
    for frame, species in enumerate(environments.species):
        for atom in environments.uncertain(frame):
            rows.setdefault(species[atom], []).append(environments.descriptors[frame][atom])
            owners.setdefault(species[atom], []).append(frame)
    return [
        _Element(
            _standardised(np.array(rows[e], dtype=np.float64)),
            np.array(owners[e], dtype=np.int64),
            np.full(len(rows[e]), np.inf),
        )
        for e in sorted(rows)
    ]


def _standardised(points: Floats) -> Floats:
    """Every feature with mean 0 and standard deviation 1; features that do not vary become 0."""
    spread = points.std(axis=0)
    varies = spread > 1e-9 * np.abs(points).max(initial=1e-300)
    centred = np.where(varies, points - points.mean(axis=0), 0.0)
    result: Floats = centred / np.where(varies, spread, 1.0)
    return result


def _nearest(points: Floats, picked: Floats) -> Floats:
    """Distance of each point `(n, f)` to the nearest of `picked` `(m, f)`."""
    from scipy.spatial.distance import cdist  # deferred: slow to import

    blocks = [points[i : i + ROWS] for i in range(0, len(points), ROWS)]
    return np.concatenate([cdist(block, picked).min(axis=1) for block in blocks])
