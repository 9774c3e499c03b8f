"""Batch selection: caps, spacing, balance, diversity, the audit's draw."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpstream.services.explorer.selection import choose as selection
from dpstream.services.explorer.selection.audit_draw import AuditRules, draw_audit
from dpstream.services.explorer.selection.choose import (
    DUPLICATE,
    NEAR,
    NO_DEVIATION,
    OVER,
    OVER_SYSTEM,
    SHARE,
    TOO_FEW,
    Candidate,
    SelectionRules,
    choose,
)
from dpstream.services.explorer.selection.diversity import Environments
from dpstream.shared.values import Condition
from tests.support.soak import examples

COLD, HOT = Condition(system="ch4", temperature=50), Condition(system="ch4", temperature=600)
WATER = Condition(system="water", temperature=300, pressure=1.0)


def candidate(number, trajectory="t0", time=0.0, condition=COLD, **more):
    values = {"version": 1, "planned_ps": 1.0, "deviation": 0.2, "item": 0, "row": number}
    return Candidate(
        key=f"{number:032x}",
        trajectory=trajectory,
        condition=condition,
        time_ps=time,
        **{**values, **more},
    )


def keys(selected):
    return [pick.row for pick in selected.picks]


def one_each(count, condition=COLD, first=0, **more):
    """`count` candidates, every one alone in its trajectory."""
    return [
        candidate(first + i, f"{condition}-{first + i}", condition=condition, **more)
        for i in range(count)
    ]


def embedding(pool):
    """Descriptors whose only information is the deviation: one uncertain atom per frame."""
    return Environments(
        [("H",)] * len(pool),
        [np.array([[c.deviation, 1.0]]) for c in pool],
        [np.array([c.deviation]) for c in pool],
        low=[0.0] * len(pool),
    )


# ----------------------------------------------------------------------------- every policy

pools = st.lists(
    st.builds(
        candidate,
        st.integers(0, 60),
        trajectory=st.sampled_from([f"t{i}" for i in range(8)]),
        time=st.sampled_from([round(0.05 * i, 3) for i in range(20)]),
        condition=st.sampled_from([COLD, HOT, WATER]),
        version=st.integers(1, 2),
        deviation=st.sampled_from([0.1, 0.15, 0.2, 0.3, float("nan")]),
    ),
    max_size=40,
)
rules_of = st.builds(
    SelectionRules,
    labels=st.integers(0, 12),
    seed=st.integers(0, 5),
    policy=st.sampled_from(["random", "uniform", "max-deviation", "diverse", "least-deviation"]),
    per_system=st.none() | st.integers(1, 5),
    per_trajectory=st.integers(1, 3),
    min_separation=st.sampled_from([0.0, 0.1, 0.3]),
    time_bins=st.integers(1, 4),
)
taken_of = st.dictionaries(
    st.sampled_from(["t0", "t1", "t2"]), st.lists(st.sampled_from([0.0, 0.3, 0.9])), max_size=2
)


used_of = st.dictionaries(st.sampled_from(["t0", "t1", "t2"]), st.integers(1, 2), max_size=2)


@pytest.mark.slow
@examples(300, usual=75)
@given(pools, rules_of, taken_of, used_of, st.randoms())
def test_no_cap_is_broken_and_nobody_is_forgotten(pool, rules, taken, used, random):
    selected = choose(pool, rules, taken, embedding, used)
    picked = selected.picks
    assert len(picked) <= rules.labels
    assert len({c.key for c in picked}) == len(picked)
    assert all(math.isfinite(c.deviation) for c in picked)
    for (trajectory, _), count in Counter((c.trajectory, c.version) for c in picked).items():
        assert count + used.get(trajectory, 0) <= rules.per_trajectory
    for trajectory in {c.trajectory for c in picked}:
        mine = sorted(c.time_ps for c in picked if c.trajectory == trajectory)
        gaps = [*np.diff(mine), *(abs(a - b) for a in mine for b in taken.get(trajectory, ()))]
        assert all(gap >= rules.min_separation - 1e-5 for gap in gaps)
    if rules.per_system is not None:
        systems = Counter(c.condition.system for c in picked)
        assert all(count <= rules.per_system for count in systems.values())
    assert sum(selected.refused.values()) + len(picked) == len(pool)
    assert all(0 < len(pick.reason) <= 100 for pick in selected.picks)

    assert selected.reasons.keys() <= {c.key for c in pool} - {c.key for c in picked}
    shuffled = list(pool)
    random.shuffle(shuffled)
    assert choose(shuffled, rules, taken, embedding, used) == selected


@examples(100, usual=30)
@given(pools, rules_of, taken_of)
def test_no_slot_stays_empty_while_a_candidate_would_fit(pool, rules, taken):
    selected = choose(pool, rules, taken, embedding)
    if len(selected.picks) < rules.labels:
        assert OVER not in selected.refused


@pytest.mark.parametrize("policy", ["random", "uniform", "max-deviation", "diverse"])
def test_every_refusal_is_counted_under_its_reason(policy):
    pool = [
        candidate(0, "a", 0.00, deviation=0.9),
        candidate(0, "b", 0.00, deviation=0.9),
        candidate(1, "a", 0.05, deviation=0.3),
        candidate(2, "a", 0.50, deviation=float("inf")),
        candidate(3, "used", 0.50),
        candidate(4, "apart", 0.45),
        *one_each(2, WATER, first=10),
        *one_each(3, HOT, first=20),
    ]
    rules = SelectionRules(3, 1, policy, per_system=2, per_trajectory=2)
    taken, used = {"a": (0.02,), "apart": (0.42,)}, {"used": 2}
    selected = choose(pool, rules, taken, embedding, used)
    refused, reasons = selected.refused, selected.reasons
    assert refused[DUPLICATE] == 1
    assert refused[NO_DEVIATION] == 1
    assert refused[SHARE] == 1
    assert refused[NEAR] == 3
    assert refused.get(OVER_SYSTEM, 0) + refused[OVER] == 2
    assert reasons[f"{2:032x}"] == NO_DEVIATION
    assert reasons[f"{3:032x}"] == f"{SHARE}: 2 frames"
    assert reasons[f"{4:032x}"] == f"{NEAR}: 0.03 ps, at least 0.1 ps"
    assert len(reasons) == len(pool) - 3 - 1 - refused[OVER]


def test_of_equal_frames_the_newest_verdict_counts():
    pool = [candidate(0, version=1, deviation=0.9), candidate(0, version=2, deviation=0.2)]
    assert choose(pool, SelectionRules(5, 1)).picks[0].version == 2


def test_frames_exactly_the_separation_apart_pass():
    pool = [candidate(i, "a", 0.1 * i) for i in range(4)]  # 0.3 - 0.2 is a little below 0.1
    assert len(choose(pool, SelectionRules(9, 1, per_trajectory=9)).picks) == 4


def test_each_version_has_its_share_of_a_trajectory():
    pool = [candidate(i, "a", 0.3 * i, version=1 + i % 2) for i in range(4)]
    versions = [pick.version for pick in choose(pool, SelectionRules(9, 1)).picks]
    assert sorted(versions) == [1, 2]


# ---------------------------------------------------------------------------------- random


def test_no_condition_dominates_however_many_candidates_it_has():
    pool = one_each(200, HOT) + one_each(5, COLD, first=500)
    picks = choose(pool, SelectionRules(10, 4)).picks
    assert Counter(p.condition for p in picks) == {HOT: 5, COLD: 5}


def test_no_time_bin_dominates():
    early = one_each(300, time=0.1)
    late = one_each(3, first=400, time=0.9) + one_each(4, first=500, time=0.6)
    picks = choose(early + late, SelectionRules(9, 4)).picks
    assert Counter(p.time_bin(4) for p in picks) == {0: 3, 2: 3, 3: 3}


def test_conditions_are_dealt_evenly_though_one_fills_more_time_bins():
    hot = [replace(c, time_ps=0.9 * i / 80) for i, c in enumerate(one_each(80, HOT))]
    cold = one_each(80, COLD, first=100, time=0.1)
    picks = choose(hot + cold, SelectionRules(12, 2)).picks
    assert Counter(p.condition for p in picks) == {HOT: 6, COLD: 6}
    assert {p.time_bin(4) for p in picks if p.condition == HOT} == {0, 1, 2, 3}


def test_a_random_draw_ignores_the_deviation_and_follows_the_seed():
    pool = [replace(c, deviation=0.01 * c.row) for c in one_each(100)]
    draws = [tuple(sorted(keys(choose(pool, SelectionRules(10, seed))))) for seed in range(60)]
    assert len(set(draws)) == 60
    counts = Counter(row for draw in draws for row in draw)
    share_low = sum(counts[row] for row in range(50)) / 600
    assert 0.42 < share_low < 0.58


def test_the_draw_of_a_frame_does_not_depend_on_frames_that_were_refused():
    pool = one_each(50)
    more = [*pool, candidate(900, deviation=float("nan"))]
    assert keys(choose(more, SelectionRules(8, 1))) == keys(choose(pool, SelectionRules(8, 1)))


def test_reason_of_a_random_draw_is_for_people():
    pick = choose([candidate(0, time=0.3)], SelectionRules(1, 1)).picks[0]
    assert pick.reason == "random draw from ch4 50 K, time bin 2 of 4"


def test_a_uniform_draw_takes_conditions_in_proportion_to_their_candidates():
    """Each of the 100 candidates is drawn in a tenth of the draws, whatever its condition, time or
    deviation; by turns, each of the 10 cold ones would be drawn in half of them."""
    pool = one_each(90, HOT) + one_each(10, COLD, first=500, time=0.9)
    draws = [choose(pool, SelectionRules(10, seed, "uniform")).picks for seed in range(400)]
    cold = sum(p.condition == COLD for picks in draws for p in picks)
    assert 330 < cold < 470  # 400 expected, standard deviation 18
    counts = Counter(p.key for picks in draws for p in picks)
    assert min(counts.values()) > 15
    assert max(counts.values()) < 70
    assert draws[0][0].reason.startswith("uniform draw, from ch4 ")


def test_a_uniform_draw_takes_explored_and_offered_frames_in_turn():
    """However many a generator offers, and whatever the conditions of the explored ones."""
    there = COLD.model_copy(update={"system": "generator:g"})
    offered = [replace(c, trajectory=f"generator:g/1/{c.row}") for c in one_each(90, there)]
    explored = one_each(8, HOT, first=500) + one_each(2, COLD, first=600)
    picks = choose(offered + explored, SelectionRules(10, 1, "uniform")).picks
    assert sum(p.condition == there for p in picks) == 5


def test_a_uniform_draw_takes_from_each_system_up_to_its_limit():
    pool = one_each(40, HOT) + one_each(5, WATER, first=500)
    picks = choose(pool, SelectionRules(20, 1, "uniform", per_system=8)).picks
    assert Counter(p.condition.system for p in picks) == {HOT.system: 8, WATER.system: 5}


@pytest.mark.parametrize(("size", "share", "most"), [(8, None, 8), (3, 0.2, 8), (12, 0.2, 12)])
def test_labels_are_drawn_from_the_largest_deviations_of_each_system(size, share, most):
    pool = [replace(c, deviation=0.01 * c.row) for c in one_each(40, HOT)]
    pool += [replace(c, deviation=1.0) for c in one_each(5, WATER, first=500)]
    rules = SelectionRules(99, 1, "uniform", pool_size=size, pool_share=share)
    found = choose(pool, rules)
    drawn = sorted(p.row for p in found.picks if p.condition == HOT)
    assert drawn == list(range(40 - most, 40))
    assert Counter(p.condition for p in found.picks)[WATER] == min(5, max(size, int(5 * 0.2)))
    refused = 40 - most + max(0, 5 - size)
    assert found.refused == {"not among the largest deviations of its system": refused}


# ------------------------------------------------------------------------------- by deviation


def test_max_deviation_takes_the_largest_within_the_caps():
    pool = [candidate(i, f"t{i // 2}", 0.5 * (i % 2), deviation=0.1 * i) for i in range(8)]
    assert keys(choose(pool, SelectionRules(3, 1, "max-deviation"))) == [7, 5, 3]


def test_the_fallback_takes_the_least_deviating():
    pool = [replace(c, failed=True, deviation=2.0 - 0.1 * c.row) for c in one_each(5)]
    selected = choose(pool, SelectionRules(2, 1, "least-deviation"))
    assert keys(selected) == [4, 3]
    assert "least-deviating failed frame of ch4 50 K" in selected.picks[0].reason


# ------------------------------------------------------------------------------------ diverse


def environments(frames, low=0.1):
    """From lists of (element, descriptor, deviation) per frame."""
    return lambda _: Environments(
        [[e for e, _, _ in atoms] for atoms in frames],
        [np.array([d for _, d, _ in atoms], dtype=float) for atoms in frames],
        [np.array([v for _, _, v in atoms], dtype=float) for atoms in frames],
        [low] * len(frames),
    )


def test_one_strange_atom_in_200_counts():
    rng = np.random.default_rng(0)
    frames = [[("O", [*rng.normal(0, 0.01, 2)], 0.2) for _ in range(200)] for _ in range(6)]
    frames[4][17] = ("O", [5.0, 5.0], 0.2)
    pool = [replace(c, deviation=0.5 - 0.01 * c.row) for c in one_each(6)]
    assert keys(choose(pool, SelectionRules(2, 1, "diverse"), None, environments(frames))) == [0, 4]


def test_atoms_the_committee_agrees_on_do_not_count():
    frames = [[("O", [x], 0.2), ("O", [y], 0.01)] for x, y in [(0, 0), (0.1, 90), (1, 0), (0.2, 0)]]
    pool = [replace(c, deviation=0.5 - 0.01 * c.row) for c in one_each(4)]
    assert keys(choose(pool, SelectionRules(2, 1, "diverse"), None, environments(frames))) == [0, 2]


def test_elements_are_compared_with_their_own_kind_only():
    frames = [[("O", [0.0], 0.2)], [("O", [0.1], 0.2)], [("H", [0.0], 0.2)], [("O", [3.0], 0.2)]]
    pool = [replace(c, deviation=0.5 - 0.01 * c.row) for c in one_each(4)]
    picks = choose(pool, SelectionRules(3, 1, "diverse"), None, environments(frames))
    assert keys(picks) == [0, 2, 3]
    assert "new to the draw" in picks.picks[1].reason
    assert "farthest" in picks.picks[2].reason


def test_no_feature_outshouts_another_by_its_scale():
    frames = [[("O", [1000.0 * a, b], 0.2)] for a, b in [(0, 0), (0.5, 0), (0, 2), (1, 0), (1, 0)]]
    pool = [replace(c, deviation=0.5 - 0.01 * c.row) for c in one_each(5)]
    assert keys(choose(pool, SelectionRules(2, 1, "diverse"), None, environments(frames))) == [0, 2]


def test_a_frame_whose_atoms_are_all_known_one_by_one_is_not_new():
    frames = [[("O", [x], 0.2) for x in xs] for xs in [(0, 5), (9, 9), (0, 9), (4, 5)]]
    pool = [replace(c, deviation=0.5 - 0.01 * c.row) for c in one_each(4)]
    assert keys(choose(pool, SelectionRules(3, 1, "diverse"), None, environments(frames))) == [
        0,
        1,
        3,
    ]


def test_frames_that_are_candidates_by_their_virial_alone_take_part():
    frames = [[("O", [0.0], 0.01)], [("O", [1.0], 0.02)]]
    pool = one_each(2)
    assert len(choose(pool, SelectionRules(2, 1, "diverse"), None, environments(frames)).picks) == 2


def test_diverse_needs_descriptors():
    with pytest.raises(ValueError, match="descriptors"):
        choose(one_each(2), SelectionRules(1, 1, "diverse"))


def test_a_large_pool_is_thinned_evenly_and_keeps_the_largest_deviation(monkeypatch):
    monkeypatch.setattr(selection, "DIVERSE_POOL", 20)
    seen = []

    def describe(pool):
        seen.extend(pool)
        return embedding(pool)

    pool = one_each(300, HOT) + one_each(30, COLD, first=500)
    pool[7] = replace(pool[7], deviation=0.9)
    selected = choose(pool, SelectionRules(5, 1, "diverse"), None, describe)
    assert len(seen) == 20
    assert Counter(c.condition for c in seen)[COLD] >= 9
    assert keys(selected)[0] == 7
    assert sum(selected.refused.values()) == 325


# -------------------------------------------------------------------------------------- audit


def reservoir(trajectories=12, per_class=4, condition=COLD, first=0):
    """Accurate frames worth 20 each, failed ones worth 2, in every trajectory."""
    return [
        candidate(
            first + 8 * t + i,
            f"{condition}-{t}",
            0.11 * i,
            condition,
            failed=i >= per_class,
            weight=2.0 if i >= per_class else 20.0,
        )
        for t in range(trajectories)
        for i in range(2 * per_class)
    ]


def test_an_audit_spreads_over_trajectories_and_is_mostly_of_accurate_frames():
    picks = draw_audit(reservoir(), AuditRules(10, 1)).picks
    assert len(picks) == 10
    assert len({p.trajectory for p in picks}) >= 7
    assert sum(p.failed for p in picks) == 3
    assert max(Counter(p.trajectory for p in picks).values()) <= 2


def test_few_trajectories_do_not_get_more_than_their_share():
    picks = draw_audit(reservoir(trajectories=2), AuditRules(10, 1, min_trajectories=5)).picks
    assert len(picks) == 4


@examples(100, usual=30)
@given(pools, st.integers(0, 12), st.integers(0, 9), taken_of, st.randoms())
def test_audit_frames_are_apart_from_one_another_and_from_training(
    pool, audits, seed, taken, random
):
    pool = [replace(c, failed=c.row % 3 == 0, weight=1.0 + c.row) for c in pool]
    labels = choose(pool[:10], SelectionRules(4, 1)).picks
    rules = AuditRules(audits, seed)
    selected = draw_audit(pool, rules, taken, labels)
    drawn = selected.picks
    assert len(drawn) <= audits
    assert not {c.key for c in drawn} & {c.key for c in labels}
    assert len({c.key for c in drawn}) == len(drawn)
    used = [*labels, *drawn]
    for i, c in enumerate(drawn):
        for other in used[: len(labels) + i]:
            if other.trajectory == c.trajectory:
                assert abs(other.time_ps - c.time_ps) >= 0.1 - 1e-5
        assert all(abs(t - c.time_ps) >= 0.1 - 1e-5 for t in taken.get(c.trajectory, ()))
    assert all(c.weight >= (1.0 + c.row) * (1 - 1e-9) for c in drawn)
    shuffled = list(pool)
    random.shuffle(shuffled)
    assert draw_audit(shuffled, rules, taken, labels) == selected


def test_weights_undo_the_draw():
    """The weighted mean over audit frames estimates the mean over all explored frames, though
    trajectories, conditions and classes differ in all they can."""
    pool = reservoir(12) + reservoir(3, condition=HOT, first=500)
    value = {c.key: 1.0 + 3 * c.failed + 2 * (c.condition == HOT) for c in pool}
    truth = sum(c.weight * value[c.key] for c in pool) / sum(c.weight for c in pool)
    estimates, plain = [], []
    for seed in range(60):
        picks = draw_audit(pool, AuditRules(12, seed)).picks
        weights = np.array([p.weight for p in picks])
        values = np.array([value[p.key] for p in picks])
        estimates.append(weights @ values / weights.sum())
        plain.append(values.mean())
    assert np.mean(estimates) == pytest.approx(truth, rel=0.02)
    assert abs(np.mean(plain) - truth) > 0.2 * truth


def test_total_weight_is_the_number_of_frames_explored():
    pool = reservoir(12)
    picks = draw_audit(pool, AuditRules(10, 3)).picks
    assert sum(p.weight for p in picks) == pytest.approx(sum(c.weight for c in pool))


def test_a_system_with_too_few_to_label_has_none_labelled():
    pool = one_each(3) + one_each(5, WATER, first=10)
    chosen = choose(pool, SelectionRules(labels=20, seed=1, min_per_system=4))
    assert {pick.condition for pick in chosen.picks} == {WATER}
    assert chosen.refused == {TOO_FEW: 3}
    offered = [replace(c, trajectory="generator:g/1/0") for c in one_each(1)]
    assert len(choose(offered, SelectionRules(labels=20, seed=1, min_per_system=4)).picks) == 1


def test_a_cap_of_its_own_comes_before_that_of_all_systems():
    pool = one_each(9) + one_each(9, WATER, first=10)
    rules = SelectionRules(labels=20, seed=1, per_system=5, caps={"water": 2})
    chosen = choose(pool, rules)
    assert Counter(p.condition.system for p in chosen.picks) == {"ch4": 5, "water": 2}
    assert chosen.refused == {OVER_SYSTEM: 11}
    few = choose(pool, replace(rules, min_per_system=3))
    assert Counter(p.condition.system for p in few.picks) == {"ch4": 5}
    assert few.refused == {OVER_SYSTEM: 4, TOO_FEW: 9}
