"""Work that is released, crashes, goes silent or cannot be done at all."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest

from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.state import State, Task
from dpstream.shared import messages as m
from tests.support.campaign_simulator import CampaignSimulator, ref, spec
from tests.support.lossy_delivery import LossyDelivery, check_counters, resumed, revoked

Kind = TypeVar("Kind", bound=m.Command)
ATTEMPTS = 3


def begun(
    kind: type[Kind], world: CampaignSimulator | None = None, **changes: Any
) -> tuple[LossyDelivery, Kind]:
    """A campaign up to the moment when a command of `kind` waits to be claimed; that command."""
    storm = LossyDelivery(world or CampaignSimulator(), spec(**changes))
    storm.until(lambda state: any(isinstance(c, kind) for c in storm.commands))
    command = next(c for c in storm.commands if isinstance(c, kind))
    storm.commands.remove(command)
    return storm, command


def task(storm: LossyDelivery, command: m.Command) -> Task:
    return storm.state.tasks[command.task]


def claim(storm: LossyDelivery, command: m.Command) -> None:
    storm.hear(m.TaskClaimed(**CampaignSimulator.envelope(command, "claim"), worker="w"))


def failed(command: m.Command, permanent: bool = False) -> m.TaskFailed:
    fields = CampaignSimulator.envelope(command, "failed")
    return m.TaskFailed(**fields, permanent=permanent, reason="it broke")


def lapsed(command: m.Command) -> m.LeaseLapsed:
    return m.LeaseLapsed(**CampaignSimulator.envelope(command, "lapsed"))


def released(command: m.Command, delay: float = 0.0) -> m.TaskReleased:
    fields = CampaignSimulator.envelope(command, "released")
    return m.TaskReleased(**fields, reason="spot reclaim", delay=delay)


def again(storm: LossyDelivery, event: m.TaskEvent) -> Any:
    """The next attempt that is decided upon `event`."""
    command = next(d for d in storm.hear(event) if isinstance(d, m.Command))
    storm.commands.remove(command)
    return command


def give_up(storm: LossyDelivery, command: m.Command, permanent: bool) -> None:
    """All attempts of the task fail, or one for good."""
    for _ in range(ATTEMPTS - 1 if not permanent else 0):
        claim(storm, command)
        command = again(storm, failed(command))
    claim(storm, command)
    storm.hear(failed(command, permanent))
    assert task(storm, command).status == "abandoned"
    check_counters(storm.state)


@pytest.mark.parametrize("end", [failed, lapsed])
def test_crashes_and_lapses_count_against_a_task(end: Any) -> None:
    storm, command = begun(m.Train)
    for attempt in (1, 2):
        assert (command.attempt, task(storm, command).lapses) == (attempt, attempt - 1)
        claim(storm, command)
        command = again(storm, end(command))
    claim(storm, command)
    decided = storm.hear(end(command))
    assert [type(d).__name__ for d in decided] == ["TaskAbandoned", "CampaignPaused"]
    assert "after 3 attempts" in (storm.state.paused or "")


def test_releases_do_not_count_against_a_task() -> None:
    storm, command = begun(m.Train)
    for attempt in range(1, 20):
        assert command.attempt == attempt
        claim(storm, command)
        command = again(storm, released(command))
    assert task(storm, command).lapses == 0
    storm.commands.append(command)
    assert storm.run().finished


def test_a_released_task_waits_as_long_as_it_asked_for() -> None:
    storm, command = begun(m.Train)
    claim(storm, command)
    command = again(storm, released(command, delay=30.0))
    assert task(storm, command).not_before == released(command).time + 30.0
    claim(storm, command)
    again(storm, released(command))
    assert task(storm, command).not_before == 0.0


def test_what_an_earlier_attempt_says_of_its_end_is_old_news() -> None:
    storm, command = begun(m.Train)
    claim(storm, command)
    again(storm, lapsed(command))
    for old in (lapsed(command), failed(command), released(command)):
        assert decide(storm.state, old) == (storm.state, ())


# ---------------------------------------------------------------------------------- given up


@pytest.mark.parametrize("permanent", [True, False])
@pytest.mark.parametrize("kind", [m.Train, m.Select, m.Audit])
def test_what_it_cannot_do_without_pauses_and_is_tried_again_when_resumed(
    kind: type[m.Command], permanent: bool
) -> None:
    storm, command = begun(kind)
    give_up(storm, command, permanent)
    paused = storm.run(check_counters)
    assert paused.paused is not None
    assert "it broke" in paused.paused
    assert not paused.finished
    decided = storm.hear(resumed())
    assert [c.task for c in decided if isinstance(c, kind)] == [command.task]
    assert storm.run(check_counters).finished


def test_while_paused_results_are_kept_and_nothing_new_begins() -> None:
    storm, command = begun(m.Train)
    give_up(storm, command, permanent=True)
    issued = len(storm.issued)
    state = storm.run()
    assert len(storm.issued) == issued
    assert len(state.committee.members) == 2
    storm.hear(resumed())
    assert {c.task for c in storm.commands} == {command.task}


def test_the_final_training_given_up_pauses_too() -> None:
    storm = LossyDelivery(CampaignSimulator(), spec())
    storm.until(lambda state: state.stages_over)
    final = storm.commands.pop()
    assert isinstance(final, m.Train)
    give_up(storm, final, permanent=True)
    assert storm.run().paused
    storm.events.append(resumed())
    assert storm.run(check_counters).finished


@pytest.mark.parametrize("permanent", [True, False])
def test_a_trajectory_given_up_counts_as_failed(permanent: bool) -> None:
    storm, command = begun(m.Explore, CampaignSimulator(ripe=1))
    give_up(storm, command, permanent)
    storm.until(lambda state: state.alive(m.Select))
    assert storm.state.exploration.round is not None
    found = storm.state.exploration.round.conditions[str(command.condition)]
    assert (found.counts.accurate, found.dropped) == (10, 10)
    state = storm.run(check_counters)
    assert state.finished
    assert storm.said(m.RoundJudged)[0].outcome == "failed"
    assert storm.said(m.RoundJudged)[1].outcome == "passed"


@pytest.mark.parametrize("permanent", [True, False])
def test_a_label_given_up_rejects_its_frames(permanent: bool) -> None:
    storm, command = begun(m.Label)
    give_up(storm, command, permanent)
    keys = {frame.key for frame in command.frames}
    assert {storm.state.labels.frames[key].status for key in keys} == {"rejected"}
    state = storm.run(check_counters)
    assert state.finished
    assert not keys & set(storm.world.labelled)


@pytest.mark.parametrize("permanent", [True, False])
def test_a_pool_nobody_could_judge_keeps_its_old_verdict(permanent: bool) -> None:
    storm = LossyDelivery(
        CampaignSimulator(ripe=99), spec(mode="streaming", selection={"select_every": 999})
    )
    storm.until(lambda state: state.alive(m.Explore))
    late = storm.take(storm.commands.pop())
    storm.until(lambda state: state.candidates.pool)
    fresh = {f.ref.key: ref(f.ref.key) for f in list(storm.state.labels.frames.values())[:3]}
    dataset = storm.state.dataset
    dataset = replace(dataset, fresh=dataset.fresh.update(fresh))
    storm.state = replace(storm.state, dataset=dataset)
    storm.hear(late[0])
    storm.until(lambda state: state.alive(m.Judge))
    judge = next(c for c in storm.commands if isinstance(c, m.Judge))
    storm.commands.remove(judge)
    for attempt in range(1 if permanent else ATTEMPTS):
        assert judge.attempt == attempt + 1
        claim(storm, judge)
        decided = storm.hear(failed(judge, permanent))
        judge = next((c for c in decided if isinstance(c, m.Judge)), judge)
    storm.commands = [c for c in storm.commands if c.task != judge.task]
    assert set(storm.state.candidates.pool) >= {item.frames.uri for item in judge.pool}
    assert storm.state.alive(m.Judge) == 0
    storm.until(lambda state: state.alive(m.Select))
    storm.until(lambda state: not state.alive(m.Select))


def test_held_out_references_given_up_leave_the_rest_or_nothing() -> None:
    for lost in (1, 2):
        storm = LossyDelivery(CampaignSimulator(), spec())
        storm.until(lambda state: state.submitted)
        for command in storm.hold(m.Reference)[:lost]:
            give_up(storm, command, permanent=True)
        storm.commands += [c for c in storm.issued if isinstance(c, m.Reference)]
        storm.commands = [c for c in storm.commands if task(storm, c).status == "open"]
        state = storm.run(check_counters)
        assert state.finished
        assert (state.dataset.test is None) == (lost == 2)


def test_a_final_model_nobody_could_verify_ends_the_campaign_unconverged() -> None:
    storm, command = begun(m.Verify)
    give_up(storm, command, permanent=True)
    state = storm.run()
    assert state.finished is not None
    assert state.finished.verdict == "not-converged"
    assert "it broke" in state.finished.why


# -------------------------------------------------------------------------------- late labels


def results(command: m.Label) -> m.LabelsDone:
    done = CampaignSimulator().answer(command)[1]
    assert isinstance(done, m.LabelsDone)
    return done


def statuses(state: State, command: m.Label) -> set[str]:
    return {state.labels.frames[frame.key].status for frame in command.frames}


def _keys(command: m.Command) -> list[str]:
    return [frame.key for frame in command.frames] if isinstance(command, m.Label) else []


def test_a_label_of_a_lapsed_attempt_is_kept() -> None:
    storm, command = begun(m.Label)
    claim(storm, command)
    again(storm, lapsed(command))
    storm.hear(results(command))
    assert statuses(storm.state, command) == {"labelled"}
    check_counters(storm.state)


def test_a_label_that_comes_after_its_task_was_given_up_is_kept() -> None:
    storm, command = begun(m.Label)
    give_up(storm, command, permanent=False)
    rejected = storm.state.exploration.stage.rejected
    storm.hear(results(command))
    assert statuses(storm.state, command) == {"labelled"}
    assert storm.state.exploration.stage.rejected <= rejected
    check_counters(storm.state)
    assert storm.run(check_counters).finished


@pytest.mark.parametrize("accurate", [True, False])
def test_a_label_of_a_lapsed_attempt_of_a_revoked_task_is_kept(accurate: bool) -> None:
    storm, command = begun(m.Label)
    frames = storm.state.labels.frames
    for frame in command.frames:
        known = replace(frames[frame.key], accurate=accurate)
        storm.state = storm.state.with_frame(known)
    claim(storm, command)
    second = again(storm, lapsed(command))
    storm.hear(revoked(cancelled(second)))
    assert task(storm, command).status == "cancelled"
    storm.hear(results(command))
    assert statuses(storm.state, command) == {"labelled"}
    check_counters(storm.state)
    assert storm.run(check_counters).finished


def test_a_revoked_task_takes_no_label_back() -> None:
    storm, command = begun(m.Label)
    claim(storm, command)
    second = again(storm, lapsed(command))
    storm.hear(revoked(cancelled(second)))
    third = storm.issued[-1]
    assert (third.task != command.task, _keys(third)) == (True, _keys(command))
    storm.hear(results(command))  # of the first attempt, after all
    storm.hear(revoked(cancelled(third)))
    assert statuses(storm.state, command) == {"labelled"}
    check_counters(storm.state)


def test_a_revoked_task_rejects_nothing_that_another_is_asked_for() -> None:
    storm, command = begun(m.Label)
    claim(storm, command)
    second = again(storm, lapsed(command))
    storm.hear(revoked(cancelled(second)))
    refused = CampaignSimulator(reject=lambda key: True).answer(command)[1]
    storm.hear(refused)
    assert statuses(storm.state, command) == {"pending"}
    check_counters(storm.state)


def cancelled(command: m.Command) -> m.TaskCancelled:
    return m.TaskCancelled(
        id="c", campaign="world", time=2.0, task=command.task, attempt=command.attempt, why=""
    )


def test_labels_that_come_while_paused_are_not_asked_for_again() -> None:
    storm, command = begun(m.Label)
    claim(storm, command)
    second = again(storm, lapsed(command))
    pause = m.CampaignPaused(id="p", campaign="world", time=2.0, why="a person looks at it")
    storm.state = replace(storm.state, paused=pause.why)
    storm.hear(revoked(cancelled(second)))
    assert statuses(storm.state, command) == {"waiting"}
    storm.hear(results(command))
    check_counters(storm.state)
    storm.hear(resumed())
    issued = [f.key for c in storm.commands if isinstance(c, m.Label) for f in c.frames]
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
    storm, command = begun(m.Train, **changes)
    claim(storm, command)
    storm.hear(saved(command, 100))
    storm.hear(saved(command, 200))
    for end in (released, lapsed):
        command = again(storm, end(command))
        assert command.resume == (ref("step-200") if resumes else None)
        claim(storm, command)


def chunk(command: m.Explore, number: int, last: bool = False) -> m.ChunkExplored:
    said = CampaignSimulator()._chunk(command, number, checks=5, accurate=True, last=last)
    assert isinstance(said, m.ChunkExplored)
    return said


def exploring(**changes: Any) -> tuple[LossyDelivery, m.Explore]:
    storm, command = begun(m.Explore, mode="streaming", **changes)
    claim(storm, command)
    return storm, command


def checks_of(storm: LossyDelivery, command: m.Command) -> int:
    assert storm.state.exploration.round is not None
    return storm.state.exploration.round.tallies[command.task].checks


def test_another_attempt_goes_on_after_the_last_chunk() -> None:
    storm, command = exploring()
    for number in (0, 1, 2):
        storm.hear(chunk(command, number))
    second = again(storm, lapsed(command))
    assert (second.from_chunk, second.attempt) == (3, 2)
    assert second.resume == chunk(command, 2).restart


def test_chunks_out_of_order_and_doubled_count_once() -> None:
    storm, command = exploring()
    for number in (2, 0, 2, 3, 0, 1, 1):
        storm.hear(chunk(command, number, last=number == 3))
    assert checks_of(storm, command) == 4 * 5
    assert task(storm, command).status == "done"
    check_counters(storm.state)


def test_another_attempt_makes_up_for_a_chunk_that_was_lost() -> None:
    storm, command = exploring()
    for number in (0, 2, 3):  # chunk 1 was lost with the broker
        storm.hear(chunk(command, number, last=number == 3))
    assert task(storm, command).status == "running"
    second = again(storm, lapsed(command))
    assert second.from_chunk == 1
    assert second.resume == chunk(command, 0).restart
    storm.hear(chunk(second, 1))
    assert task(storm, command).status == "done"


def test_once_the_gap_is_closed_the_latest_restart_counts() -> None:
    storm, command = exploring()
    for number in (0, 2, 1, 3):
        storm.hear(chunk(command, number))
    assert again(storm, lapsed(command)).from_chunk == 4


def test_an_attempt_that_ends_earlier_than_the_one_before_still_ends() -> None:
    storm, command = exploring()
    for number in (0, 2, 3):
        storm.hear(chunk(command, number, last=number == 3))
    second = again(storm, lapsed(command))
    storm.hear(chunk(second, 1, last=True))
    assert task(storm, command).status == "done"


def test_a_trajectory_that_starts_over_forgets_its_restart() -> None:
    storm, command = exploring(reproducible=True)
    storm.hear(chunk(command, 0))
    second = again(storm, lapsed(command))
    assert (second.from_chunk, second.resume) == (0, None)
    storm.hear(chunk(second, 0))
    assert checks_of(storm, command) == 5


def test_chunks_of_two_attempts_at_once_are_counted_once_each() -> None:
    storm, command = exploring()
    storm.hear(chunk(command, 0))
    second = again(storm, lapsed(command))
    for said in (chunk(second, 1), chunk(command, 1), chunk(command, 2, last=True)):
        storm.hear(said)
    assert task(storm, command).status == "done"
    assert checks_of(storm, command) == 3 * 5
