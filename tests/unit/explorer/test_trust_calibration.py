"""Trust levels from pairs of deviation and error: committees whose truth is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpstream.services.explorer.statistics.trust_calibration import calibrate
from tests.support.soak import examples

TARGET = 0.2


def spread(n=200, seed=3, top=1.0):
    """Deviations spread evenly over (0, top) eV/Å."""
    return np.sort(np.random.default_rng(seed).uniform(0, top, n))


def settle(eps, eps_hat, current, weights=None, versions=8):
    """Levels after several versions with the same pairs: where the clamp leads."""
    weights = np.ones(len(eps)) if weights is None else weights
    for _ in range(versions):
        low, high, _ = calibrate(eps, eps_hat, weights, TARGET, current)
        current = (low, high)
    return current


def test_a_calibrated_committee_gets_the_levels_its_ratio_implies():
    eps = spread()
    low, high = settle(eps, 2 * eps, (0.1, 0.3))
    assert low == pytest.approx(TARGET / 2, abs=0.02)
    assert high == pytest.approx(4 * TARGET / 2, abs=0.02)


def test_noise_makes_the_level_stricter_than_the_mean_relation():
    eps = spread(2000)
    noisy = 2 * eps * np.random.default_rng(0).lognormal(0, 0.4, len(eps))
    low, _ = settle(eps, noisy, (0.1, 0.3))
    # 95 % of exp(0.4 z) lie below 1.93: the level where 5 % exceed is target / (2 x 1.93).
    assert low == pytest.approx(TARGET / 2 / 1.93, rel=0.2)


def test_an_overconfident_committee_gets_lower_levels():
    eps = spread()
    low, high = settle(eps, 8 * eps, (0.1, 0.3))
    assert low == pytest.approx(TARGET / 8, abs=0.01)
    assert low < high < 0.2


def test_a_useless_committee_is_driven_down_step_by_step():
    eps = spread()
    error = np.random.default_rng(1).uniform(0, 2 * TARGET, len(eps))
    low, high, _ = calibrate(eps, error, np.ones(len(eps)), TARGET, (0.2, 0.5))
    assert low == pytest.approx(0.1)
    low, high = settle(eps, error, (0.2, 0.5))
    assert low < 0.03
    assert high > low


def test_a_perfect_committee_is_allowed_what_was_seen_and_no_more():
    eps = spread(top=0.5)
    low, high, _ = calibrate(eps, eps * 0.1, np.ones(len(eps)), TARGET, (0.1, 0.3))
    assert low == pytest.approx(0.2)
    low, high = settle(eps, eps * 0.1, (0.1, 0.3))
    assert low == pytest.approx(eps.max())
    assert high > low


def test_levels_move_by_a_factor_of_two_at_most():
    eps = spread()
    for slope in (0.01, 0.5, 3.0, 100.0):
        low, high, _ = calibrate(eps, slope * eps, np.ones(len(eps)), TARGET, (0.1, 0.3))
        assert 0.05 - 1e-12 <= low <= 0.2 + 1e-12
        assert 0.15 - 1e-12 <= high <= 0.6 + 1e-12


def test_too_few_pairs_change_nothing_and_nan_is_no_pair():
    eps = spread(40)
    error = 8 * eps
    error[:11] = np.nan
    low, high, why = calibrate(eps, error, np.ones(40), TARGET, (0.1, 0.3))
    assert (low, high) == (0.1, 0.3)
    assert "29 of 30 required pairs" in why
    error[0] = 0.0
    assert calibrate(eps, error, np.ones(40), TARGET, (0.1, 0.3))[0] < 0.1


def test_an_infinite_error_counts_against_the_level():
    eps = spread()
    low, _, _ = calibrate(eps, np.where(eps > 0.07, np.inf, 0.0), np.ones(200), TARGET, (0.1, 0.3))
    assert 0.05 < low <= 0.07


def test_many_easy_frames_far_below_do_not_hide_bad_ones_near_the_level():
    eps = np.concatenate([np.linspace(0.001, 0.01, 1000), np.linspace(0.05, 0.5, 60)])
    error = np.concatenate([np.zeros(1000), np.full(60, 2 * TARGET)])
    low, _ = settle(eps, error, (0.1, 0.3))
    # The overall frequency up to eps = 0.4 is still below 5 %; the level must not follow it.
    assert low <= 0.0101


def test_weights_count():
    eps, error = np.linspace(0.01, 0.5, 100), np.zeros(100)
    error[19] = 1.0  # one bad frame at 0.109 among good ones up to there and beyond
    light = settle(eps, error, (0.1, 0.3), np.ones(100))[0]
    heavy = settle(eps, error, (0.1, 0.3), np.where(np.arange(100) == 19, 50.0, 1.0))[0]
    assert light > 0.3
    assert heavy < 0.11


def test_the_reason_names_pairs_target_and_both_changes():
    eps = spread(50)
    why = calibrate(eps, 2 * eps, np.ones(50), TARGET, (0.1, 0.3))[2]
    assert "50 pairs" in why
    assert "low 0.1 ->" in why
    assert "high 0.3 ->" in why


@pytest.mark.slow
@examples(200, usual=50)
@given(
    pairs=st.lists(
        st.tuples(st.floats(0.001, 3), st.floats(0, 3), st.floats(0.5, 40)),
        min_size=30,
        max_size=80,
    ),
    growth=st.floats(1, 5),
    low=st.floats(0.02, 0.5),
    ratio=st.floats(1.05, 6),
)
def test_larger_errors_never_raise_a_level_and_the_window_stays_open(pairs, growth, low, ratio):
    eps, error, weights = (np.array(column) for column in zip(*pairs, strict=True))
    current = (low, ratio * low)
    before = calibrate(eps, error, weights, TARGET, current)
    after = calibrate(eps, error * growth, weights, TARGET, current)
    for a, b in ((after[0], before[0]), (after[1], before[1])):
        assert a <= b + 1e-12
    for found in (before, after):
        assert found[1] >= found[0] * min(1.5, ratio) * (1 - 1e-9)
        for level, now in zip(found[:2], current, strict=True):
            assert now / 2 * (1 - 1e-9) <= level <= now * 2 * (1 + 1e-9)
