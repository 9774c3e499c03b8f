"""Calibrates `auto` trust levels from pairs of model deviation and true error.

A pair is (ε, ε̂): the committee's max force deviation of a frame, and the max-atom error of the same
committee on it, before it trained on that frame's label. Each level is the point where the isotonic
(non-decreasing) regression of an exceedance frequency on ε crosses a level; the crossing of
level a is the minimiser over t of Σ_{ε ≤ t} w (1[exceeds] − a) (T. Robertson, F. T. Wright,
R. L. Dykstra, Order Restricted Statistical Inference, 1988, ch. 1), which needs no model of how
error grows with deviation.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dpstream.shared.atoms.frames import Floats

MIN_PAIRS = 30
EXCEED = 0.05
"""Largest share of frames with deviation below `low` whose error exceeds the target."""
HOPELESS = 4.0
"""Above `high` the median error exceeds this multiple of the target."""
RATIO = 2.5
"""high/low as long as no pair determines `high`."""
MIN_RATIO = 1.5
"""Minimum high/low, so that there is always a range of candidates."""
STEP = 2.0
"""Largest change of a level from one version to the next, as a factor."""

Levels = tuple[float, float]
Bools = npt.NDArray[np.bool_]


def calibrate(
    eps: Floats,
    eps_hat: Floats,
    weights: Floats,
    target: float,
    current: Levels,
    min_pairs: int = MIN_PAIRS,
) -> tuple[float, float, str]:
    """(low, high, why) in eV/Å from pairs `eps (n,)`, `eps_hat (n,)` in eV/Å with `weights (n,)`
    (inverse inclusion probability; 1 for candidates), for a `target` error in eV/Å.

    low: the largest deviation up to which the error exceeds the target in at most 5 % of frames,
    evaluated locally near the level, so that many easy frames far below cannot compensate bad ones.
    high: the deviation at which the median error exceeds four times the target. Larger errors never
    raise a level. A level changes by at most a factor of two, and not at all with fewer than
    `min_pairs` usable pairs (finite ε, ε̂ a number). A level without contrary evidence may rise to
    the largest observed deviation but does not fall.
    """
    usable = np.isfinite(eps) & ~np.isnan(eps_hat) & np.isfinite(weights) & (weights > 0)
    pairs = int(usable.sum())
    if pairs < min_pairs:
        return (*current, f"{pairs} of {min_pairs} required pairs; levels unchanged")
    eps, eps_hat, weights = eps[usable], eps_hat[usable], weights[usable]
    wanted_low = _low(eps, eps_hat > target, weights, current)
    wanted_high = _high(eps, eps_hat > HOPELESS * target, weights, wanted_low)
    low, high = _within_a_step((wanted_low, wanted_high), current)
    return low, high, _why(pairs, target, (wanted_low, wanted_high), current, (low, high))


def _low(eps: Floats, exceeds: Bools, weights: Floats, current: Levels) -> float:
    crossing = _crossing(eps, exceeds, weights, EXCEED)
    return crossing if crossing < eps.max() else max(crossing, current[0])


def _high(eps: Floats, hopeless: Bools, weights: Floats, low: float) -> float:
    crossing = _crossing(eps, hopeless, weights, 0.5)
    return max(crossing, (MIN_RATIO if crossing < eps.max() else RATIO) * low)


def _crossing(eps: Floats, exceeds: Bools, weights: Floats, level: float) -> float:
    """The largest ε up to which the isotonic exceedance frequency is at most `level`; 0 if the
    frequency is above from the first pair on."""
    values, group = np.unique(eps, return_inverse=True)
    excess = np.bincount(group, weights * (exceeds - level))
    walk = np.concatenate([[0.0], np.cumsum(excess)])
    lowest = len(walk) - 1 - int(np.argmin(walk[::-1] - 1e-12))
    return float(values[lowest - 1]) if lowest else 0.0


def _within_a_step(wanted: Levels, current: Levels) -> Levels:
    low, high = (
        min(max(level, now / STEP), now * STEP) for level, now in zip(wanted, current, strict=True)
    )
    return low, max(high, low * min(MIN_RATIO, current[1] / current[0]))


def _why(pairs: int, target: float, wanted: Levels, current: Levels, levels: Levels) -> str:
    moved = ", ".join(
        f"{name} {before:.3g} -> {after:.3g}"
        for name, before, after in zip(("low", "high"), current, levels, strict=True)
    )
    return (
        f"{pairs} pairs: error within {target:g} eV/Å for 95 % up to a deviation of "
        f"{wanted[0]:.3g}, median error within {HOPELESS * target:g} eV/Å up to {wanted[1]:.3g}; "
        f"{moved}"
    )
