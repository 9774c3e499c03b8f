"""Audit statistics: bounds that know trajectories, and never claim what was not seen."""

import math

import numpy as np
import pytest

from dpstream.services.explorer.statistics.audit import (
    effective_frames,
    summarise,
    upper_mean,
    upper_share,
)


def audit(squared, origins, *, error=None, accurate=None, failed=None, weights=None, eps=None):
    squared = np.asarray(squared, dtype=float)
    n = len(squared)
    error = 2 * np.sqrt(squared) if error is None else np.asarray(error, dtype=float)
    return summarise(
        squared,
        error,
        np.ones(n, bool) if accurate is None else np.asarray(accurate),
        np.zeros(n, bool) if failed is None else np.asarray(failed),
        np.ones(n) if weights is None else np.asarray(weights, dtype=float),
        list(origins),
        error / 2 if eps is None else np.asarray(eps, dtype=float),
        target=0.5,
        seed=1,
    )


def correlated(trajectories=10, frames=6, seed=0):
    """Frames of one trajectory share most of their error."""
    rng = np.random.default_rng(seed)
    own = rng.lognormal(-5, 1.0, trajectories)
    squared = (own[:, None] * rng.lognormal(0, 0.1, (trajectories, frames))).ravel()
    return squared, [f"t{i}" for i in range(trajectories) for _ in range(frames)]


def test_force_is_the_weighted_root_mean_square():
    summary = audit([0.01, 0.04], ["a", "b"], weights=[3, 1])
    assert summary.force == pytest.approx(math.sqrt(0.07 / 4))
    assert (summary.frames, summary.trajectories) == (2, 2)


def test_resampling_frames_instead_of_trajectories_would_claim_too_much():
    squared, origins = correlated()
    by_trajectory = audit(squared, origins)
    by_frame = audit(squared, [str(i) for i in range(len(squared))])
    assert by_frame.force == pytest.approx(by_trajectory.force)
    margin = by_trajectory.force_upper - by_trajectory.force
    assert margin > 1.5 * (by_frame.force_upper - by_frame.force)


def test_the_bound_holds_about_as_often_as_it_says():
    rng = np.random.default_rng(7)
    truth, held, runs = math.exp(0.25), 0, 200
    for run in range(runs):
        own = rng.lognormal(0, 0.5, 8)
        values = np.repeat(own, 4) * rng.lognormal(0, 0.5, 32)
        held += upper_mean(values, np.ones(32), np.repeat(np.arange(8), 4), run) >= truth
    assert 0.85 <= held / runs <= 0.99


def test_one_hot_trajectory_widens_the_bound():
    squared, origins = np.full(40, 1e-3), [f"t{i // 4}" for i in range(40)]
    calm = audit(squared, origins)
    hot = squared.copy()
    hot[:4] = 0.1
    heated = audit(hot, origins)
    assert calm.force_upper == pytest.approx(calm.force)
    assert heated.force_upper - heated.force > 0.3 * heated.force


def test_failed_frames_are_left_out_and_not_counted():
    summary = audit([0.01, 0.01, 9.0], ["a", "b", "c"], failed=[False, False, True])
    assert summary.force == pytest.approx(0.1)
    assert (summary.frames, summary.trajectories) == (2, 2)


def test_exceedance_is_judged_among_accurate_frames_only_and_weighted():
    summary = audit(
        [0.01] * 4,
        "abcd",
        error=[0.9, 0.1, 0.1, 0.9],
        accurate=[True, True, True, False],
        weights=[1, 2, 1, 50],
    )
    assert summary.exceed == pytest.approx(0.25)


def test_no_exceedance_seen_is_not_no_exceedance():
    summary = audit(np.full(30, 1e-3), [f"t{i}" for i in range(30)])
    assert summary.exceed == 0
    assert summary.exceed_upper == pytest.approx(1 - 0.05 ** (1 / 30), rel=1e-6)


def test_frames_that_share_their_error_count_as_one():
    squared, origins = correlated(trajectories=10, frames=6)
    alike = audit(squared * 0.01, origins)
    apart = audit(squared * 0.01, [str(i) for i in range(60)])
    assert alike.exceed_upper == pytest.approx(1 - 0.05 ** (1 / 10), rel=0.1)
    assert apart.exceed_upper == pytest.approx(1 - 0.05 ** (1 / 60), rel=1e-6)


def test_unequal_weights_make_the_bound_wider():
    origins = [f"t{i}" for i in range(30)]
    even = audit(np.full(30, 1e-3), origins)
    uneven = audit(np.full(30, 1e-3), origins, weights=[100] + [1] * 29)
    assert uneven.exceed_upper > 2 * even.exceed_upper


def test_exceedances_in_one_trajectory_widen_more_than_the_same_number_spread_out():
    origins = [f"t{i // 5}" for i in range(50)]
    clustered, scattered = np.full(50, 0.1), np.full(50, 0.1)
    clustered[:5] = 0.9
    scattered[::10] = 0.9
    assert (
        audit(np.full(50, 0.01), origins, error=clustered).exceed_upper
        > audit(np.full(50, 0.01), origins, error=scattered).exceed_upper
    )


def test_effective_frames_lie_between_trajectories_and_frames():
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(20), 5)
    error = np.repeat(rng.lognormal(0, 0.5, 20), 5) * rng.lognormal(0, 0.5, 100)
    assert 20 < effective_frames(error, np.ones(100), groups) < 100
    assert effective_frames(rng.lognormal(0, 1, 100), np.ones(100), groups) > 60


def test_upper_share_is_clopper_and_pearson():
    assert upper_share(0.1, 20) == pytest.approx(0.2826, abs=1e-3)  # 2 of 20
    assert upper_share(1.0, 5) == 1.0


@pytest.mark.parametrize("failed", [[], [True, True]])
def test_nothing_to_go_by_bounds_nothing(failed):
    summary = audit([0.01] * len(failed), "ab"[: len(failed)], failed=np.array(failed, dtype=bool))
    assert (summary.frames, summary.trajectories) == (0, 0)
    assert math.isinf(summary.force)
    assert math.isinf(summary.force_upper)
    assert (summary.exceed, summary.exceed_upper) == (1.0, 1.0)
    assert summary.deviation_over_error == 0.0


def test_one_trajectory_says_nothing_about_the_others():
    summary = audit(np.full(50, 1e-4), ["a"] * 50)
    assert summary.force == pytest.approx(0.01)
    assert math.isinf(summary.force_upper)
    assert summary.exceed_upper == 1.0


def test_an_error_that_is_not_a_number_is_infinite():
    summary = audit([0.01, np.nan, 0.01], "abc", error=[0.1, np.nan, 0.1])
    assert math.isinf(summary.force)
    assert math.isinf(summary.force_upper)
    assert summary.exceed == pytest.approx(1 / 3)


def test_deviation_over_error_is_a_ratio_of_weighted_means():
    summary = audit([0.01, 0.01], "ab", error=[0.2, 0.4], eps=[0.1, 0.1], weights=[3, 1])
    assert summary.deviation_over_error == pytest.approx(0.4 / 1.0)


def test_equal_seeds_give_equal_bounds():
    squared, origins = correlated()
    assert audit(squared, origins) == audit(squared, origins)
    shuffled = np.random.default_rng(3).permutation(len(squared))
    again = audit(squared[shuffled], [origins[i] for i in shuffled])
    assert again.force_upper == pytest.approx(audit(squared, origins).force_upper)
