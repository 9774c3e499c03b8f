"""Tasks that a worker cannot serve: it declines them, another takes them, and without any the
campaign waits for one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpstream.services.coordinator.apply.tasks import MOST_REASONS
from dpstream.services.coordinator.fleet.plan import Demand
from dpstream.services.coordinator.open_campaign import REMEMBERED
from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.state import State
from dpstream.services.coordinator.views.overview import overview
from dpstream.shared import messages as m
from dpstream.shared.codec import queue_of
from dpstream.shared.runtime import retry
from dpstream.shared.runtime.retry import Rests
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns.campaign_simulator import CampaignSimulator, spec
from tests.support.campaigns.coordinator import CoordinatorHarness
from tests.support.campaigns.lossy_delivery import LossyDelivery, resumed
from tests.support.campaigns.single_tasks import campaign_with, claim
from tests.support.soak import examples
from tests.support.workers.worker import WorkerHarness, label

QUEUE = "label.tblite"
PATIENCE = 600.0


def declined(command: m.Command, reason: str = "no tblite", number: int = 0) -> m.TaskDeclined:
    fields = CampaignSimulator.envelope(command, f"declined-{number}")
    return m.TaskDeclined(**fields, worker="w", reason=reason)


def missing(number: int = 0) -> m.WorkersMissing:
    return m.WorkersMissing(
        id=f"missing-{number}", campaign="world", time=5.0, queue=QUEUE, why="no tblite anywhere"
    )


def asked_to_pause() -> m.CampaignPaused:
    return m.CampaignPaused(id="pause", campaign="world", time=5.0, why="maintenance")


# -------------------------------------------------------------------------------- the worker


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerHarness]:
    monkeypatch.setattr(retry, "FIRST_REST", 0.1)
    harness = WorkerHarness(tmp_path)
    yield harness
    harness.stop()


def test_what_it_cannot_serve_is_left_unclaimed_with_the_reason(workers: WorkerHarness) -> None:
    workers.worker(unserved=lambda resources, command, context: f"no code for {command.title}")
    workers.send(label("t1"))
    event = workers.next_event()
    assert isinstance(event, m.TaskDeclined)
    assert (event.task, event.worker, event.reason) == ("t1", "worker-0", "no code for label t1")
    assert not workers.store.exists(claim_uri("methane", "t1", 1))
    assert workers.bus.depth("label.toy") == 0  # the coordinator publishes it again


def test_after_declining_it_leaves_the_queue_to_others_and_comes_back(
    workers: WorkerHarness,
) -> None:
    answers = iter(["not today", None])
    workers.worker(unserved=lambda resources, command, context: next(answers))
    workers.send(label("t1"))
    assert isinstance(workers.next_event(), m.TaskDeclined)
    began = time.monotonic()
    workers.send(label("t2"))
    assert isinstance(workers.next_event(), m.TaskClaimed)
    assert time.monotonic() - began > 0.05


@pytest.mark.slow
def test_if_it_cannot_be_found_out_the_task_is_claimed(workers: WorkerHarness) -> None:
    def damaged(resources: Any, command: m.Command, context: Any) -> str | None:
        raise ValueError("the spec makes no sense")

    workers.worker(unserved=damaged)
    workers.send(label("t1"))
    assert workers.next_types(2) == [m.TaskClaimed, m.LabelsDone]


def test_each_rest_for_the_same_tasks_is_twice_as_long_until_the_queue_is_served() -> None:
    rests = Rests()
    assert [rests.begin("a", longer=False) for _ in range(3)] == [5, 5, 5]
    lengths = [rests.begin("a", longer=True) for _ in range(8)]
    assert lengths == [10, 20, 40, 80, 160, 320, 600, 600]
    assert rests.begin("a", longer=False) == 600
    assert rests.includes("a")
    assert not rests.includes("b")
    rests.forget("a")
    assert rests.begin("a", longer=False) == 5


# -------------------------------------------------------------------------------- the campaign


def test_it_pauses_without_a_worker_and_continues_when_one_claims() -> None:
    campaign, command = campaign_with(m.Label)
    campaign.deliver(declined(command))
    assert campaign.state.declined[QUEUE].reasons == ("no tblite",)
    (pause,) = campaign.deliver(missing())
    assert isinstance(pause, m.CampaignPaused)
    assert campaign.state.paused == "no tblite anywhere"
    assert campaign.state.missing == {QUEUE}
    campaign.commands.append(command)
    assert campaign.run().finished


def test_a_claim_does_not_end_the_pause_that_an_operator_requested() -> None:
    campaign, command = campaign_with(m.Label)
    for event in (declined(command), missing(), asked_to_pause()):
        campaign.deliver(event)
    assert not campaign.state.missing, "nothing is published during the operator's pause"
    claim(campaign, command)
    assert campaign.state.paused == "maintenance"


def test_a_resume_forgets_what_was_declined() -> None:
    campaign, command = campaign_with(m.Label)
    for event in (declined(command), missing(), resumed()):
        campaign.deliver(event)
    assert not campaign.state.declined
    assert campaign.state.paused is None
    assert decide(campaign.state, missing(1)) == (campaign.state, ())


def test_a_few_different_reasons_are_kept() -> None:
    campaign, command = campaign_with(m.Label)
    for number in range(100):
        campaign.deliver(declined(command, f"reason {number % 10}", number))
    assert campaign.state.declined[QUEUE].reasons == tuple(
        f"reason {number}" for number in range(MOST_REASONS)
    )


@pytest.mark.slow
@given(st.lists(st.tuples(st.sampled_from("dmcpr"), st.booleans()), max_size=12))
@examples(300, usual=30)
def test_doubled_messages_change_nothing(given: list[tuple[str, bool]]) -> None:
    once, twice = the_same_campaign(), the_same_campaign()
    for number, (which, again) in enumerate(given):
        for campaign, count in ((once, 1), (twice, 1 + again)):
            event = event_of(which, campaign, number)
            for _ in range(count):
                campaign.deliver(event)
    assert once.state == twice.state


def the_same_campaign() -> LossyDelivery:
    campaign, _ = campaign_with(m.Label)
    return campaign


def event_of(which: str, campaign: LossyDelivery, number: int) -> m.Message:
    tasks = campaign.state.under_way(m.Label)
    command = min((task.command for task in tasks), key=lambda command: command.task)
    if which == "d":
        return declined(command, f"reason {number % 2}", number)
    if which == "m":
        return missing(number)
    if which == "c":
        return m.TaskClaimed(**CampaignSimulator.envelope(command, "claim"), worker="w")
    if which == "p":
        return asked_to_pause()
    return resumed(number)


# ----------------------------------------------------------------------------- the coordinator


@pytest.fixture
def harness(tmp_path: Path) -> CoordinatorHarness:
    return CoordinatorHarness(FolderStore(tmp_path))


def labels_of(harness: CoordinatorHarness) -> list[m.Label]:
    return [c for c in harness.published(QUEUE) if isinstance(c, m.Label)]


def state_of(harness: CoordinatorHarness) -> State:
    return harness.coordinator.open_campaigns["world"].state


def test_a_declined_task_is_published_again_for_another_worker(
    harness: CoordinatorHarness,
) -> None:
    harness.submit(spec())
    first, *others = labels_of(harness)
    harness.publish(declined(first))
    harness.step()
    assert labels_of(harness) == []
    harness.pass_time(3.0)
    assert labels_of(harness) == [first]
    assert others


def test_without_a_worker_it_pauses_and_one_task_waits_for_the_right_one(
    harness: CoordinatorHarness,
) -> None:
    harness.submit(spec())
    commands = labels_of(harness)
    harness.publish(*(declined(command) for command in commands))
    harness.pass_time(PATIENCE / 2)
    assert state_of(harness).paused is None
    harness.pass_time(PATIENCE)
    assert state_of(harness).paused == (
        "no worker serves label.tblite: no tblite. The campaign continues as soon as one does, or "
        "after dpstream resume"
    )
    harness.published()
    harness.restart()
    harness.coordinator.open_all()
    harness.step()
    (waiting,) = labels_of(harness)
    assert queue_of(waiting) == QUEUE
    harness.claim(waiting)
    harness.publish(m.TaskClaimed(**CampaignSimulator.envelope(waiting, "claim"), worker="w"))
    harness.step()
    assert state_of(harness).paused is None
    assert len(labels_of(harness)) == len(commands) - 1


def test_a_campaign_that_waits_for_a_worker_wants_one_started(
    harness: CoordinatorHarness,
) -> None:
    harness.submit(spec())
    commands = labels_of(harness)
    assert harness.coordinator.demand()[QUEUE].waiting > 1
    harness.publish(*(declined(command) for command in commands))
    harness.pass_time(2 * PATIENCE)
    assert state_of(harness).missing == {QUEUE}
    assert harness.coordinator.demand() == {QUEUE: Demand(waiting=1, declined=1)}
    waiting = next(command for command in labels_of(harness) if isinstance(command, m.Label))
    harness.claim(waiting)
    harness.publish(m.TaskClaimed(**CampaignSimulator.envelope(waiting, "claim"), worker="w"))
    harness.step()
    demand = harness.coordinator.demand()[QUEUE]
    assert (demand.running, demand.declined) == (1, demand.waiting)
    assert demand.declined > 0, "the workers that have declined it still cannot serve it"
    harness.now += REMEMBERED
    assert harness.coordinator.demand()[QUEUE].declined == 0
    harness.publish(asked_to_pause())
    harness.step()
    assert harness.coordinator.demand() == {}


def test_while_a_worker_is_busy_with_the_queue_it_waits(harness: CoordinatorHarness) -> None:
    harness.submit(spec(labels={"bundle": 1}))
    busy, other = labels_of(harness)[:2]
    harness.claim(busy)
    harness.publish(m.TaskClaimed(**CampaignSimulator.envelope(busy, "claim"), worker="w"))
    harness.publish(declined(other))
    for _ in range(20):
        harness.pass_time(PATIENCE / 10)
        beat = CampaignSimulator.envelope(busy, "beat")
        harness.publish(m.TaskHeartbeat(**beat, worker="w"))
    assert state_of(harness).paused is None


def test_status_says_what_the_workers_lack() -> None:
    campaign, command = campaign_with(m.Label)
    campaign.deliver(declined(command, "QE 6.7, not 7.3"))
    assert overview(campaign.state).declined == {QUEUE: ("QE 6.7, not 7.3",)}
