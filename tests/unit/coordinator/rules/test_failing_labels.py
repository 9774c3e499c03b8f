"""A recipe, or a labeler, with which nothing but rejections come out pauses the campaign after a
few."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpstream.running.local_cluster import LocalCluster
from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m
from dpstream.shared.runtime.device import chosen
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import Rejected
from tests.support.campaigns.amendments import amendment, changed
from tests.support.campaigns.archived import frames_of
from tests.support.campaigns.campaign_simulator import CampaignSimulator, key, spec, submission
from tests.support.campaigns.coordinator import CoordinatorHarness, small
from tests.support.campaigns.lossy_delivery import (
    LossyDelivery,
    check_counters,
    check_snapshot,
    replayed,
    resumed,
)
from tests.support.soak import examples

SEEDS = st.integers(0, 2**32)


class Broken(CampaignSimulator):
    """Rejects every frame after a second of work, until it is mended; `details`: what it says, in
    turn."""

    def __init__(
        self, *details: str, seconds: float = 1.0, accepts: str = "", rule: str = "exit-status"
    ) -> None:
        super().__init__(reject=self._fails, label_seconds=seconds)
        self.rule = rule
        self.broken, self.details, self.accepts = True, details or ("exit status 1",), accepts

    def _fails(self, frame: str) -> bool:
        return self.broken and frame != self.accepts

    def answer(self, command: m.Command) -> list[m.Message]:
        return [self._in_words(each) for each in super().answer(command)]

    def _detail(self, key: str) -> str:
        return self.details[int(key, 16) % len(self.details)]

    def _in_words(self, message: m.Message) -> m.Message:
        if not isinstance(message, m.LabelsDone):
            return message
        rejected = tuple(
            each.model_copy(update={"rule": self.rule, "detail": self._detail(each.key)})
            for each in message.rejected
        )
        return message.model_copy(update={"rejected": rejected})


def paused(world: CampaignSimulator, **labels: Any) -> LossyDelivery:
    campaign = LossyDelivery(world, spec(labels={"bundle": 1, **labels}))
    campaign.run(check_counters)
    return campaign


def test_five_rejections_alike_pause_it_with_the_programs_words() -> None:
    campaign = paused(Broken("exit status 1: cannot open basis set, line 3"))
    state = campaign.state
    assert state.finished is None
    assert (state.paused or "").startswith(
        "5 frames were rejected alike and no label was accepted: exit-status: exit status 1: "
        "cannot open basis set, line 3. "
    )
    check_snapshot(state)


def test_numbers_make_no_difference_and_words_do() -> None:
    alike = paused(Broken("largest force 81.2 eV/Å", "largest force 1e+03 eV/Å"))
    assert "rejected alike" in (alike.state.paused or "")
    different = paused(Broken("the basis set is missing", "killed", "no forces"))
    assert different.state.paused is None
    assert different.state.finished is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "labels"),
    [
        (Broken(), {"pause_after": 0}),
        (Broken(), {"pause_after": 7}),
        (Broken(seconds=0.0), {}),
        (Broken(rule="max-force"), {}),
        (Broken(accepts=key("initial", 5)), {}),
    ],
    ids=["never", "later", "at no cost", "far from rest", "one is accepted"],
)
def test_it_does_not_pause(world: CampaignSimulator, labels: dict[str, Any]) -> None:
    assert paused(world, **labels).state.paused is None


def test_few_frames_are_bought_before() -> None:
    world = Broken()
    campaign = LossyDelivery(world, spec(labels={"bundle": 1, "pause_after": 2}))
    campaign.until(lambda state: state.paused)
    assert len(world.labelled) == 2


def test_after_mending_resume_labels_these_frames_too() -> None:
    world = Broken()
    campaign = paused(world)
    world.broken = False
    campaign.deliver(resumed())
    state = campaign.run(check_counters)
    assert state.finished is not None
    initial = [each for each in frames_of(state).values() if each.purpose == "initial"]
    assert [each.status for each in initial] == ["labelled"] * 6
    assert frames_of(state).keys() == frames_of(_calm()).keys()


@pytest.mark.parametrize("later", [0, 50])
def test_resume_labels_them_again_whatever_an_amendment_meanwhile_says(later: int) -> None:
    world = Broken()
    campaign = paused(world)
    world.broken = False
    campaign.deliver(amendment(changed(campaign.state.spec, labels={"pause_after": later})))
    campaign.deliver(m.CampaignPaused(id="stop", campaign="world", time=1.0, why="lunch"))
    campaign.deliver(resumed())
    state = campaign.run(check_counters)
    initial = [each for each in frames_of(state).values() if each.purpose == "initial"]
    assert [each.status for each in initial] == ["labelled"] * 6
    assert not state.labels.paused
    of = spec(labels={"bundle": 1})
    assert replayed(of, campaign.ledger).dumps() == state.dumps()


@pytest.mark.slow
def test_a_run_on_this_machine_takes_it_up_before_it_looks_whether_it_is_paused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = CoordinatorHarness(FolderStore(tmp_path))
    campaign = harness.submit(small())
    pause = m.CampaignPaused(id="pause", campaign="world", time=2.0, why="rejected alike")
    harness.publish(pause)
    harness.step()
    assert campaign.state.paused == "rejected alike"
    cluster = LocalCluster(tmp_path, {}, chosen("cpu"))
    run = cluster.coordinator.run

    def slow(stopping: threading.Event) -> None:
        time.sleep(0.3)
        run(stopping)

    monkeypatch.setattr(cluster.coordinator, "run", slow)
    try:
        assert cluster.start(submission(small())).state.paused is None
    finally:
        cluster.stop()


def test_without_mending_it_pauses_once_more_and_then_goes_on_without_them() -> None:
    world = Broken()
    campaign = paused(world)
    assert "these frames are labelled again" in (campaign.state.paused or "")
    campaign.deliver(resumed(1))
    assert campaign.state.paused is None
    campaign.run(check_counters)
    assert "resume goes on without them" in (campaign.state.paused or "")
    bought = len(world.labelled)
    campaign.deliver(resumed(2))
    state = campaign.run(check_counters)
    assert state.finished is not None
    assert state.finished.why == "no initial label was accepted"
    assert len(world.labelled) <= bought + 6


def _calm() -> State:
    return LossyDelivery(CampaignSimulator(label_seconds=1.0), spec(labels={"bundle": 1})).run()


@pytest.mark.slow
@examples(40, usual=10)
@given(SEEDS, st.sampled_from([0.0, 0.2]), st.sampled_from([1, 3]))
def test_order_and_repetition_of_deliveries_change_nothing(
    seed: int, faults: float, bundle: int
) -> None:
    """It pauses, goes on after it was mended, and ends with the same labels."""
    world, of = Broken(), spec(labels={"bundle": bundle})
    campaign = LossyDelivery(world, of, seed, faults)
    campaign.run(check_counters)
    for number in range(50):
        if campaign.state.paused is None:
            break
        why = campaign.state.paused
        world.broken = world.broken and "rejected alike" not in why
        _deliver_all_again(campaign)
        campaign.events.append(resumed(number))
        campaign.run(check_counters)
    assert not world.broken
    assert campaign.state.finished is not None
    assert replayed(of, campaign.ledger).dumps() == campaign.state.dumps()
    labelled = {k for k, each in frames_of(campaign.state).items() if each.status == "labelled"}
    if not faults:
        assert labelled == set(frames_of(_calm()))


def _deliver_all_again(campaign: LossyDelivery) -> None:
    state = campaign.state
    for event, _ in campaign.ledger:
        assert decide(state, event) == (state, ())


def test_kinds_of_rejections() -> None:
    def kind(detail: str) -> str:
        return Rejected(key="0" * 32, rule="exit-status", detail=detail).kind

    assert kind("exit status 1: line 12, 3.5e-7") == kind("exit status 2: line 4, 1.0D+03")
    assert kind("no basis for H") != kind("no basis for He")
