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
from tests.support.campaigns.lossy_delivery import LossyDelivery


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
