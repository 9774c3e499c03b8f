"""Work that is released, crashes, goes silent or cannot be done at all."""

from __future__ import annotations

from typing import Any

import pytest

from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.state import LostWork
from dpstream.services.coordinator.views.frames import ABANDONED, History
from dpstream.services.coordinator.views.overview import overview
from dpstream.shared import messages as m
from tests.support.campaigns.archived import frames_of
from tests.support.campaigns.campaign_simulator import CampaignSimulator, ref, spec
from tests.support.campaigns.lossy_delivery import LossyDelivery, check_counters, resumed, revoked
from tests.support.campaigns.single_tasks import (
    ATTEMPTS,
    campaign_with,
    claim,
    failed,
    give_up,
    lapsed,
    next_attempt,
    released,
    statuses,
    task,
)


@pytest.mark.parametrize("end", [failed, lapsed])
def test_crashes_and_lapses_count_against_a_task(end: Any) -> None:
    campaign, command = campaign_with(m.Train)
    for attempt in (1, 2):
        assert (command.attempt, task(campaign, command).lapses) == (attempt, attempt - 1)
        claim(campaign, command)
        command = next_attempt(campaign, end(command))
    claim(campaign, command)
    decided = campaign.deliver(end(command))
    assert [type(d).__name__ for d in decided] == ["TaskAbandoned", "CampaignPaused"]
    assert "after 3 attempts" in (campaign.state.paused or "")


def test_releases_do_not_count_against_a_task() -> None:
    campaign, command = campaign_with(m.Train)
    for attempt in range(1, 20):
        assert command.attempt == attempt
        claim(campaign, command)
        command = next_attempt(campaign, released(command))
    assert task(campaign, command).lapses == 0
    campaign.commands.append(command)
    assert campaign.run().finished


def test_a_released_task_waits_as_long_as_it_asked_for() -> None:
    campaign, command = campaign_with(m.Train)
    claim(campaign, command)
    command = next_attempt(campaign, released(command, delay=30.0))
    assert campaign.state.tasks[command.task].delay == 30.0
    claim(campaign, command)
    next_attempt(campaign, released(command))
    assert campaign.state.tasks[command.task].delay == 0.0


def test_what_an_earlier_attempt_says_of_its_end_is_old_news() -> None:
    campaign, command = campaign_with(m.Train)
    claim(campaign, command)
    next_attempt(campaign, lapsed(command))
    for old in (lapsed(command), failed(command), released(command)):
        assert decide(campaign.state, old) == (campaign.state, ())


# ------------------------------------------------------------------------------ what it costs


def test_preemptions_and_the_work_of_lost_workers_are_counted_once() -> None:
    campaign, command = campaign_with(m.Train)
    claim(campaign, command)
    preempted = released(command).model_copy(update={"preempted": True, "seconds": 90.5})
    second = next_attempt(campaign, preempted)
    claim(campaign, second)
    campaign.deliver(preempted)
    assert campaign.state.lost == LostWork(1, 90_500_000)
    third = next_attempt(campaign, lapsed(second).model_copy(update={"seconds": 10.0}))
    assert campaign.state.lost == LostWork(1, 100_500_000)
    claim(campaign, third)
    next_attempt(campaign, released(third).model_copy(update={"seconds": 7.0}))  # e.g. a full disk
    assert campaign.state.lost == LostWork(1, 100_500_000)


# ---------------------------------------------------------------------------------- given up


@pytest.mark.parametrize("permanent", [True, False])
@pytest.mark.parametrize("kind", [m.Train, m.Select, m.Audit])
def test_what_it_cannot_do_without_pauses_and_is_tried_again_when_resumed(
    kind: type[m.Command], permanent: bool
) -> None:
    campaign, command = campaign_with(kind)
    give_up(campaign, command, permanent)
    paused = campaign.run(check_counters)
    assert paused.paused is not None
    assert "it broke" in paused.paused
    assert not paused.finished
    decided = campaign.deliver(resumed())
    assert [c.task for c in decided if isinstance(c, kind)] == [command.task]
    assert campaign.run(check_counters).finished


def test_while_paused_results_are_kept_and_nothing_new_begins() -> None:
    campaign, command = campaign_with(m.Train)
    give_up(campaign, command, permanent=True)
    issued = len(campaign.issued)
    state = campaign.run()
    assert len(campaign.issued) == issued
    assert len(state.committee.members) == 2
    campaign.deliver(resumed())
    assert {c.task for c in campaign.commands} == {command.task}


