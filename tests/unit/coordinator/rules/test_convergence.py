"""Each rule of convergence, with a state that only its opposite would let pass."""

from __future__ import annotations

from typing import Any

import pytest
from immutables import Map

from dpstream.services.coordinator.apply.verdicts import round_judged
from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.rules import convergence
from dpstream.services.coordinator.state import (
    ByCondition,
    CommitteeState,
    ExplorationState,
    Round,
    StageState,
    State,
)
from dpstream.shared import messages as m
from dpstream.shared.spec.engines import AsGiven
from dpstream.shared.values import Counts, Rmse, Trust
from tests.support.campaigns.campaign_simulator import CampaignSimulator, key, ref, spec
from tests.support.campaigns.lossy_delivery import LossyDelivery
from tests.support.campaigns.single_tasks import train_command

TRUST = Trust(low=0.1, high=0.3)
GOOD = ByCondition(counts=Counts(accurate=98, candidate=1, failed=1))


def audit_done(**changes: Any) -> m.AuditDone:
    fields: dict[str, Any] = {
        "id": "audit",
        "campaign": "world",
        "time": 0.0,
        "task": "audit",
        "attempt": 1,
        "version": 1,
        "stage": 0,
        "frames": 30,
        "trajectories": 5,
        "force": 0.05,
        "force_upper": 0.08,
        "exceed": 0.05,
        "exceed_upper": 0.1,
        "deviation_over_error": 0.5,
        "pairs": ref("pairs"),
    }
    return m.AuditDone(**fields | changes)


def tried(conditions: dict[str, ByCondition] | None = None, chosen: int = 0, **stage: Any) -> State:
    """A closed round of version 1 with 30 audit frames from 5 trajectories, good unless told."""
    audits = {key("audit", i): f"trajectory-{i % 5}" for i in range(30)}
    known: dict[str, Any] = {"rounds": 1, "audits": Map(audits), "audit": audit_done()}
    return State(
        spec=spec(audit={"min_frames": 30, "min_trajectories": 5, "force_rmse": 0.1}),
        committee=CommitteeState(version=1, cold_version=1),
        exploration=ExplorationState(
            stage=StageState(**known | stage),
            round=Round(
                number=1,
                version=1,
                conditions=Map(conditions or {"cold": GOOD, "hot": GOOD}),
                closed=True,
                audited=True,
                chosen=chosen,
            ),
        ),
    )


def in_round(state: State, current: Round | None) -> State:
    return replace(state, exploration=replace(state.exploration, round=current))


def verified(state: State, **shown: Any) -> State:
    """With another verification of the final model."""
    assert state.final.verified is not None
    another = state.final.verified.model_copy(update=shown)
    return replace(state, final=replace(state.final, verified=another))


@pytest.mark.parametrize(
    ("conditions", "praise"),
    [
        ({"cold": GOOD, "hot": ByCondition()}, "worst condition cold: 98.0% accurate"),
        ({"hot": ByCondition()}, "no frames left"),
    ],
)
def test_of_given_frames_there_may_be_none_left(conditions: Any, praise: str) -> None:
    state = tried(conditions)
    first = state.spec.stages[0].model_copy(update={"engine": AsGiven(kind="frames")})
    given = state.spec.model_copy(update={"stages": (first, *state.spec.stages[1:])})
    outcome, why = convergence.judge_round(replace(state, spec=given))
    assert (outcome, why.partition(";")[0]) == ("passed", praise)


def test_a_round_that_meets_every_rule_passes() -> None:
    outcome, why = convergence.judge_round(tried())
    assert outcome == "passed"
    assert "98.0% accurate" in why


def test_one_hot_condition_is_not_hidden_by_a_good_average() -> None:
    best = ByCondition(counts=Counts(accurate=1000))
    hot = ByCondition(counts=Counts(accurate=94, candidate=6))
    outcome, why = convergence.judge_round(tried({"a": best, "b": best, "hot": hot}))
    assert outcome == "failed"
    assert why.startswith("hot: 94.0% accurate")


def test_the_condition_that_fails_is_named_even_where_another_is_less_accurate() -> None:
    dull = ByCondition(counts=Counts(accurate=96, candidate=4))
    brittle = ByCondition(counts=Counts(accurate=97, failed=3))
    outcome, why = convergence.judge_round(tried({"dull": dull, "brittle": brittle}))
    assert outcome == "failed"
    assert why.startswith("brittle: 3.0% failed")


