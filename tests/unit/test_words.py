"""What people say of a campaign: pause, resume, cancel, try again. Each word counts once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.rules.lost_work import abandoned, is_of_use
from dpstream.shared import messages as m
from tests.support.campaign_simulator import CampaignSimulator, spec
from tests.support.lossy_delivery import LossyDelivery, check_counters, replayed, resumed
from tests.support.soak import examples
from tests.unit.test_lost_work import begun, claim, failed, give_up, statuses, task


def said(kind: Any, number: int = 0, **fields: Any) -> Any:
    return kind(id=f"{kind.__name__}-{number}", campaign="world", time=5.0, **fields)


def paused(number: int = 0) -> m.CampaignPaused:
    return said(m.CampaignPaused, number, why="maintenance")  # type: ignore[no-any-return]


def test_a_person_pauses_and_results_are_still_taken_in() -> None:
    storm, command = begun(m.Label)
    issued = len(storm.issued)
    storm.hear(paused())
    storm.commands.append(command)
    state = storm.run(check_counters)
    assert (state.paused, len(storm.issued)) == ("maintenance", issued)
    assert statuses(state, command) == {"labelled"}
    storm.hear(resumed())
    assert storm.run(check_counters).finished


def test_a_day_old_resume_does_not_end_todays_pause() -> None:
    storm, _ = begun(m.Label)
    storm.hear(paused(1))
    storm.hear(resumed(1))
    storm.hear(paused(2))
    for old in (paused(1), resumed(1)):
        assert decide(storm.state, old) == (storm.state, ())
    assert storm.state.paused == "maintenance"


def test_our_own_pause_coming_back_does_not_pause_again() -> None:
    storm, command = begun(m.Train)
    give_up(storm, command, permanent=True)
    (own,) = storm.said(m.CampaignPaused)
    storm.hear(resumed())
    assert decide(storm.state, own) == (storm.state, ())
    assert storm.run().finished


def test_a_cancelled_campaign_keeps_what_it_has_and_asks_for_nothing() -> None:
    storm, command = begun(m.Label)
    late = storm.take(command)
    others = {t.command.task for t in storm.state.tasks.values() if t.is_live} - {command.task}
    decided = storm.hear(said(m.CampaignCancelled, why="wrong system"))
    cancelled = {d.task for d in decided if isinstance(d, m.TaskCancelled)}
    assert cancelled == {*others, command.task}
    storm.events += late
    storm.commands.clear()
    state = storm.run(check_counters)
    assert state.finished is not None
    assert (state.finished.verdict, state.finished.why) == ("cancelled", "wrong system")
    assert statuses(state, command) == {"labelled"}
    assert not any(isinstance(d, m.Command) for d in decided)
    for word in (paused(7), resumed(7), said(m.CampaignCancelled, 7), said(m.TasksRetried, 7)):
        assert decide(state, word) == (state, ())


def test_a_label_released_after_the_end_is_not_issued_again() -> None:
    storm, command = begun(m.Label)
    claim(storm, command)
    storm.hear(said(m.CampaignCancelled))
    fields = CampaignSimulator.envelope(command, "released")
    assert storm.hear(m.TaskReleased(**fields, reason="spot reclaim")) == ()


def test_frames_given_up_are_awaited_again_when_their_task_is_retried() -> None:
    storm, command = begun(m.Label)
    give_up(storm, command, permanent=True)
    assert statuses(storm.state, command) == {"rejected"}
    (again,) = storm.hear(said(m.TasksRetried))
    storm.commands.remove(again)
    assert isinstance(again, m.Label)
    assert (again.task, again.attempt) == (command.task, 2)
    assert statuses(storm.state, command) == {"pending"}
    check_counters(storm.state)
    for attempt in (2, 3):  # a clean sheet: the first attempt's failure is not held against it
        claim(storm, again)
        (again,) = storm.hear(failed(again))
        storm.commands.remove(again)
        assert again.attempt == attempt + 1  # type: ignore[attr-defined]
    storm.commands.append(again)
    assert storm.run(check_counters).finished
    assert statuses(storm.state, command) == {"labelled"}


def test_only_the_tasks_that_are_named_are_tried_again() -> None:
    storm, command = begun(m.Label)
    other = next(c for c in storm.commands if isinstance(c, m.Label))
    storm.commands.remove(other)
    for given_up in (command, other):
        give_up(storm, given_up, permanent=True)
    decided = storm.hear(said(m.TasksRetried, tasks=(other.task,)))
    assert [getattr(d, "task", None) for d in decided] == [other.task]
    assert task(storm, command).status == "abandoned"


def test_a_trajectory_that_was_given_up_stays_so() -> None:
    storm, command = begun(m.Explore)
    give_up(storm, command, permanent=True)
    assert not [t for t in abandoned(storm.state) if is_of_use(storm.state, t)]
    assert storm.hear(said(m.TasksRetried)) == ()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_held_out_reference_is_worth_another_try_until_the_set_is_frozen(frozen: bool) -> None:
    storm, command = begun(m.Reference)
    give_up(storm, command, permanent=True)
    if frozen:
        storm.until(lambda state: state.dataset.test is not None)
    again = [d for d in storm.hear(said(m.TasksRetried)) if isinstance(d, m.Reference)]
    assert [c.task for c in again] == ([] if frozen else [command.task])


WORDS = st.lists(
    st.tuples(
        st.integers(0, 150),
        st.sampled_from([m.CampaignPaused, m.CampaignResumed, m.TasksRetried]),
    ),
    max_size=8,
)


@examples(15, usual=6)
@given(st.integers(0, 2**32), WORDS, st.sampled_from([None, 40, 200]))
def test_whatever_people_say_in_whatever_weather_the_books_are_true(
    seed: int, words: Any, cancelled_at: int | None
) -> None:
    of = spec(mode="streaming")
    storm = LossyDelivery(CampaignSimulator(reject=lambda key: key[0] == "7"), of, seed, faults=0.2)
    for step in range(400):
        for number, (when, kind) in enumerate(words):
            if when == step:
                fields = {"why": "wait"} if kind is m.CampaignPaused else {}
                storm.events += [said(kind, number, **fields)] * 2
        if step == cancelled_at:
            storm.events += [said(m.CampaignCancelled)] * 2
        if storm.events or storm.commands:
            storm.step()
            check_counters(storm.state)
    for number in range(100, 150):
        state = storm.run(check_counters)
        if state.paused is None:
            break
        storm.events.append(resumed(number))
    assert state.finished is not None
    assert replayed(of, storm.ledger).dumps() == state.dumps()
    assert len(storm.said(m.CampaignFinished)) == 1