def test_the_final_training_given_up_pauses_too() -> None:
    campaign = LossyDelivery(CampaignSimulator(), spec())
    campaign.until(lambda state: state.stages_over)
    final = campaign.commands.pop()
    assert isinstance(final, m.Train)
    give_up(campaign, final, permanent=True)
    assert campaign.run().paused
    campaign.events.append(resumed())
    assert campaign.run(check_counters).finished


@pytest.mark.parametrize("permanent", [True, False])
def test_a_trajectory_given_up_counts_as_failed(permanent: bool) -> None:
    campaign, command = campaign_with(m.Explore, CampaignSimulator(ripe=1))
    give_up(campaign, command, permanent)
    campaign.until(lambda state: state.alive(m.Select))
    assert campaign.state.exploration.round is not None
    found = campaign.state.exploration.round.conditions[str(command.condition)]
    assert (found.counts.accurate, found.dropped) == (10, 10)
    state = campaign.run(check_counters)
    assert state.finished
    assert campaign.decisions(m.RoundJudged)[0].outcome == "failed"
    assert campaign.decisions(m.RoundJudged)[1].outcome == "passed"


@pytest.mark.parametrize("permanent", [True, False])
def test_a_label_given_up_rejects_its_frames(permanent: bool) -> None:
    campaign, command = campaign_with(m.Label)
    give_up(campaign, command, permanent)
    keys = {frame.key for frame in command.frames}
    assert {frames_of(campaign.state)[key].status for key in keys} == {"rejected"}
    state = campaign.run(check_counters)
    assert state.finished
    assert not keys & set(campaign.world.labelled)


@pytest.mark.parametrize("permanent", [True, False])
def test_without_one_label_it_pauses_and_goes_on_when_resumed(permanent: bool) -> None:
    """A calculator that does not import, for example, is mended on the workers' machines."""
    campaign = LossyDelivery(CampaignSimulator(), spec())
    campaign.until(lambda state: state.submitted)
    for command in campaign.hold(m.Label):
        give_up(campaign, command, permanent)
    paused = campaign.run(check_counters)
    assert paused.paused is not None
    assert paused.paused.startswith("no initial label was accepted; label ")
    assert "it broke" in paused.paused
    assert paused.finished is None
    rejected = [life.rejected for life in history_of(campaign).lives.values() if life.rejected]
    assert len(rejected) == overview(paused).labels.rejected > 0
    assert all(each.rule == ABANDONED and "it broke" in each.detail for each in rejected)
    for command in [c for c in campaign.deliver(resumed()) if isinstance(c, m.Label)]:
        campaign.commands = [c for c in campaign.commands if c.task != command.task]
        give_up(campaign, command, permanent=True)
    assert campaign.run(check_counters).paused, "not mended yet"
    campaign.events.append(resumed(2))
    state = campaign.run(check_counters)
    assert state.finished is not None
    assert state.finished.verdict == "converged"
    assert not any(life.rejected for life in history_of(campaign).lives.values())


def history_of(campaign: LossyDelivery) -> History:
    return History.of(each for event, decided in campaign.ledger for each in (event, *decided))


@pytest.mark.parametrize("permanent", [True, False])
def test_a_pool_nobody_could_judge_keeps_its_old_verdict(permanent: bool) -> None:
    campaign = LossyDelivery(
        CampaignSimulator(ripe=99), spec(mode="streaming", selection={"select_every": 999})
    )
    campaign.until(lambda state: state.alive(m.Explore))
    late = campaign.take(campaign.commands.pop())
    campaign.until(lambda state: state.candidates.pool)
    campaign.learn("one", "two", "three")
    campaign.deliver(late[0])
    campaign.until(lambda state: state.alive(m.Judge))
    judge = next(c for c in campaign.commands if isinstance(c, m.Judge))
    campaign.commands.remove(judge)
    for attempt in range(1 if permanent else ATTEMPTS):
        assert judge.attempt == attempt + 1
        claim(campaign, judge)
        decided = campaign.deliver(failed(judge, permanent))
        judge = next((c for c in decided if isinstance(c, m.Judge)), judge)
    campaign.commands = [c for c in campaign.commands if c.task != judge.task]
    assert set(campaign.state.candidates.pool) >= {item.frames.uri for item in judge.pool}
    assert campaign.state.alive(m.Judge) == 0
    campaign.until(lambda state: state.alive(m.Select))
    campaign.until(lambda state: not state.alive(m.Select))


