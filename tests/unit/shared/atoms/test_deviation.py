"""Model deviation and verdicts, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpstream.shared.atoms.deviation import (
    BINS,
    count,
    force_deviation,
    histogram,
    max_force_deviation,
    max_force_error,
    mean_square_error,
    verdict,
    virial_deviation,
)
from dpstream.shared.values import Counts, Trust

TRUST = Trust(low=0.1, high=0.3)
BOTH = Trust(low=0.1, high=0.3, low_v=0.01, high_v=0.05)


def two_models() -> np.ndarray:
    """Two models, two atoms: atom 0 differs by (0.6, 0, 0.8), atom 1 by nothing."""
    forces = np.ones((2, 2, 3))
    forces[1, 0] += [0.6, 0.0, 0.8]
    return forces


def test_force_deviation_is_the_norm_of_population_deviations() -> None:
    # Two values d apart deviate by d/2 (1/N); with 1/(N-1) it would be d/sqrt(2).
    np.testing.assert_allclose(force_deviation(two_models()), [0.5, 0.0], atol=1e-15)
    assert max_force_deviation(two_models()) == pytest.approx(0.5)


def test_relative_force_deviation_divides_by_the_mean_force() -> None:
    mean = np.linalg.norm([1.3, 1.0, 1.4])
    relative = force_deviation(two_models(), relative=0.2)
    np.testing.assert_allclose(relative, [0.5 / (mean + 0.2), 0.0], atol=1e-15)


def test_virial_deviation_is_the_largest_component_per_atom() -> None:
    virials = np.zeros((2, 3, 3))
    virials[1, 0, 1] = 8.0
    virials[1, 2, 2] = -16.0
    assert virial_deviation(virials, n_atoms=4) == pytest.approx(2.0)
    # Relative, component by component: 1/(1 + 0.5) and 2/(2 + 0.5).
    assert virial_deviation(virials, 4, relative=0.5) == pytest.approx(0.8)


def test_everything_is_vectorised_over_frames() -> None:
    rng = np.random.default_rng(3)
    forces, reference = rng.normal(size=(4, 6, 5, 3)), rng.normal(size=(6, 5, 3))
    virials = rng.normal(size=(4, 6, 3, 3))
    assert force_deviation(forces).shape == (6, 5)
    for frame in range(6):
        one = forces[:, frame]
        assert max_force_deviation(forces)[frame] == max_force_deviation(one)
        assert virial_deviation(virials, 5)[frame] == virial_deviation(virials[:, frame], 5)
        error = max_force_error(forces, reference)[frame]
        assert error == pytest.approx(float(max_force_error(one, reference[frame])))


def test_errors_against_a_reference() -> None:
    forces, reference = np.zeros((2, 2, 3)), np.zeros((2, 3))
    forces[0, 1] = [3.0, 0.0, 4.0]  # one of two members is 5 eV/Å off on atom 1
    assert max_force_error(forces, reference) == pytest.approx(math.sqrt(25 / 2))
    assert mean_square_error(forces, reference) == pytest.approx(25 / 12)


@pytest.mark.parametrize(
    ("eps_f", "eps_v", "expected"),
    [
        (0.0999, 0.0, "accurate"),
        (0.1, 0.0, "candidate"),
        (0.2999, 0.0, "candidate"),
        (0.3, 0.0, "failed"),
        (0.0, 0.01, "candidate"),
        (0.0, 0.05, "failed"),
        (0.2, 0.05, "failed"),  # candidate first, as DP-GEN tests, would keep it
        (0.0, None, "accurate"),
        (math.nan, 0.0, "failed"),
        (0.0, math.nan, "failed"),
        (math.inf, 0.0, "failed"),
    ],
)
def test_verdict(eps_f: float, eps_v: float | None, expected: str) -> None:
    assert verdict(eps_f, eps_v, BOTH) == expected


def test_virial_is_not_judged_without_levels() -> None:
    assert verdict(0.05, 99.0, TRUST) == "accurate"
    assert verdict(0.05, math.nan, TRUST) == "accurate"


def test_histogram_loses_no_frame() -> None:
    values = np.array([0.0, 1e-5, 1e-4, 0.1, 99.0, 1e3, math.inf, math.nan])
    counts = histogram(values)
    assert len(counts) == len(BINS) - 1 == 48
    assert counts.sum() == len(values)
    assert counts[0] == 3
    assert counts[-1] == 4
    assert histogram(np.empty(0)).sum() == 0


def test_count() -> None:
    verdicts = ["accurate", "failed", "failed"]
    assert count(verdicts) == Counts(accurate=1, candidate=0, failed=2)  # type: ignore[arg-type]