def test_checks_cut_off_by_an_early_stop_count_as_failed() -> None:
    stopped = ByCondition(counts=Counts(accurate=97), dropped=3)
    outcome, why = convergence.judge_round(tried({"hot": stopped}))
    assert (outcome, why) == ("failed", "hot: 3.0% failed, above 2.0%")


def test_dropped_checks_lower_the_accurate_share_too() -> None:
    assert convergence.shares(ByCondition(counts=Counts(accurate=50), dropped=50)) == (0.5, 0.5)


def test_a_condition_nobody_explored_is_not_accurate() -> None:
    outcome, why = convergence.judge_round(tried({"cold": GOOD, "hot": ByCondition()}))
    assert outcome == "failed"
    assert why.startswith("hot: 0.0% accurate")


@pytest.mark.parametrize(("rejected", "outcome"), [(2, "passed"), (3, "failed")])
def test_rejected_share(rejected: int, outcome: str) -> None:
    assert convergence.judge_round(tried(answered=10, rejected=rejected))[0] == outcome


def test_too_few_audit_frames_are_no_audit() -> None:
    few = Map({key("audit", i): f"trajectory-{i}" for i in range(29)})
    outcome, why = convergence.judge_round(tried(audits=few))
    assert (outcome, why) == ("failed", "29 audit frames, 30 required")


def test_many_audit_frames_of_few_trajectories_are_not_independent() -> None:
    alike = Map({key("audit", i): f"trajectory-{i % 4}" for i in range(300)})
    outcome, why = convergence.judge_round(tried(audits=alike))
    assert (outcome, why) == ("failed", "audit frames from 4 trajectories, 5 required")


def test_the_upper_bound_of_the_audit_error_counts_not_its_mean() -> None:
    outcome, why = convergence.judge_round(tried(audit=audit_done(force=0.09, force_upper=0.11)))
    assert outcome == "failed"
    assert "95 % upper bound 0.11" in why


def test_the_upper_bound_of_the_exceedance_counts_not_its_mean() -> None:
    outcome, why = convergence.judge_round(tried(audit=audit_done(exceed=0.0, exceed_upper=0.21)))
    assert outcome == "failed"
    assert "21.0%" in why


def test_without_an_audit_the_round_does_not_pass() -> None:
    assert convergence.judge_round(tried(audit=None)) == ("failed", "no audit result yet")


def test_a_spec_without_audit_asks_for_none() -> None:
    state = tried(audit=None, audits=Map())
    state = replace(state, spec=spec(audit={"per_round": 0}))
    assert convergence.judge_round(state)[0] == "passed"


# ------------------------------------------------------------------------------- rounds in a row


def judged(state: State, outcome: str, chosen: int = 0) -> State:
    state = in_round(state, tried(chosen=chosen).exploration.round)
    state = replace(state, spec=spec(convergence={"rounds": 2}))
    return round_judged(
        state,
        m.RoundJudged.model_validate(
            {
                "id": "round",
                "campaign": "world",
                "time": 0.0,
                "stage": 0,
                "round": 1,
                "version": 1,
                "counts": {},
                "outcome": outcome,
                "why": "",
            }
        ),
    )


def test_a_bad_round_resets_the_good_ones_in_a_row() -> None:
    state = tried()
    for outcome, good in [("passed", 1), ("failed", 0), ("passed", 1), ("passed", 2)]:
        state = judged(state, outcome)
        assert state.exploration.stage.passed == good


def test_stuck_after_three_rounds_without_labels_and_not_before() -> None:
    bad = {"hot": ByCondition(counts=Counts(failed=10))}
    outcomes = []
    state = tried(bad)
    for _ in range(convergence.STUCK_AFTER):
        state = in_round(state, tried(bad).exploration.round)
        outcomes.append(convergence.judge_round(state)[0])
        state = judged(state, outcomes[-1])
    assert outcomes == ["failed", "failed", "stuck"]


def test_a_round_that_chose_frames_is_none_without_labels() -> None:
    bad = {"hot": ByCondition(counts=Counts(failed=10))}
    state = tried(bad, rounds_without_labels=2)
    assert convergence.judge_round(state)[0] == "stuck"
    some = tried(bad, chosen=1, rounds_without_labels=2)
    assert convergence.judge_round(some)[0] == "failed"
    assert judged(some, "failed", chosen=1).exploration.stage.rounds_without_labels == 0