def test_held_out_references_given_up_leave_the_rest_or_nothing() -> None:
    for lost in (1, 2):
        campaign = LossyDelivery(CampaignSimulator(), spec())
        campaign.until(lambda state: state.submitted)
        for command in campaign.hold(m.Reference)[:lost]:
            give_up(campaign, command, permanent=True)
        campaign.commands += [c for c in campaign.issued if isinstance(c, m.Reference)]
        campaign.commands = [c for c in campaign.commands if task(campaign, c).status == "open"]
        state = campaign.run(check_counters)
        assert state.finished
        assert (state.dataset.test is None) == (lost == 2)


def test_a_final_model_nobody_could_verify_ends_the_campaign_unconverged() -> None:
    campaign, command = campaign_with(m.Verify)
    give_up(campaign, command, permanent=True)
    state = campaign.run()
    assert state.finished is not None
    assert state.finished.verdict == "not-converged"
    assert "it broke" in state.finished.why


# -------------------------------------------------------------------------------- late labels


def deliver_results(
    campaign: LossyDelivery, command: m.Label, world: CampaignSimulator | None = None
) -> None:
    for result in (world or CampaignSimulator()).answer(command)[1:]:
        assert isinstance(result, m.LabelsDone)
        campaign.deliver(result)


def _keys(command: m.Command) -> list[str]:
    return [frame.key for frame in command.frames] if isinstance(command, m.Label) else []


def test_a_label_of_a_lapsed_attempt_is_kept() -> None:
    campaign, command = campaign_with(m.Label)
    claim(campaign, command)
    next_attempt(campaign, lapsed(command))
    deliver_results(campaign, command)
    assert statuses(campaign.state, command) == {"labelled"}
    check_counters(campaign.state)


def test_a_label_that_comes_after_its_task_was_given_up_is_kept() -> None:
    campaign, command = campaign_with(m.Label)
    give_up(campaign, command, permanent=False)
    rejected = campaign.state.exploration.stage.rejected
    deliver_results(campaign, command)
    assert statuses(campaign.state, command) == {"labelled"}
    assert campaign.state.exploration.stage.rejected <= rejected
    check_counters(campaign.state)
    assert campaign.run(check_counters).finished


@pytest.mark.parametrize("accurate", [True, False])
def test_a_label_of_a_lapsed_attempt_of_a_revoked_task_is_kept(accurate: bool) -> None:
    campaign, command = campaign_with(m.Label)
    frames = campaign.state.labels.frames
    for frame in command.frames:
        known = replace(frames[frame.key], accurate=accurate)
        campaign.state = campaign.state.with_frame(known)
    claim(campaign, command)
    second = next_attempt(campaign, lapsed(command))
    campaign.deliver(revoked(cancelled(second)))
    assert task(campaign, command).status == "cancelled"
    deliver_results(campaign, command)
    assert statuses(campaign.state, command) == {"labelled"}
    check_counters(campaign.state)
    assert campaign.run(check_counters).finished


def test_a_revoked_task_takes_no_label_back() -> None:
    campaign, command = campaign_with(m.Label)
    claim(campaign, command)
    second = next_attempt(campaign, lapsed(command))
    campaign.deliver(revoked(cancelled(second)))
    third = campaign.issued[-1]
    assert (third.task != command.task, _keys(third)) == (True, _keys(command))
    deliver_results(campaign, command)  # of the first attempt, after all
    campaign.deliver(revoked(cancelled(third)))
    assert statuses(campaign.state, command) == {"labelled"}
    check_counters(campaign.state)


def test_a_revoked_task_rejects_nothing_that_another_is_asked_for() -> None:
    campaign, command = campaign_with(m.Label)
    claim(campaign, command)
    second = next_attempt(campaign, lapsed(command))
    campaign.deliver(revoked(cancelled(second)))
    deliver_results(campaign, command, CampaignSimulator(reject=lambda key: True))
    assert statuses(campaign.state, command) == {"pending"}
    check_counters(campaign.state)


def cancelled(command: m.Command) -> m.TaskCancelled:
    return m.TaskCancelled(
        id="c", campaign="world", time=2.0, task=command.task, attempt=command.attempt, why=""
    )


def test_labels_that_come_while_paused_are_not_asked_for_again() -> None:
    campaign, command = campaign_with(m.Label)
    claim(campaign, command)
    second = next_attempt(campaign, lapsed(command))
    pause = m.CampaignPaused(id="p", campaign="world", time=2.0, why="a person looks at it")
    campaign.state = replace(campaign.state, paused=pause.why)
    campaign.deliver(revoked(cancelled(second)))
    assert statuses(campaign.state, command) == {"waiting"}
    deliver_results(campaign, command)
    check_counters(campaign.state)
    campaign.deliver(resumed())
    issued = [f.key for c in campaign.commands if isinstance(c, m.Label) for f in c.frames]
    assert not set(issued) & {frame.key for frame in command.frames}


