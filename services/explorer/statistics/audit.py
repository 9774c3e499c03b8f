"""Statistics of audit frames: the committee's true force error, and the probability that a frame
judged accurate exceeds the error target, each with a 95 % upper bound.

Frames of one trajectory are correlated, so the bounds resample trajectories, not frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpstream.shared.atoms.frames import Floats, Ints

RESAMPLES = 2000
CONFIDENCE = 0.95

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class AuditSummary:
    """`frames`, `trajectories`: numbers used (frames not judged failed); `force`:
    RMSE of force components, eV/Å; `exceed`: P(max-atom error > target | accurate); `_upper`: 95 %
    upper bounds; `deviation_over_error`: mean deviation / mean max-atom error, 0 without data."""

    frames: int
    trajectories: int
    force: float
    force_upper: float
    exceed: float
    exceed_upper: float
    deviation_over_error: float


def summarise(
    squared: Floats,
    max_error: Floats,
    accurate: Bools,
    judged_failed: Bools,
    weights: Floats,
    origins: Sequence[str],
    deviation: Floats,
    target: float,
    seed: int,
) -> AuditSummary:
    """Audit statistics of one committee.

    Per frame, all `(n,)`: `squared` mean square force-component error over atoms and members,
    (eV/Å)²; `max_error` max-atom error, eV/Å; `accurate`, `judged_failed` the committee's verdict;
    `weights` inverse inclusion probability; `origins` trajectory; `deviation` max force deviation,
    eV/Å. `target`: eV/Å. An error that is not a number counts as infinite. Without frames, and for
    a single trajectory, the upper bounds are inf and 1, since other trajectories are unknown.
    """
    kept = np.flatnonzero(~judged_failed)
    squared, max_error = _nan_is_inf(squared[kept]), _nan_is_inf(max_error[kept])
    weights, deviation = weights[kept], deviation[kept]
    _, groups = np.unique(np.array(origins, dtype=np.str_)[kept], return_inverse=True)
    sure = accurate[kept]
    wrong = (max_error[sure] > target).astype(np.float64)
    force, force_upper = _force(squared, weights, groups, seed)
    exceed, exceed_upper = _exceed(wrong, max_error[sure], weights[sure], groups[sure], seed)
    return AuditSummary(
        frames=len(kept),
        trajectories=len(np.unique(groups)),
        force=force,
        force_upper=force_upper,
        exceed=exceed,
        exceed_upper=exceed_upper,
        deviation_over_error=_ratio(deviation, max_error, weights),
    )


def _force(squared: Floats, weights: Floats, groups: Ints, seed: int) -> tuple[float, float]:
    mean = _mean(squared, weights)
    return float(np.sqrt(mean)), float(np.sqrt(upper_mean(squared, weights, groups, seed)))


def _exceed(
    wrong: Floats, error: Floats, weights: Floats, groups: Ints, seed: int
) -> tuple[float, float]:
    """P(error > target | accurate) and its upper bound: the larger of the bootstrap bound, which
    includes correlations, and `upper_share`, which is valid for few exceedances."""
    if not len(wrong):
        return 1.0, 1.0
    share = _mean(wrong, weights)
    bootstrap = upper_mean(wrong, weights, groups, seed)
    exact = upper_share(share, effective_frames(error, weights, groups))
    return share, min(1.0, max(bootstrap, exact))


def upper_mean(values: Floats, weights: Floats, groups: Ints, seed: int) -> float:
    """95 % upper bound of the weighted mean of `values (n,)`, by resampling `groups (n,)` with
    replacement; inf with fewer than two groups.

    The quantile is expanded for few groups, to Φ(t · sqrt(g/(g−1))) with t the 95 % point of
    Student's t with g−1 degrees: plain percentiles are too narrow (T. C. Hesterberg, What Teachers
    Should Know About the Bootstrap, Am. Stat. 69, 371, 2015, section 3.3).
    """
    from scipy.special import ndtr, stdtrit  # deferred: slow to import

    _, group = np.unique(groups, return_inverse=True)
    count = int(group.max()) + 1 if len(group) else 0
    if count < 2:
        return float("inf")
    if not np.isfinite(values).all():
        return float("inf")
    sums = np.bincount(group, weights * values)
    sizes = np.bincount(group, weights)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    means = (draws @ sums) / (draws @ sizes)
    quantile = ndtr(stdtrit(count - 1, CONFIDENCE) * np.sqrt(count / (count - 1)))
    return max(float(np.quantile(means, quantile)), _mean(values, weights))


def upper_share(share: float, frames: float) -> float:
    """95 % upper bound of an observed proportion `share` among an effective number of `frames`: the
    Clopper–Pearson bound with real-valued counts (E. L. Korn, B. I. Graubard, Survey Methodology
    24, 193, 1998). Without occurrences it is the rule of three, 1 − 0.05^(1/frames) ≈ 3/frames."""
    from scipy.special import betaincinv  # deferred: slow to import

    seen = share * frames
    if frames <= 0 or frames - seen <= 0:
        return 1.0
    return float(betaincinv(seen + 1, frames - seen, CONFIDENCE))


def effective_frames(error: Floats, weights: Floats, groups: Ints) -> float:
    """Effective number of independent, equally weighted frames: Kish's (Σw)²/Σw² divided by the
    design effect 1 + (m − 1) ρ of m frames per trajectory (L. Kish, Survey Sampling, 1965).

    ρ is the intra-trajectory correlation of log error, which can be estimated even when no frame
    exceeds the target. Fully correlated frames of a trajectory count as one frame, uncorrelated
    frames individually."""
    _, group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group)
    kish = float(weights.sum() ** 2 / np.square(weights).sum())
    crowd = float(np.square(sizes).sum() / sizes.sum())
    return kish / (1 + (crowd - 1) * _intra_correlation(error, group))


def _intra_correlation(error: Floats, group: Ints) -> float:
    """One-way analysis-of-variance estimate of ρ for log error, clipped to [0, 1]; 1 if the groups
    are too few or too small for an estimate."""
    finite = np.isfinite(error)
    logs = np.log(np.clip(error[finite], 1e-12, None))
    _, group = np.unique(group[finite], return_inverse=True)
    count, total = (int(group.max()) + 1 if len(group) else 0), len(group)
    if count < 2 or total <= count:
        return 1.0
    sizes = np.bincount(group)
    means = np.bincount(group, logs) / sizes
    between = float(sizes @ np.square(means - logs.mean())) / (count - 1)
    within = float(np.square(logs - means[group]).sum()) / (total - count)
    size = (total - float(np.square(sizes).sum()) / total) / (count - 1)
    spread = between + (size - 1) * within
    return min(max((between - within) / spread, 0.0), 1.0) if spread > 0 else 1.0


def _ratio(deviation: Floats, max_error: Floats, weights: Floats) -> float:
    known = np.isfinite(deviation) & np.isfinite(max_error)
    error = float(weights[known] @ max_error[known])
    return float(weights[known] @ deviation[known]) / error if error > 0 else 0.0


def _mean(values: Floats, weights: Floats) -> float:
    return float((weights @ values) / weights.sum()) if len(values) else float("inf")


def _nan_is_inf(values: Floats) -> Floats:
    result: Floats = np.where(np.isnan(values), np.inf, values)
    return result
