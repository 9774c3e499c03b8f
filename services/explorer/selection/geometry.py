"""Geometry filters: refuse frames that no first-principles code should compute.

Each filter returns None if the frame may be used, or a refusal. There are few distinct reasons, so
that refusals can be counted by reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from dpstream.shared.atoms.frames import Floats, Frame, to_ase

COVALENT_SHARE = 0.5
"""Default minimum distance of a pair, relative to the sum of its covalent radii."""
MIN_HEIGHT = 0.1
"""Å; flatter cells are refused (their neighbour lists would be extremely long)."""

NOT_FINITE = "not finite"
COLLAPSED = "collapsed cell"
SKEWED = "skewed cell"


@dataclass(frozen=True)
class Refusal:
    """Reason why a frame is not used; `detail`: the measured value and the limit."""

    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class GeometryLimits:
    """`pairs`: minimum distance in Å by pair of chemical symbols (sorted); `max_skew`: largest
    tilt of a cell over the length it tilts along."""

    pairs: Mapping[tuple[str, str], float]
    max_skew: float


def limits_for(
    elements: Iterable[str], min_distance: Mapping[str, float], skew: float
) -> GeometryLimits:
    """Limits for frames of these elements. `min_distance` is the spec's: Å by pair such as `C-H`,
    in either order; default: half the sum of the covalent radii (Cordero et al., Dalton Trans.
    2008, as tabulated by ASE)."""
    given = {tuple(sorted(pair.split("-"))): limit for pair, limit in min_distance.items()}
    symbols = sorted(set(elements))
    pairs = {
        (a, b): given.get((a, b), COVALENT_SHARE * (_covalent_radius(a) + _covalent_radius(b)))
        for i, a in enumerate(symbols)
        for b in symbols[i:]
    }
    return GeometryLimits(pairs, skew)


def refusal(frame: Frame, limits: GeometryLimits) -> Refusal | None:
    """Reason why `frame` may not be used, or None. Inexpensive tests come first and also keep
    invalid cells from the neighbour list."""
    if not (np.isfinite(frame.positions).all() and _cell_is_finite(frame)):
        return Refusal(NOT_FINITE)
    return cell_refusal(frame, limits.max_skew) or distance_refusal(frame, limits.pairs)


def cell_refusal(frame: Frame, max_skew: float) -> Refusal | None:
    """`skewed cell` when the largest tilt over the length it tilts along is above `max_skew`;
    None for a molecule."""
    if frame.cell is None:
        return None
    if (height := _smallest_height(frame.cell)) < MIN_HEIGHT:
        return Refusal(COLLAPSED, f"{height:.3g} Å high, at least {MIN_HEIGHT:g} Å")
    if (tilt := skew(frame.cell)) > max_skew:
        return Refusal(SKEWED, f"tilt {tilt:.3g}, at most {max_skew:g}")
    return None


def skew(cell: Floats) -> float:
    """The largest of |xy|/lx, |xz|/lx and |yz|/ly of the cell `(3, 3)` in LAMMPS's restricted
    form, for any orientation of the cell."""
    _, upper = np.linalg.qr(cell.T)
    restricted = np.abs(upper.T)
    lengths = np.diag(restricted)
    return float(np.max(np.tril(restricted, -1) / lengths))


def distance_refusal(frame: Frame, pairs: Mapping[tuple[str, str], float]) -> Refusal | None:
    """`A-B too close` for the pair furthest below its limit, including periodic images; or None."""
    from ase.neighborlist import neighbor_list  # deferred: ASE is slow to import

    i, j, distance = neighbor_list("ijd", to_ase(frame), dict(pairs))
    if not len(distance):
        return None
    found = [_pair(frame.species[a], frame.species[b]) for a, b in zip(i, j, strict=True)]
    worst = int(np.argmin([d / pairs[pair] for d, pair in zip(distance, found, strict=True)]))
    pair = found[worst]
    detail = f"{distance[worst]:.3g} Å, at least {pairs[pair]:.3g} Å"
    return Refusal(f"{pair[0]}-{pair[1]} too close", detail)


def _pair(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a <= b else (b, a)


def _cell_is_finite(frame: Frame) -> bool:
    return frame.cell is None or bool(np.isfinite(frame.cell).all())


def _smallest_height(cell: Floats) -> float:
    """Å; smallest distance between opposite faces of the cell."""
    volume = abs(float(np.linalg.det(cell)))
    areas = [np.linalg.norm(np.cross(cell[i - 2], cell[i - 1])) for i in range(3)]
    largest = float(max(areas))
    return volume / largest if largest > 0 else 0.0


@cache
def _covalent_radius(symbol: str) -> float:
    from ase.data import atomic_numbers, covalent_radii  # deferred with the rest of ASE

    return float(covalent_radii[atomic_numbers[symbol]])