def test_labels_not_yet_learned_keep_a_stage_from_being_stuck() -> None:
    bad = {"hot": ByCondition(counts=Counts(failed=10))}
    state = tried(bad, rounds_without_labels=2)
    fresh = Map({key("x"): ref("label")})
    state = replace(state, dataset=replace(state.dataset, fresh=fresh))
    assert convergence.judge_round(state)[0] == "failed"


def test_looking_good_needs_every_condition_explored() -> None:
    assert convergence.on_track(tried())
    assert not convergence.on_track(tried({"cold": GOOD, "hot": ByCondition()}))
    assert not convergence.on_track(in_round(tried(), None))


# ------------------------------------------------------------------------------------- training


def trained(force: float, before: tuple[str, float, float] | None = None) -> State:
    """Members of which the worst has this force RMSE; `before`: verdict, force, lengthen."""
    members = {
        str(i): CampaignSimulator()
        ._train(train_command(i))[0]
        .model_copy(update={"train": Rmse(frames=5, energy=0.0, force=f, rms_force=1.0)})
        for i, f in enumerate([0.001, force])
    }
    committee = CommitteeState(members=Map(members))
    state = State(spec=spec(training={"members": 2}), committee=committee)
    if before is None:
        return state
    verdict, error, factor = before
    fact = {"id": "j", "campaign": "world", "time": 0.0, "version": 1, "why": ""}
    last = m.TrainingJudged.model_validate(
        fact | {"verdict": verdict, "force": error, "lengthen": factor}
    )
    return replace(state, committee=replace(committee, judged_training=last))


@pytest.mark.parametrize(
    ("force", "before", "verdict", "lengthen"),
    [
        (0.049, None, "sound", 1.0),
        (0.051, None, "training-limited", 2.0),
        (0.080, ("training-limited", 0.1, 2.0), "training-limited", 4.0),
        (0.095, ("training-limited", 0.1, 2.0), "label-noise-limited", 2.0),
        (0.080, ("training-limited", 0.1, 4.0), "training-limited", 4.0),
        (0.095, ("label-noise-limited", 0.1, 2.0), "label-noise-limited", 2.0),
        (0.080, ("sound", 0.04, 2.0), "training-limited", 4.0),
        (0.049, ("label-noise-limited", 0.1, 2.0), "sound", 2.0),
    ],
)
def test_training_verdicts(
    force: float, before: tuple[str, float, float] | None, verdict: str, lengthen: float
) -> None:
    judged_now = convergence.judge_training(trained(force, before), TRUST)
    assert (judged_now["verdict"], judged_now["lengthen"]) == (verdict, lengthen)
    assert judged_now["force"] == force, "the worst member counts"


# ------------------------------------------------------------------------------------- campaign


@pytest.fixture(scope="module")
def finished() -> State:
    return LossyDelivery(CampaignSimulator(), spec()).run()


def test_a_converged_campaign_says_why(finished: State) -> None:
    verdict, why = convergence.judge_campaign(finished)
    assert verdict == "converged"
    assert "held-out force RMSE 0.03 eV/Å, 3.0%" in why


@pytest.mark.parametrize("outcome", ["stuck", "out-of-budget"])
def test_one_stage_that_did_not_converge_is_enough(finished: State, outcome: str) -> None:
    first, *others = finished.exploration.ended
    ended = (first.model_copy(update={"verdict": outcome}), *others)
    exploration = replace(finished.exploration, ended=ended)
    verdict, why = convergence.judge_campaign(replace(finished, exploration=exploration))
    assert verdict == "not-converged"
    assert why.startswith(f"stage cold ended {outcome}")


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        ({"stable": False, "detail": "lost atoms"}, "not stable: lost atoms"),
        (
            {"test": Rmse(frames=5, energy=0.0, force=0.06, rms_force=1.0)},
            "6.0% of the RMS force, above 5.0%",
        ),
    ],
)
def test_what_the_final_model_shows(finished: State, shown: dict[str, Any], reason: str) -> None:
    verdict, why = convergence.judge_campaign(verified(finished, **shown))
    assert verdict == "not-converged"
    assert reason in why


def test_a_model_that_could_not_be_verified_has_not_converged(finished: State) -> None:
    final = replace(finished.final, verified=None, failure="engine crashed")
    failed = replace(finished, final=final)
    verdict, why = convergence.judge_campaign(failed)
    assert (verdict, "engine crashed" in why) == ("not-converged", True)


def test_without_a_held_out_set_the_verdict_says_so(finished: State) -> None:
    verdict, why = convergence.judge_campaign(verified(finished, test=None))
    assert (verdict, "no held-out set" in why) == ("converged", True)
