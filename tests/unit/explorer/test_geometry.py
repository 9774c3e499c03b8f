"""Geometry filters: each catches its fault and nothing else."""

import numpy as np
import pytest

from dpstream.services.explorer.selection.geometry import (
    COLLAPSED,
    NOT_FINITE,
    SKEWED,
    limits_for,
    refusal,
    skew,
)
from dpstream.shared.atoms.frames import Frame, min_distance


def reason_of(frame, limits):
    refused = refusal(frame, limits)
    return refused and refused.reason


METHANE = Frame(
    ("C", "H", "H", "H", "H"),
    np.array(
        [
            [0.0, 0.0, 0.0],
            [0.63, 0.63, 0.63],
            [-0.63, -0.63, 0.63],
            [-0.63, 0.63, -0.63],
            [0.63, -0.63, -0.63],
        ]
    ),
)
LIMITS = limits_for(("C", "H"), {}, 1.0)


def moved(frame, atom, position):
    positions = frame.positions.copy()
    positions[atom] = position
    return Frame(frame.species, positions, frame.cell)


def in_cell(frame, cell):
    return Frame(frame.species, frame.positions, np.array(cell, dtype=float))


def test_default_limits_are_half_the_sum_of_covalent_radii():
    assert LIMITS.pairs[("C", "H")] == pytest.approx(0.5 * (0.76 + 0.31))
    assert LIMITS.pairs[("H", "H")] == pytest.approx(0.31)


@pytest.mark.parametrize("pair", ["C-H", "H-C"])
def test_given_limits_hold_in_either_order(pair):
    limits = limits_for(("H", "C"), {pair: 1.2}, 1.0)
    assert refusal(METHANE, LIMITS) is None
    assert reason_of(METHANE, limits) == "C-H too close"


@pytest.mark.parametrize(("distance", "reason"), [(0.52, "C-H too close"), (0.55, None)])
def test_limit_of_a_pair_is_its_own(distance, reason):
    assert reason_of(moved(METHANE, 1, [distance / np.sqrt(3)] * 3), LIMITS) == reason


def test_the_pair_furthest_below_its_limit_is_named():
    frame = Frame(("C", "H", "H"), np.array([[0, 0, 0], [0.5, 0, 0], [0.5, 0.1, 0.0]]))
    assert reason_of(frame, LIMITS) == "H-H too close"


def test_close_pair_across_the_boundary_is_seen():
    frame = Frame(("H", "H"), np.array([[0.05, 0.0, 0.0], [9.85, 0.0, 0.0]]))
    assert refusal(frame, LIMITS) is None
    assert reason_of(in_cell(frame, np.eye(3) * 10), LIMITS) == "H-H too close"


def test_an_atom_too_close_to_its_own_image_is_seen():
    frame = Frame(("H",), np.zeros((1, 3)), np.diag([0.25, 10.0, 10.0]))
    assert reason_of(frame, LIMITS) == "H-H too close"


@pytest.mark.slow
def test_distances_agree_with_the_shortest_distance_of_random_skewed_cells():
    rng = np.random.default_rng(5)
    verdicts = []
    for _ in range(40):
        cell = np.tril(rng.uniform(-1.5, 1.5, (3, 3)), -1) + np.diag(rng.uniform(2, 4, 3))
        frame = Frame(("H",) * 4, rng.uniform(0, 1, (4, 3)) @ cell, cell)
        limits = limits_for(("H",), {"H-H": 0.8}, 5.0)
        verdicts.append(refusal(frame, limits) is not None)
        assert verdicts[-1] == (min_distance(frame) < 0.8)
    assert 5 < sum(verdicts) < 35


def test_skew_is_the_largest_tilt_over_the_length_it_tilts_along():
    assert skew(np.array([[4.0, 0, 0], [3.0, 5, 0], [0, 0, 6]])) == pytest.approx(0.75)
    assert skew(np.array([[4.0, 0, 0], [0, 5, 0], [0, -4.5, 6]])) == pytest.approx(0.9)


def test_skew_does_not_depend_on_orientation():
    rng = np.random.default_rng(1)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    cell = np.array([[4.0, 0, 0], [1.0, 5, 0], [-2.0, 0.5, 6]])
    assert skew(cell @ rotation) == pytest.approx(skew(cell))


@pytest.mark.parametrize(("tilt", "reason"), [(9.9, None), (-9.9, None), (10.2, SKEWED)])
def test_boxes_are_refused_above_the_largest_skew_only(tilt, reason):
    frame = in_cell(METHANE, [[10, 0, 0], [tilt, 10, 0], [0, 0, 10]])
    assert reason_of(frame, LIMITS) == reason


@pytest.mark.parametrize("flat", [np.zeros((3, 3)), np.diag([10.0, 10.0, 1e-9])])
def test_a_collapsed_cell_is_refused_without_building_neighbour_lists(flat):
    assert reason_of(in_cell(METHANE, flat), LIMITS) == COLLAPSED


def test_what_is_not_a_number_is_refused():
    assert reason_of(moved(METHANE, 2, [np.nan, 0, 0]), LIMITS) == NOT_FINITE
    assert reason_of(in_cell(METHANE, np.full((3, 3), np.inf)), LIMITS) == NOT_FINITE


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (moved(METHANE, 1, [0.3, 0, 0]), "C-H too close: 0.3 Å, at least 0.535 Å"),
        (
            in_cell(METHANE, [[10, 0, 0], [12, 10, 0], [0, 0, 10]]),
            "skewed cell: tilt 1.2, at most 1",
        ),
        (in_cell(METHANE, np.zeros((3, 3))), "collapsed cell: 0 Å high, at least 0.1 Å"),
    ],
)
def test_a_refusal_tells_what_was_measured(frame, words):
    assert str(refusal(frame, LIMITS)) == words
