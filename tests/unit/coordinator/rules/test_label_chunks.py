"""Verdicts of a label task that arrive in several chunks, from one attempt or from several."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpstream.services.coordinator.views.frames import History
from dpstream.shared import messages as m
from dpstream.shared.codec import decode, encode
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import Accepted, Rejected
from tests.support.campaigns.archived import frames_of
from tests.support.campaigns.campaign_simulator import CampaignSimulator, spec
from tests.support.campaigns.coordinator import CoordinatorHarness, first_task, status
from tests.support.campaigns.lossy_delivery import (
    Entry,
    LossyDelivery,
    check_counters,
    replayed,
    revoked,
)
from tests.support.campaigns.single_tasks import (
    campaign_with,
    claim,
    failed,
    give_up,
    lapsed,
    next_attempt,
    statuses,
    task,
)
from tests.support.soak import examples

SECONDS = 2.0


def chunks(command: m.Label, reject: bool = False) -> list[Any]:
    """The results of an attempt; the first has one frame for each."""
    world = CampaignSimulator(reject=lambda key: reject, label_seconds=SECONDS)
    return world.answer(command)[1:]


def labelling() -> tuple[LossyDelivery, m.Label]:
    """A campaign with a claimed task of three frames."""
    campaign, command = campaign_with(m.Label)
    claim(campaign, command)
    assert len(command.frames) == 3
    return campaign, command


def frame_statuses(campaign: LossyDelivery, command: m.Label) -> list[str]:
    return [frames_of(campaign.state)[frame.key].status for frame in command.frames]


def test_a_label_counts_before_the_next_frame_is_computed() -> None:
    campaign, command = labelling()
    first, second, third = chunks(command)
    campaign.deliver(first)
    assert frame_statuses(campaign, command) == ["labelled", "pending", "pending"]
    assert command.frames[0].key in campaign.state.dataset.fresh
    assert task(campaign, command).status == "running"
    check_counters(campaign.state)
    campaign.deliver(second)
    campaign.deliver(third)
    assert task(campaign, command).status == "done"


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 1, 2, 1, 0), (2, 0, 2, 1)])
def test_labels_out_of_order_and_doubled_count_once(order: Sequence[int]) -> None:
    campaign, command = labelling()
    before = campaign.state.labels
    for number in order:
        assert task(campaign, command).status == "running"
        campaign.deliver(chunks(command)[number])
    assert task(campaign, command).status == "done"
    assert statuses(campaign.state, command) == {"labelled"}
    after = campaign.state.labels
    assert after.computed - before.computed == 3
    assert after.microseconds - before.microseconds == 3 * round(1e6 * SECONDS)
    check_counters(campaign.state)


def test_the_next_attempt_has_only_the_frames_without_a_verdict() -> None:
    campaign, command = labelling()
    campaign.deliver(chunks(command)[0])
    campaign.deliver(chunks(command, reject=True)[1])
    second = next_attempt(campaign, lapsed(command))
    assert second.frames == command.frames[2:]
    campaign.deliver(chunks(second)[0])
    assert frame_statuses(campaign, command) == ["labelled", "rejected", "labelled"]
    assert task(campaign, command).status == "done"


def test_of_two_attempts_the_first_verdict_on_a_frame_counts() -> None:
    """The first attempt's verdicts arrive after the second was issued with all frames."""
    campaign, command = labelling()
    before = campaign.state.labels.computed
    second = next_attempt(campaign, lapsed(command))
    assert second.frames == command.frames
    late, accepted = chunks(command, reject=True)[0], chunks(second)
    assert [len(each.accepted) for each in accepted] == [2, 1]
    for result in (late, *accepted, *chunks(command)):
        campaign.deliver(result)
    assert frame_statuses(campaign, command) == ["rejected", "labelled", "labelled"]
    assert campaign.state.labels.computed - before == 3
    _check_views(campaign)


def test_a_chunk_of_one_attempt_is_no_chunk_of_another() -> None:
    campaign, command = labelling()
    second = next_attempt(campaign, lapsed(command))
    campaign.deliver(chunks(command)[0])
    campaign.deliver(chunks(second)[0])
    assert frame_statuses(campaign, command) == ["labelled", "labelled", "pending"]
    campaign.deliver(chunks(second)[1])
    assert task(campaign, command).status == "done"


def test_a_revoked_task_gives_back_only_the_frames_without_a_verdict() -> None:
    campaign, command = labelling()
    second = next_attempt(campaign, lapsed(command))
    campaign.deliver(chunks(command)[0])
    campaign.deliver(revoked(_cancelled(second)))
    third = campaign.issued[-1]
    assert isinstance(third, m.Label)
    assert third.frames == command.frames[1:]
    assert frame_statuses(campaign, command) == ["labelled", "pending", "pending"]
    campaign.deliver(chunks(command)[1])
    campaign.deliver(chunks(command, reject=True)[2])
    assert frame_statuses(campaign, command) == ["labelled", "labelled", "pending"]
    check_counters(campaign.state)


def _cancelled(command: m.Command) -> m.TaskCancelled:
    fields = CampaignSimulator.envelope(command, "cancelled")
    return m.TaskCancelled(**fields, why="")


def test_an_abandoned_task_rejects_and_retries_only_the_frames_without_a_verdict() -> None:
    campaign, command = labelling()
    campaign.deliver(chunks(command)[0])
    campaign.deliver(chunks(command, reject=True)[1])
    give_up(campaign, command, permanent=True)
    assert frame_statuses(campaign, command) == ["labelled", "rejected", "rejected"]
    retry = m.TasksRetried(id="retry", campaign="world", time=3.0, tasks=(command.task,))
    again = next_attempt(campaign, retry)  # type: ignore[arg-type]
    assert again.frames == command.frames[2:]
    assert frame_statuses(campaign, command) == ["labelled", "rejected", "pending"]
    check_counters(campaign.state)


