"""Stages that are explored once, as DP-GEN's jobs are: every structure, levels and caps by system,
then the next stage whatever was found."""

from __future__ import annotations

from typing import Any

import pytest

from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m
from dpstream.shared.values import FrameRef
from tests.support.campaigns.campaign_simulator import CampaignSimulator, key, ref, spec, submission
from tests.support.campaigns.lossy_delivery import LossyDelivery

LEVELS = {"low": 0.1, "high": 0.3}


def stage(name: str, *systems: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "systems": systems or ("methane",),
        "temperatures": [50.0],
        "repeat": False,
        **more,
    }


def jobs(*stages: dict[str, Any], **changes: Any) -> LossyDelivery:
    systems = {name: {"structures": ["x"]} for each in stages for name in each["systems"]}
    of = spec(
        stages=stages, systems={"methane": {"structures": ["x"]}, **systems}, audit={"per_round": 0}
    )
    return LossyDelivery(
        CampaignSimulator(ripe=99), of.model_validate({**of.model_dump(), **changes})
    )


def test_each_stage_is_one_round_in_order_though_nothing_converges() -> None:
    campaign = jobs(stage("first"), stage("second"), stage("third"))
    state = campaign.run()
    explored = [message.stage for message in campaign.decisions(m.Explore)]
    assert explored == [0, 0, 1, 1, 2, 2], "two trajectories of each"
    assert [ended.verdict for ended in campaign.decisions(m.StageEnded)] == ["explored"] * 3
    versions = [message.committee.version for message in campaign.decisions(m.ModelsReady)]
    assert versions == [1, 2, 3], "what a job was labelled for is learned before the next"
    assert state.finished is not None
    assert state.finished.verdict == "not-converged"
    assert state.finished.why.startswith("stage first was explored once: methane 50 K: ")


def test_labels_that_are_early_enough_begin_no_second_round() -> None:
    campaign = jobs(
        stage("first"), stage("second"), mode="streaming", streaming={"retrain_after": 1}
    )
    campaign.run()
    assert [message.stage for message in campaign.decisions(m.Explore)] == [0, 0, 1, 1]
    versions = [message.committee.version for message in campaign.decisions(m.ModelsReady)]
    assert versions == [1, 2], "what a job was labelled for is learned before the next"


def test_a_stage_whose_one_round_is_good_has_converged() -> None:
    campaign = jobs(stage("first"))
    campaign.world.ripe = 1
    state = campaign.run()
    assert [ended.verdict for ended in campaign.decisions(m.StageEnded)] == ["converged"]
    assert state.finished is not None
    assert state.finished.verdict == "converged"


class Hopeless(CampaignSimulator):
    """All that is explored is failed."""

    def _chunk(self, command: m.Explore, *rest: Any, **named: Any) -> m.Message:
        chunk = super()._chunk(command, *rest, **named)
        assert isinstance(chunk, m.ChunkExplored)
        failed = chunk.counts.model_copy(update={"failed": chunk.counts.candidate, "candidate": 0})
        return chunk.model_copy(update={"counts": failed, "candidates": None})


def test_failed_frames_are_not_labelled_for_want_of_candidates() -> None:
    campaign = jobs(stage("first"))
    campaign.world = Hopeless(ripe=99)
    campaign.run()
    assert campaign.decisions(m.Select)
    pools = [campaign.world.manifests[message.pool.uri] for message in campaign.decisions(m.Select)]
    assert all('"fallback":false' in pool for pool in pools)


def test_a_trajectory_starts_at_every_structure_of_every_system() -> None:
    of = jobs(stage("first", "methane", "ethane", starts="all"), md={"trajectories": 2}).state.spec
    begun = submission(of)
    starts = tuple(FrameRef(batch=ref("more"), index=i, key=key("more", i)) for i in range(3))
    begun = begun.model_copy(update={"systems": {**begun.systems, "ethane": starts}})
    commands = _explored(State(spec=of), begun)
    found = sorted((c.condition.system, c.structure.index) for c in commands)
    assert found == [*[("ethane", i) for i in (0, 0, 1, 1, 2, 2)], *[("methane", 0)] * 2]
    assert len({command.trajectory for command in commands}) == len(commands)
    assert len({command.seed for command in commands}) == len(commands)


def _explored(state: State, begun: m.CampaignSubmitted) -> list[m.Explore]:
    """What is to be explored first, all commands before being answered at once."""
    world, events = CampaignSimulator(), [begun]
    while events:
        state, decisions = decide(state, events.pop(0))
        found = [message for message in decisions if isinstance(message, m.Explore)]
        if found:
            return found
        for message in decisions:
            world.learn(message)
            if isinstance(message, m.Command):
                events += world.answer(message)
    raise AssertionError("nothing was explored")


def test_frames_are_judged_by_the_levels_of_their_system() -> None:
    own = {"ethane": {"low": 0.0, "high": 0.5}}
    campaign = jobs(stage("first", "methane", "ethane", trust=LEVELS, system_trust=own))
    campaign.run()
    levels = {
        c.condition.system: (c.trust.low, c.trust.high) for c in campaign.decisions(m.Explore)
    }
    assert levels == {"methane": (0.1, 0.3), "ethane": (0.0, 0.5)}


@pytest.mark.parametrize(
    ("rules", "caps"),
    [
        ({}, {}),
        ({"none_above": 0.8}, {"methane": 0}),
        ({"none_above": 0.9}, {}),
        ({"none_above": 0.9, "fewer_above": 0.7}, {"methane": 2}),
        ({"none_above": 0.9, "fewer_above": 0.85}, {}),
    ],
)
def test_a_system_that_is_accurate_gets_fewer_labels(
    rules: dict[str, float], caps: dict[str, int]
) -> None:
    campaign = jobs(stage("first"), selection={"per_round": 9, "per_system": 4, **rules})
    campaign.run()
    command = campaign.decisions(m.Select)[0]
    assert command.caps == caps, "8 of 10 checks of each trajectory are accurate"
    assert command.per_system == 4


def test_levels_by_system_are_of_the_stage_and_of_lockstep() -> None:
    own = {"system_trust": {"methane": LEVELS}}
    with pytest.raises(ValueError, match="requires mode: lockstep"):
        spec(mode="streaming", stages=[stage("first", **own)])
    with pytest.raises(ValueError, match="'ethane' is not in the stage's systems"):
        spec(stages=[stage("first", system_trust={"ethane": LEVELS})])


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ({"fewer_above": 0.5}, "fewer_above requires per_system and none_above"),
        (
            {"fewer_above": 0.9, "none_above": 0.8, "per_system": 3},
            r"fewer_above \(0.9\) must not exceed none_above \(0.8\)",
        ),
    ],
)
def test_thresholds_that_cannot_be_are_refused(rules: dict[str, float], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        spec(selection=rules)
