"""The likely cause that is named when a stage does not converge."""

from __future__ import annotations

from typing import Any

import pytest

from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.rules.likely_cause import likely_cause
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m
from dpstream.shared.values import Counts
from tests.support.campaigns.campaign_simulator import CampaignSimulator, spec
from tests.support.campaigns.lossy_delivery import LossyDelivery, check_counters, replayed


def after(counts: Counts, outcome: Any = "failed", **changes: Any) -> tuple[State, m.RoundJudged]:
    last = m.RoundJudged(
        id="r",
        campaign="world",
        time=0.0,
        stage=0,
        round=3,
        version=3,
        counts={"methane 300 K": counts},
        outcome=outcome,
        why="",
    )
    return State(spec=spec(**changes)), last


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (after(Counts(accurate=2, candidate=3, failed=95)), "nearly all frames failed"),
        (after(Counts(accurate=60, failed=40)), "no frame lies between the trust levels"),
        (after(Counts(accurate=5, candidate=95)), "nearly all frames are candidates"),
        (after(Counts(accurate=50, candidate=50), "stuck"), "none was chosen"),
        (after(Counts(accurate=50, candidate=50)), "candidates remain"),
        (after(Counts(accurate=5, candidate=95), trust={"target": 0.1}), "candidates remain"),
        (after(Counts(accurate=99, failed=1)), None),
        (after(Counts(accurate=60, failed=40), trust={"target": 0.1}), None),
    ],
)
def test_the_frames_of_the_last_round_suggest_it(
    given: tuple[State, m.RoundJudged], words: str | None
) -> None:
    cause = likely_cause(*given)
    assert cause is None if words is None else words in (cause or "")


def exploring_fails(reason: str, but: int = 0) -> CampaignSimulator:
    """A world in which no trajectory can be run, `but` the first ones."""
    world = CampaignSimulator(ripe=99)
    tried, answer = list[str](), world.answer

    def answered(command: m.Command) -> list[m.Message]:
        if not isinstance(command, m.Explore):
            return answer(command)
        tried.append(command.task)
        if len(tried) <= but:
            return answer(command)
        fields = world.envelope(command, "failed")
        return [m.TaskFailed(**fields, permanent=True, reason=reason)]

    world.answer = answered  # type: ignore[method-assign]
    return world


def test_trajectories_that_fail_are_the_reason() -> None:
    campaign = LossyDelivery(exploring_fails("gromacs: Fatal error:\n unknown atom type"), spec())
    state = campaign.run(check_counters)
    (end, *_) = state.exploration.ended
    assert end.verdict == "stuck"
    assert end.why == (
        "4 of 4 trajectories failed: after 1 attempt: gromacs: Fatal error: unknown atom type; "
        "methane 100 K: 0.0% accurate, below 95.0%; no frame to label in 3 consecutive rounds"
    )
    assert state.finished is not None
    assert state.finished.why == f"stage cold ended stuck: {end.why}"
    assert replayed(spec(), campaign.ledger) == state


def test_a_few_trajectories_that_fail_are_not() -> None:
    campaign = LossyDelivery(exploring_fails("no memory", but=1), spec())
    campaign.run(check_counters)
    decided = [each for _, decisions in campaign.ledger for each in decisions]
    first = next(each for each in decided if isinstance(each, m.RoundJudged))
    assert not first.trajectories_failed
    assert first.why.startswith("methane 100 K: 0.0% accurate")


def test_rejected_labels_are_a_cause_of_their_own() -> None:
    state, last = after(Counts(failed=100))
    stage = replace(state.exploration.stage, answered=10, rejected=10)
    rejected = replace(state, exploration=replace(state.exploration, stage=stage))
    assert likely_cause(rejected, last) is None


def test_the_verdict_ends_with_it() -> None:
    campaign = LossyDelivery(CampaignSimulator(ripe=99), spec(budget={"rounds": 3}))
    state = campaign.run()
    (end, *_) = state.exploration.ended
    assert end.verdict in ("stuck", "out-of-budget")
    assert end.why.endswith("; candidates remain: raise budget.rounds or budget.labels")