# ------------------------------------------------------------------------ checkpoints and restarts


def saved(command: m.Command, step: int) -> m.CheckpointSaved:
    fields = CampaignSimulator.envelope(command, f"step-{step}")
    return m.CheckpointSaved(**fields, checkpoint=ref(f"step-{step}"), step=step)


@pytest.mark.parametrize(
    ("changes", "resumes"),
    [
        ({"mode": "streaming"}, True),
        ({"mode": "lockstep"}, False),
        ({"mode": "streaming", "reproducible": True}, False),
        ({"mode": "lockstep", "reproducible": False}, True),
    ],
)
def test_a_training_resumes_from_its_checkpoint_unless_it_starts_over(
    changes: dict[str, Any], resumes: bool
) -> None:
    campaign, command = campaign_with(m.Train, **changes)
    claim(campaign, command)
    campaign.deliver(saved(command, 100))
    campaign.deliver(saved(command, 200))
    for end in (released, lapsed):
        command = next_attempt(campaign, end(command))
        assert command.resume == (ref("step-200") if resumes else None)
        claim(campaign, command)


def chunk(command: m.Explore, number: int, last: bool = False) -> m.ChunkExplored:
    said = CampaignSimulator(ripe=-9)._chunk(command, number, checks=5, last=last)
    assert isinstance(said, m.ChunkExplored)
    return said


def exploring(**changes: Any) -> tuple[LossyDelivery, m.Explore]:
    campaign, command = campaign_with(m.Explore, mode="streaming", **changes)
    claim(campaign, command)
    return campaign, command


def checks_of(campaign: LossyDelivery, command: m.Command) -> int:
    assert campaign.state.exploration.round is not None
    return campaign.state.exploration.round.tallies[command.task].checks


def test_another_attempt_goes_on_after_the_last_chunk() -> None:
    campaign, command = exploring()
    for number in (0, 1, 2):
        campaign.deliver(chunk(command, number))
    second = next_attempt(campaign, lapsed(command))
    assert (second.from_chunk, second.attempt) == (3, 2)
    assert second.resume == chunk(command, 2).restart


def test_chunks_out_of_order_and_doubled_count_once() -> None:
    campaign, command = exploring()
    for number in (2, 0, 2, 3, 0, 1, 1):
        campaign.deliver(chunk(command, number, last=number == 3))
    assert checks_of(campaign, command) == 4 * 5
    assert task(campaign, command).status == "done"
    check_counters(campaign.state)


def test_another_attempt_makes_up_for_a_chunk_that_was_lost() -> None:
    campaign, command = exploring()
    for number in (0, 2, 3):  # chunk 1 was lost with the broker
        campaign.deliver(chunk(command, number, last=number == 3))
    assert task(campaign, command).status == "running"
    second = next_attempt(campaign, lapsed(command))
    assert second.from_chunk == 1
    assert second.resume == chunk(command, 0).restart
    campaign.deliver(chunk(second, 1))
    assert task(campaign, command).status == "done"


def test_once_the_gap_is_closed_the_latest_restart_counts() -> None:
    campaign, command = exploring()
    for number in (0, 2, 1, 3):
        campaign.deliver(chunk(command, number))
    assert next_attempt(campaign, lapsed(command)).from_chunk == 4


def test_an_attempt_that_ends_earlier_than_the_one_before_still_ends() -> None:
    campaign, command = exploring()
    for number in (0, 2, 3):
        campaign.deliver(chunk(command, number, last=number == 3))
    second = next_attempt(campaign, lapsed(command))
    campaign.deliver(chunk(second, 1, last=True))
    assert task(campaign, command).status == "done"


def test_a_trajectory_that_starts_over_forgets_its_restart() -> None:
    campaign, command = exploring(reproducible=True)
    campaign.deliver(chunk(command, 0))
    second = next_attempt(campaign, lapsed(command))
    assert (second.from_chunk, second.resume) == (0, None)
    campaign.deliver(chunk(second, 0))
    assert checks_of(campaign, command) == 5


def test_chunks_of_two_attempts_at_once_are_counted_once_each() -> None:
    campaign, command = exploring()
    campaign.deliver(chunk(command, 0))
    second = next_attempt(campaign, lapsed(command))
    for said in (chunk(second, 1), chunk(command, 1), chunk(command, 2, last=True)):
        campaign.deliver(said)
    assert task(campaign, command).status == "done"
    assert checks_of(campaign, command) == 3 * 5
