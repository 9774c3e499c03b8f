"""A coordinator among others and over a broker with a memory of its own: what it takes over at its
start, when it finds out that it was overtaken, what becomes of dead letters."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dpstream.services.coordinator.ledger.ledger import campaigns, load_state, verdict
from dpstream.services.coordinator.service import BATCH, FENCE_CHECK
from dpstream.shared import messages as m
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.bus.topology import DEADLETTERS
from dpstream.shared.codec import MAX_BODY, encode
from dpstream.shared.errors import Fenced
from dpstream.shared.ports import Outgoing
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.store import dead_letters
from dpstream.shared.store.dead_letters import count_buried
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import campaign_uri
from tests.support.adapters.dead_letters import letters
from tests.support.adapters.published import Published
from tests.support.campaigns.archived import tasks_of
from tests.support.campaigns.campaign_simulator import submission
from tests.support.campaigns.coordinator import (
    LEASE,
    CoordinatorHarness,
    first_task,
    serving,
    small,
    status,
)

pytestmark = pytest.mark.usefixtures("no_log_lines")
ATTEMPTS = 3


@pytest.fixture
def harness(tmp_path: Path) -> CoordinatorHarness:
    return CoordinatorHarness(FolderStore(tmp_path))


def bury(harness: CoordinatorHarness, *bodies: bytes) -> None:
    """What a broker does in the end."""
    harness.bus.publish([Outgoing(body, queue=DEADLETTERS) for body in bodies])


def read_deadletters(harness: CoordinatorHarness) -> None:
    subscription = harness.bus.consume(DEADLETTERS, prefetch=10)
    while (delivery := subscription.next(timeout=0.0)) is not None:
        harness.coordinator.receive([delivery])
    subscription.cancel()
    harness.step()


# ------------------------------------------------------------------------------- taking over


def test_it_takes_over_what_has_not_ended(harness: CoordinatorHarness) -> None:
    harness.submit(small("over"))
    harness.finish("over")
    harness.submit(small("going"))
    marked = verdict(harness.store, "over")
    assert marked is not None
    assert marked.verdict == "converged"
    taken = harness.restart()
    taken.open_all()
    assert (set(taken.open_campaigns), taken.ended) == ({"going"}, {"over"})
    assert campaigns(harness.store) == ["going", "over"]
    assert harness.finish("going").finished


def test_a_campaign_that_ended_unmarked_is_marked_when_it_is_opened(
    harness: CoordinatorHarness,
) -> None:
    harness.submit(small())
    harness.finish()
    harness.store.delete("campaigns/world/finished.json")
    harness.restart().open_all()
    assert verdict(harness.store, "world") is not None


def test_a_submission_that_the_broker_lost_is_read_from_the_store(
    harness: CoordinatorHarness,
) -> None:
    of = small()
    harness.store.put(campaign_uri("world", "spec.json"), of.model_dump_json().encode())
    harness.store.put(campaign_uri("world", "submitted.json"), encode(submission(of)))
    harness.coordinator.open_all()
    assert harness.finish().finished


def test_a_campaign_that_cannot_be_read_keeps_no_other_from_being_served(
    harness: CoordinatorHarness,
) -> None:
    harness.submit(small("sound"))
    harness.store.put(campaign_uri("newer", "spec.json"), b'{"name": "newer", "unheard": "of"}')
    taken = harness.restart()
    taken.open_all()
    assert set(taken.broken) == {"newer"}
    assert harness.finish("sound").finished


def test_workers_keep_their_leases_in_full_when_another_coordinator_takes_over(
    harness: CoordinatorHarness,
) -> None:
    open_campaign, command = first_task(harness)
    harness.publish(harness.world.answer(command)[0])
    harness.step()
    harness.now += LEASE * 10
    harness.restart().open_all()
    harness.pass_time(LEASE * 0.9)
    open_campaign = harness.coordinator.open_campaigns["world"]
    assert status(open_campaign, command) == "running"
    harness.heartbeat(command)
    harness.step()
    assert open_campaign.workers == {command.task: "w"}


def test_an_overtaken_coordinator_finds_out_though_nothing_happens(
    harness: CoordinatorHarness,
) -> None:
    harness.submit(small())
    older = harness.coordinator
    older.check_clock()
    harness.restart().open_all()
    harness.now += FENCE_CHECK
    with pytest.raises(Fenced, match="world: taken over by a newer coordinator"):
        older.check_clock()


# -------------------------------------------------------------------------------- dead letters


def test_a_command_that_kills_its_workers_is_abandoned_after_its_attempts(
    harness: CoordinatorHarness,
) -> None:
    _, label = first_task(harness)
    open_campaign = harness.coordinator.open_campaigns["world"]
    for attempt in range(1, ATTEMPTS + 1):
        assert (label.attempt, status(open_campaign, label)) == (attempt, "open")
        bury(harness, encode(label))
        read_deadletters(harness)
        label = next(iter(c for c in harness.published() if c.task == label.task), label)
    assert status(open_campaign, label) == "abandoned"
    assert harness.coordinator.inbox.given_up == ATTEMPTS
    assert load_state(harness.store, "world").dumps() == open_campaign.state.dumps()


def test_a_task_that_the_broker_dropped_has_not_failed(harness: CoordinatorHarness) -> None:
    open_campaign, command = first_task(harness)
    before = open_campaign.state
    harness.coordinator.receive([Published(encode(command), dropped=True)])
    assert open_campaign.state is before
    assert harness.coordinator.inbox.given_up == 0


def test_a_dead_letter_of_a_task_at_work_changes_nothing(harness: CoordinatorHarness) -> None:
    open_campaign, command = first_task(harness)
    assert harness.claim(command)
    harness.publish(harness.world.answer(command)[0])
    harness.step()
    before = open_campaign.state
    bury(harness, encode(command))
    read_deadletters(harness)
    assert open_campaign.state is before
    assert harness.coordinator.inbox.given_up == 0


def test_a_dead_letter_that_was_cut_off_half_way_is_taken_up_again(
    harness: CoordinatorHarness,
) -> None:
    open_campaign, command = first_task(harness)
    bury(harness, encode(command))
    subscription = harness.bus.consume(DEADLETTERS)
    delivery = subscription.next(timeout=0.0)
    assert delivery is not None
    assert harness.coordinator.inbox.read(delivery) is not None  # the claim is made; then a crash
    delivery.reject()
    subscription.cancel()
    read_deadletters(harness)
    assert tasks_of(open_campaign.state)[command.task].lapses == 1
    assert harness.published("label.tblite")[-1].attempt == 2


def test_dead_letters_that_are_events_count_like_any_delivery(harness: CoordinatorHarness) -> None:
    open_campaign, command = first_task(harness)
    assert harness.claim(command)
    bury(harness, *map(encode, harness.world.answer(command)))
    read_deadletters(harness)
    assert status(open_campaign, command) == "done"


def test_what_is_no_message_is_kept_and_counted_over_restarts(harness: CoordinatorHarness) -> None:
    foreign = m.CampaignPaused(id="pause", campaign="gone", time=0.0, why="maintenance")
    alien = submission(small("gone"))
    too_long = encode(alien) + b" " * MAX_BODY
    strange = (b"no message", b"\xff\xfe", too_long, b"[" * 60_000)
    bury(harness, *strange, encode(alien), encode(foreign))
    read_deadletters(harness)
    assert count_buried(harness.store) == harness.coordinator.inbox.dead_letters.count == 4
    taken = harness.restart()
    taken.open_all()
    assert taken.inbox.dead_letters.count == 4


def test_a_flood_of_junk_is_few_objects_of_bounded_size(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "MOST_OBJECTS", 4)
    long = b"x" * MAX_BODY
    for batch in range(6):
        junk = [b"junk %d-%d" % (batch, n) for n in range(BATCH - 1)]
        harness.bus.publish([Outgoing(body, topic="x.labels-done") for body in (*junk, long)])
        harness.step()
    keys = list(harness.store.list("deadletters/"))
    assert len(keys) == 4
    assert harness.coordinator.inbox.dead_letters.count == 6 * BATCH
    assert count_buried(harness.store) == 4 * BATCH
    first = letters([harness.store.get(keys[0])])
    assert {letter["topic"] for letter in first} == {"x.labels-done"}
    assert (first[-1]["bytes"], first[-1]["body"]) == (MAX_BODY, long[: dead_letters.MOST_BYTES])
    assert all(len(harness.store.get(key)) < 100_000 for key in keys)


def test_a_submission_that_cannot_be_read_breaks_its_campaign_alone(
    harness: CoordinatorHarness,
) -> None:
    harness.store.put(campaign_uri("sick", "spec.json"), small("sick").model_dump_json().encode())
    harness.store.put(campaign_uri("sick", "submitted.json"), b"{}")
    harness.submit(small("sound"))
    taken = harness.restart()
    taken.open_all()
    assert (set(taken.broken), set(taken.open_campaigns)) == ({"sick"}, {"sound"})


def test_a_command_of_no_known_campaign_leaves_no_claim_behind(harness: CoordinatorHarness) -> None:
    _, command = first_task(harness)
    bury(harness, encode(command.model_copy(update={"campaign": "gone"})))
    read_deadletters(harness)
    assert not harness.store.exists(claim_uri("gone", command.task, command.attempt))


@pytest.mark.slow
def test_the_service_reads_the_dead_letters_too(harness: CoordinatorHarness) -> None:
    harness.coordinator.bus = InProcessBus(harness.bus.broker)  # type: ignore[attr-defined]
    stopping, thread, errors = serving(harness.coordinator)
    try:
        bury(harness, b"no message")
        _until(lambda: harness.coordinator.inbox.dead_letters.count == 1)
        assert harness.coordinator.connected
    finally:
        stopping.set()
        thread.join(timeout=10)
    assert not errors


def _until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)