def test_failures_after_a_chunk_count_towards_the_attempts() -> None:
    campaign, command = labelling()
    campaign.deliver(chunks(command)[0])
    second = next_attempt(campaign, failed(command))
    claim(campaign, second)
    campaign.deliver(chunks(second)[0])
    assert task(campaign, command).lapses == 1


def test_a_result_of_an_earlier_release_is_whole() -> None:
    campaign, command = labelling()
    results = chunks(command.model_copy(update={"attempt": 3}))
    body = json.loads(encode(results[0]))
    del body["chunk"], body["last"]
    body["attempt"] = command.attempt
    result = decode(json.dumps(body).encode())
    assert isinstance(result, m.LabelsDone)
    assert (result.chunk, result.last) == (0, True)
    campaign.deliver(result)
    assert task(campaign, command).status == "done"


def test_a_result_of_an_attempt_that_was_never_issued_does_not_count() -> None:
    campaign, command = labelling()
    before = campaign.state
    for result in chunks(command.model_copy(update={"attempt": 98})):
        campaign.deliver(result)
    assert campaign.state == before


# ------------------------------------------------------------------------------- the coordinator


@pytest.fixture
def harness(tmp_path: Path) -> CoordinatorHarness:
    return CoordinatorHarness(FolderStore(tmp_path))


def test_the_time_of_a_task_is_that_of_its_last_chunk(harness: CoordinatorHarness) -> None:
    open_campaign, command = first_task(harness, spec(verification={}))
    assert isinstance(command, m.Label)
    assert harness.claim(command)
    *early, last = chunks(command)
    harness.publish(*early)
    harness.step()
    assert open_campaign.usual_seconds == {}
    harness.publish(last.model_copy(update={"seconds": 90.0}))
    harness.step()
    assert open_campaign.usual_seconds == {"label.tblite": 90.0}
    assert open_campaign.computed_labels == len(command.frames)


def test_a_chunk_extends_the_lease(harness: CoordinatorHarness) -> None:
    open_campaign, command = first_task(harness)
    assert isinstance(command, m.Label)
    harness.claim(command)
    claimed, first, *_ = harness.world.answer(command)
    harness.publish(claimed)
    harness.step()
    before = open_campaign.leases[command.task]
    harness.now += 100.0
    harness.publish(first)
    harness.step()
    assert open_campaign.leases[command.task] >= before + 100.0
    assert status(open_campaign, command) == "running"


# ------------------------------------------------------------------------------------ properties


class Fickle(CampaignSimulator):
    """Every attempt judges frames differently."""

    def _label(self, command: m.Label) -> list[m.Message]:
        self.reject = lambda key: (int(key[:8], 16) + command.attempt) % 3 == 0
        return super()._label(command)


@pytest.mark.slow
@examples(20, usual=8)
@given(
    st.integers(0, 2**32),
    st.sampled_from(["lockstep", "streaming"]),
    st.sampled_from([0.1, 0.3, 0.6]),
)
def test_attempts_that_die_between_chunks_change_no_verdict(
    seed: int, mode: str, faults: float
) -> None:
    of = spec(mode=mode, labels={"bundle": 5}, initial={"perturb": {"copies": 12}})
    campaign = LossyDelivery(Fickle(label_seconds=SECONDS), of, seed, faults)
    state = campaign.run_resumed(check_counters)
    assert state.finished is not None
    assert replayed(of, campaign.ledger).dumps() == state.dumps()
    _check_views(campaign)
    _assert_no_frame_is_issued_after_its_verdict(campaign.ledger)
    _assert_each_verdict_is_counted_once(campaign)


def _check_views(campaign: LossyDelivery) -> None:
    """The history of every frame ends as its state does."""
    history = History()
    for event, decided in campaign.ledger:
        for message in (event, *decided):
            history.add(message)
    for key, frame in frames_of(campaign.state).items():
        verdict = history.lives[key].verdict
        if frame.status == "labelled":
            assert isinstance(verdict, Accepted)
            assert verdict.label.uri == frame.label
        else:
            assert verdict is None or isinstance(verdict, Rejected)


def _verdicts(ledger: Iterable[Entry]) -> dict[tuple[str, str], Accepted | Rejected]:
    """The first verdict of each task on each of its frames."""
    found: dict[tuple[str, str], Accepted | Rejected] = {}
    for event, _ in ledger:
        if isinstance(event, m.LabelsDone):
            for verdict in (*event.accepted, *event.rejected):
                found.setdefault((event.task, verdict.key), verdict)
    return found


def _assert_no_frame_is_issued_after_its_verdict(ledger: Sequence[Entry]) -> None:
    for number, (_, decided) in enumerate(ledger):
        for command in decided:
            if isinstance(command, m.Label):
                answered = _verdicts(ledger[: number + 1])
                assert command.frames
                assert not [ref for ref in command.frames if (command.task, ref.key) in answered]


def _assert_each_verdict_is_counted_once(campaign: LossyDelivery) -> None:
    seconds = [verdict.seconds for verdict in _verdicts(campaign.ledger).values()]
    labels = campaign.state.labels
    assert labels.computed == len(seconds)
    assert labels.microseconds == sum(round(1e6 * each) for each in seconds)
    assert set(seconds) >= {SECONDS}
