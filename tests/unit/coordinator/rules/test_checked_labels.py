"""Reused labels that are computed again: which ones, and what becomes of a writer whose label is
wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpstream.report.page import render
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns.archived import frames_of
from tests.support.campaigns.campaign_simulator import CampaignSimulator, spec
from tests.support.campaigns.coordinator import CoordinatorHarness
from tests.support.campaigns.lossy_delivery import LossyDelivery, check_counters, resumed
from tests.support.campaigns.single_tasks import give_up
from tests.support.soak import examples


def by_turns(key: str) -> str:
    """Writers of the labels in the store; '' stands for one without signature."""
    return ("vasp", "thief", "")[int(key, 16) % 3]


def streaming(world: CampaignSimulator, **labels: object) -> LossyDelivery:
    return LossyDelivery(world, spec(mode="streaming", labels={"bundle": 3, **labels}))


def checked(campaign: LossyDelivery) -> list[m.CheckLabel]:
    return [c for c in campaign.issued if isinstance(c, m.CheckLabel)]


def test_at_least_one_label_of_each_writer_is_computed_again() -> None:
    campaign = streaming(CampaignSimulator(writer=by_turns))
    state = campaign.run(check_counters)
    assert state.finished is not None
    assert {by_turns(command.frame.key) for command in checked(campaign)} == {"", "thief", "vasp"}
    assert {check.status for check in state.labels.checks.values()} == {"agrees"}
    assert state.labels.reused == len(campaign.world.labelled)
    assert state.labels.computed == len(checked(campaign)) <= 5


@pytest.mark.parametrize(("share", "most"), [(0.0, 0), (1.0, 1_000), (0.3, 1_000)])
def test_the_share_is_the_users(share: float, most: int) -> None:
    campaign = streaming(CampaignSimulator(writer=by_turns), check_reused=share)
    state = campaign.run()
    found = len(checked(campaign))
    assert found <= most
    assert abs(found / state.labels.reused - share) < 0.2
    assert (found == state.labels.reused) == (share == 1.0)


def test_a_reproducible_campaign_computes_none_again_unless_it_says_so() -> None:
    for given_share, expected in ((None, False), (0.2, True)):
        labels = {"bundle": 3, "check_reused": given_share}
        campaign = LossyDelivery(CampaignSimulator(writer=by_turns), spec(labels=labels))
        campaign.run()
        assert bool(checked(campaign)) == expected


def test_checks_use_the_label_budget() -> None:
    campaign = streaming(CampaignSimulator(writer=by_turns), check_reused=1.0)
    campaign.until(lambda state: len(state.labels.checks) >= 3)
    labels = campaign.state.labels
    used = campaign.state.requested - labels.revoked + len(labels.checks)
    assert campaign.state.label_room == campaign.state.spec.budget.labels - used


def test_a_wrong_label_pauses_the_campaign_which_uses_none_of_its_writer_again() -> None:
    campaign = streaming(CampaignSimulator(writer=by_turns, wrong=("thief",)))
    state = campaign.run(check_counters)
    assert state.paused is not None
    assert "of the labeler thief are not used again" in state.paused
    assert state.labels.distrusted == ("thief",)
    before = len(campaign.issued)
    campaign.events.append(resumed(1))
    assert campaign.run(check_counters).finished is not None
    later = [c for c in campaign.issued[before:] if isinstance(c, m.Label)]
    assert later
    assert {command.distrusted for command in later} == {("thief",)}


def test_the_report_lists_the_labels_of_each_writer(tmp_path: Path) -> None:
    world = CampaignSimulator(writer=by_turns, wrong=("thief",))
    harness = CoordinatorHarness(FolderStore(tmp_path), world=world)
    harness.submit(spec(mode="streaming", labels={"bundle": 3}))
    state = harness.finish()
    assert state.paused is not None
    html = render(harness.store, "world")
    assert re.search(r"signed by vasp: \d+; 1 of them were computed again and agree", html)
    assert re.search(r"without signature: \d+; 1 of them were computed again and agree", html)
    thiefs = [key for key in frames_of(state) if by_turns(key) == "thief"]
    line = re.search(r"signed by thief: \d+; 1 of them.*differ</b>(.*)not to be trusted", html)
    assert line is not None
    assert any(key[:12] in line[1] for key in thiefs)


def test_a_label_reused_by_a_task_under_way_does_not_count_after_its_writer_is_distrusted() -> None:
    campaign = streaming(CampaignSimulator(writer=lambda key: "thief", wrong=("thief",)))
    campaign.until(lambda state: sum(isinstance(c, m.Label) for c in campaign.commands) >= 2)
    first, second = [c for c in campaign.commands if isinstance(c, m.Label)][:2]
    for command in (first, second):
        campaign.commands.remove(command)
    for event in campaign.world.answer(first):
        campaign.deliver(event)
    (check,) = checked(campaign)
    campaign.commands.remove(check)
    for event in (*campaign.world.answer(check), *campaign.world.answer(second)):
        campaign.deliver(event)
    assert campaign.state.paused is not None
    frames = frames_of(campaign.state)
    assert {frames[ref.key].status for ref in second.frames} == {"waiting"}
    check_counters(campaign.state)
    campaign.events.append(resumed(1))
    state = campaign.run(check_counters)
    assert {frames_of(state)[ref.key].status for ref in second.frames} == {"labelled"}
    assert state.labels.reused == len(first.frames) + len(second.frames)


@pytest.mark.parametrize("ending", ["abandoned", "unknown"])
def test_the_next_label_of_a_writer_is_checked_if_the_first_check_came_to_nothing(
    ending: str,
) -> None:
    campaign = streaming(CampaignSimulator(writer=lambda key: "vasp"))
    campaign.until(lambda state: checked(campaign))
    (check,) = checked(campaign)
    campaign.commands.remove(check)
    if ending == "abandoned":
        give_up(campaign, check, permanent=True)
    else:
        campaign.deliver(m.LabelChecked(**CampaignSimulator.envelope(check)))
    assert campaign.state.labels.checks[check.frame.key].status == "unknown"
    state = campaign.run(check_counters)
    assert state.finished is not None
    assert "agrees" in {check.status for check in state.labels.checks.values()}


@pytest.mark.slow
@examples(full=400, usual=30)
@given(seed=st.integers(0, 2**31), wrong=st.booleans())
def test_in_any_order_with_lost_and_doubled_messages(seed: int, wrong: bool) -> None:
    world = CampaignSimulator(writer=by_turns, wrong=("thief",) if wrong else ())
    of = spec(mode="streaming", labels={"bundle": 3, "check_reused": 0.3})
    campaign = LossyDelivery(world, of, seed, faults=0.2)
    state = campaign.run_resumed(check_counters)
    assert state.finished is not None
    assert _writers(state) == {"", "thief", "vasp"}
    assert (state.labels.distrusted == ("thief",)) == wrong


def _writers(state: State) -> set[str]:
    return {check.writer for check in state.labels.checks.values()}
