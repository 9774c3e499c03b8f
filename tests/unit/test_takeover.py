"""A coordinator among others and over a broker with a memory of its own: what it takes over at its
start, when it finds out that it was overtaken, what becomes of dead letters."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dpstream.services.coordinator.ledger.ledger import campaigns, load_state, verdict
from dpstream.services.coordinator.service import FENCE_CHECK
from dpstream.shared import messages as m
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.bus.topology import DEADLETTERS
from dpstream.shared.codec import MAX_BODY, encode
from dpstream.shared.errors import Fenced
from dpstream.shared.ports import Outgoing
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import campaign_uri
from tests.support.campaign_simulator import CampaignSimulator, submission
from tests.unit.test_coordinator import LEASE, Site, first_task, quietly, serving, small, status

__all__ = ["quietly"]
ATTEMPTS = 3


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(FolderStore(tmp_path))


def bury(site: Site, *bodies: bytes) -> None:
    """What a broker does in the end."""
    site.bus.publish([Outgoing(body, queue=DEADLETTERS) for body in bodies])


def read_deadletters(site: Site) -> None:
    subscription = site.bus.consume(DEADLETTERS, prefetch=10)
    while (delivery := subscription.next(timeout=0.0)) is not None:
        site.coordinator.receive([delivery])
    subscription.cancel()
    site.step()


# ------------------------------------------------------------------------------- taking over


def test_it_takes_over_what_has_not_ended(site: Site) -> None:
    site.submit(small("over"))
    site.finish("over")
    site.submit(small("going"))
    marked = verdict(site.store, "over")
    assert marked is not None
    assert marked.verdict == "converged"
    taken = site.hire()
    taken.open_all()
    assert (set(taken.open_campaigns), taken.ended) == ({"going"}, {"over"})
    assert campaigns(site.store) == ["going", "over"]
    assert site.finish("going").finished


def test_a_campaign_that_ended_unmarked_is_marked_when_it_is_opened(site: Site) -> None:
    site.submit(small())
    site.finish()
    site.store.delete("campaigns/world/finished.json")
    site.hire().open_all()
    assert verdict(site.store, "world") is not None


def test_a_submission_that_the_broker_lost_is_read_from_the_store(site: Site) -> None:
    of = small()
    site.store.put(campaign_uri("world", "spec.json"), of.model_dump_json().encode())
    site.store.put(campaign_uri("world", "submitted.json"), encode(submission(of)))
    site.coordinator.open_all()
    assert site.finish().finished


def test_a_campaign_that_cannot_be_read_keeps_no_other_from_being_served(site: Site) -> None:
    site.submit(small("sound"))
    site.store.put(campaign_uri("newer", "spec.json"), b'{"name": "newer", "unheard": "of"}')
    taken = site.hire()
    taken.open_all()
    assert set(taken.broken) == {"newer"}
    assert site.finish("sound").finished


def test_workers_keep_their_leases_in_full_when_another_coordinator_takes_over(site: Site) -> None:
    open_campaign, command = first_task(site)
    site.say(site.world.answer(command)[0])
    site.step()
    site.now += LEASE * 10
    site.hire().open_all()
    site.pass_time(LEASE * 0.9)
    open_campaign = site.coordinator.open_campaigns["world"]
    assert status(open_campaign, command) == "running"
    site.heartbeat(command)
    site.step()
    assert open_campaign.workers == {command.task: "w"}


def test_an_overtaken_coordinator_finds_out_though_nothing_happens(site: Site) -> None:
    site.submit(small())
    older = site.coordinator
    older.check_clock()
    site.hire().open_all()
    site.now += FENCE_CHECK
    with pytest.raises(Fenced, match="world: taken over by a newer coordinator"):
        older.check_clock()


# -------------------------------------------------------------------------------- dead letters


def test_a_command_that_kills_its_workers_is_abandoned_after_its_attempts(site: Site) -> None:
    _, label = first_task(site)
    open_campaign = site.coordinator.open_campaigns["world"]
    for attempt in range(1, ATTEMPTS + 1):
        assert (label.attempt, status(open_campaign, label)) == (attempt, "open")
        bury(site, encode(label))
        read_deadletters(site)
        label = next(iter(c for c in site.published() if c.task == label.task), label)
    assert status(open_campaign, label) == "abandoned"
    assert site.coordinator.inbox.given_up == ATTEMPTS
    assert load_state(site.store, "world").dumps() == open_campaign.state.dumps()


def test_a_dead_letter_of_a_task_at_work_changes_nothing(site: Site) -> None:
    open_campaign, command = first_task(site)
    assert site.claim(command)
    site.say(site.world.answer(command)[0])
    site.step()
    before = open_campaign.state
    bury(site, encode(command))
    read_deadletters(site)
    assert open_campaign.state is before
    assert site.coordinator.inbox.given_up == 0


def test_a_dead_letter_that_was_cut_off_half_way_is_taken_up_again(site: Site) -> None:
    open_campaign, command = first_task(site)
    bury(site, encode(command))
    subscription = site.bus.consume(DEADLETTERS)
    delivery = subscription.next(timeout=0.0)
    assert delivery is not None
    assert site.coordinator.inbox.read(delivery) is not None  # the claim is made; then a crash
    delivery.reject()
    subscription.cancel()
    read_deadletters(site)
    assert open_campaign.state.tasks[command.task].lapses == 1
    assert site.published("label.tblite")[-1].attempt == 2


def test_dead_letters_that_are_events_count_like_any_delivery(site: Site) -> None:
    open_campaign, command = first_task(site)
    claimed, done = site.world.answer(command)
    bury(site, encode(claimed), encode(done))
    read_deadletters(site)
    assert status(open_campaign, command) == "done"


def test_what_is_no_message_is_kept_and_counted_over_restarts(site: Site) -> None:
    foreign = CampaignSimulator.envelope(
        first_task(site)[1].model_copy(update={"campaign": "gone"})
    )
    alien = submission(small("gone"))
    too_long = encode(alien) + b" " * MAX_BODY
    strange = (b"no message", b"\xff\xfe", too_long, b"[" * 60_000)
    bury(site, *strange, encode(alien), encode(m.LeaseLapsed(**foreign)))
    read_deadletters(site)
    assert len(list(site.store.list("deadletters/"))) == site.coordinator.inbox.undecodable == 4
    taken = site.hire()
    taken.open_all()
    assert taken.inbox.undecodable == 4


def test_a_submission_that_cannot_be_read_breaks_its_campaign_alone(site: Site) -> None:
    site.store.put(campaign_uri("sick", "spec.json"), small("sick").model_dump_json().encode())
    site.store.put(campaign_uri("sick", "submitted.json"), b"{}")
    site.submit(small("sound"))
    taken = site.hire()
    taken.open_all()
    assert (set(taken.broken), set(taken.open_campaigns)) == ({"sick"}, {"sound"})


def test_a_command_of_no_known_campaign_leaves_no_claim_behind(site: Site) -> None:
    _, command = first_task(site)
    bury(site, encode(command.model_copy(update={"campaign": "gone"})))
    read_deadletters(site)
    assert not site.store.exists(claim_uri("gone", command.task, command.attempt))


@pytest.mark.slow
def test_the_service_reads_the_dead_letters_too(site: Site) -> None:
    site.coordinator.bus = InProcessBus(site.bus.broker)  # type: ignore[attr-defined]
    stopping, thread, errors = serving(site.coordinator)
    try:
        bury(site, b"no message")
        _until(lambda: site.coordinator.inbox.undecodable == 1)
        assert site.coordinator.connected
    finally:
        stopping.set()
        thread.join(timeout=10)
    assert not errors


def _until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)
