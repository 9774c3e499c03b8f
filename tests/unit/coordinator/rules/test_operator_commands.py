"""Requests of an operator: pause, resume, cancel, retry. Each takes effect once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.rules.lost_work import abandoned, is_of_use
from dpstream.shared import messages as m
from tests.support.campaigns.campaign_simulator import CampaignSimulator, spec
from tests.support.campaigns.lossy_delivery import LossyDelivery, check_counters, replayed, resumed
from tests.support.campaigns.single_tasks import (
    campaign_with,
    claim,
    failed,
    give_up,
    statuses,
    task,
)
from tests.support.soak import examples


def request(kind: Any, number: int = 0, **fields: Any) -> Any:
    return kind(id=f"{kind.__name__}-{number}", campaign="world", time=5.0, **fields)


def paused(number: int = 0) -> m.CampaignPaused:
    return request(m.CampaignPaused, number, why="maintenance")  # type: ignore[no-any-return]


def test_results_are_still_accepted_while_paused() -> None:
    campaign, command = campaign_with(m.Label)
    issued = len(campaign.issued)
    campaign.deliver(paused())
    campaign.commands.append(command)
    state = campaign.run(check_counters)
    assert (state.paused, len(campaign.issued)) == ("maintenance", issued)
    assert statuses(state, command) == {"labelled"}
    campaign.deliver(resumed())
    assert campaign.run(check_counters).finished


def test_a_day_old_resume_does_not_end_todays_pause() -> None:
    campaign, _ = campaign_with(m.Label)
    campaign.deliver(paused(1))
    campaign.deliver(resumed(1))
    campaign.deliver(paused(2))
    for old in (paused(1), resumed(1)):
        assert decide(campaign.state, old) == (campaign.state, ())
    assert campaign.state.paused == "maintenance"


def test_a_pause_by_the_coordinator_that_comes_back_does_not_pause_again() -> None:
    campaign, command = campaign_with(m.Train)
    give_up(campaign, command, permanent=True)
    (own,) = campaign.decisions(m.CampaignPaused)
    campaign.deliver(resumed())
    assert decide(campaign.state, own) == (campaign.state, ())
    assert campaign.run().finished


def test_a_cancelled_campaign_keeps_its_results_and_issues_nothing() -> None:
    campaign, command = campaign_with(m.Label)
    late = campaign.take(command)
    others = {t.command.task for t in campaign.state.tasks.values() if t.is_live} - {command.task}
    decided = campaign.deliver(request(m.CampaignCancelled, why="wrong system"))
    cancelled = {d.task for d in decided if isinstance(d, m.TaskCancelled)}
    assert cancelled == {*others, command.task}
    campaign.events += late
    campaign.commands.clear()
    state = campaign.run(check_counters)
    assert state.finished is not None
    assert (state.finished.verdict, state.finished.why) == ("cancelled", "wrong system")
    assert statuses(state, command) == {"labelled"}
    assert not any(isinstance(d, m.Command) for d in decided)
    for late in (
        paused(7),
        resumed(7),
        request(m.CampaignCancelled, 7),
        request(m.TasksRetried, 7),
    ):
        assert decide(state, late) == (state, ())


def test_a_label_released_after_the_end_is_not_issued_again() -> None:
    campaign, command = campaign_with(m.Label)
    claim(campaign, command)
    campaign.deliver(request(m.CampaignCancelled))
    fields = CampaignSimulator.envelope(command, "released")
    assert campaign.deliver(m.TaskReleased(**fields, reason="spot reclaim")) == ()


def test_frames_given_up_are_awaited_again_when_their_task_is_retried() -> None:
    campaign, command = campaign_with(m.Label)
    give_up(campaign, command, permanent=True)
    assert statuses(campaign.state, command) == {"rejected"}
    (again,) = campaign.deliver(request(m.TasksRetried))
    campaign.commands.remove(again)
    assert isinstance(again, m.Label)
    assert (again.task, again.attempt) == (command.task, 2)
    assert statuses(campaign.state, command) == {"pending"}
    check_counters(campaign.state)
    for attempt in (2, 3):  # a clean sheet: the first attempt's failure is not held against it
        claim(campaign, again)
        (again,) = campaign.deliver(failed(again))
        campaign.commands.remove(again)
        assert again.attempt == attempt + 1  # type: ignore[attr-defined]
    campaign.commands.append(again)
    assert campaign.run(check_counters).finished
    assert statuses(campaign.state, command) == {"labelled"}


def test_only_the_tasks_that_are_named_are_tried_again() -> None:
    campaign, command = campaign_with(m.Label)
    other = next(c for c in campaign.commands if isinstance(c, m.Label))
    campaign.commands.remove(other)
    for given_up in (command, other):
        give_up(campaign, given_up, permanent=True)
    decided = campaign.deliver(request(m.TasksRetried, tasks=(other.task,)))
    assert [getattr(d, "task", None) for d in decided] == [other.task]
    assert task(campaign, command).status == "abandoned"


def test_a_trajectory_that_was_given_up_stays_so() -> None:
    campaign, command = campaign_with(m.Explore)
    give_up(campaign, command, permanent=True)
    assert not [t for t in abandoned(campaign.state) if is_of_use(campaign.state, t)]
    assert campaign.deliver(request(m.TasksRetried)) == ()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_held_out_reference_is_worth_another_try_until_the_set_is_frozen(frozen: bool) -> None:
    campaign, command = campaign_with(m.Reference)
    give_up(campaign, command, permanent=True)
    if frozen:
        campaign.until(lambda state: state.dataset.test is not None)
    again = [d for d in campaign.deliver(request(m.TasksRetried)) if isinstance(d, m.Reference)]
    assert [c.task for c in again] == ([] if frozen else [command.task])


REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 150),
        st.sampled_from([m.CampaignPaused, m.CampaignResumed, m.TasksRetried]),
    ),
    max_size=8,
)


@pytest.mark.slow
@examples(15, usual=6)
@given(st.integers(0, 2**32), REQUESTS, st.sampled_from([None, 40, 200]))
def test_requests_at_any_time_keep_the_counters_right_on_a_lossy_bus(
    seed: int, requests: Any, cancelled_at: int | None
) -> None:
    of = spec(mode="streaming")
    campaign = LossyDelivery(
        CampaignSimulator(reject=lambda key: key[0] == "7"), of, seed, faults=0.2
    )
    for step in range(400):
        for number, (when, kind) in enumerate(requests):
            if when == step:
                fields = {"why": "wait"} if kind is m.CampaignPaused else {}
                campaign.events += [request(kind, number, **fields)] * 2
        if step == cancelled_at:
            campaign.events += [request(m.CampaignCancelled)] * 2
        if campaign.events or campaign.commands:
            campaign.step()
            check_counters(campaign.state)
    for number in range(100, 150):
        state = campaign.run(check_counters)
        if state.paused is None:
            break
        campaign.events.append(resumed(number))
    assert state.finished is not None
    assert replayed(of, campaign.ledger).dumps() == state.dumps()
    assert len(campaign.decisions(m.CampaignFinished)) == 1
