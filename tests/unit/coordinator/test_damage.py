"""Damage stays at home: an object that cannot be read concerns its own campaign, and what arrives
meanwhile is kept."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from dpstream.services.coordinator import parked
from dpstream.services.coordinator.ledger import snapshots
from dpstream.services.coordinator.ledger.chain import segment_uri
from dpstream.services.coordinator.open_campaign import OpenCampaign
from dpstream.shared import messages as m
from dpstream.shared.codec import MAX_BODY, decode_leniently, decode_or_none, encode, topic_of
from dpstream.shared.errors import DigestMismatch
from dpstream.shared.ports import Outgoing
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import campaign_uri
from tests.support.campaigns.amendments import amendment, announced, changed, new_frames
from tests.support.campaigns.archived import tasks_of
from tests.support.campaigns.campaign_simulator import CampaignSimulator
from tests.support.campaigns.coordinator import CoordinatorHarness, first_task, small
from tests.support.campaigns.sample_messages import example

pytestmark = pytest.mark.usefixtures("no_log_lines")

GARBAGE = [b"\x00garbage", b"", b"{}", b"[" * 60_000]


class DigestingStore(FolderStore):
    """Notices damaged objects, as the S3 adapter does."""

    damaged: frozenset[str] = frozenset()

    def get(self, key: str, most: int | None = None) -> bytes:
        if key in self.damaged:
            raise DigestMismatch(f"{key}: the content differs from what was stored")
        return super().get(key, most)


@pytest.fixture
def store(tmp_path: Path) -> DigestingStore:
    return DigestingStore(tmp_path)


@pytest.fixture
def harness(store: DigestingStore) -> CoordinatorHarness:
    return CoordinatorHarness(store)


def results_of(open_campaign: OpenCampaign) -> list[m.Message]:
    """What workers publish on all open tasks."""
    commands = [t.command for t in open_campaign.state.tasks.values() if t.status == "open"]
    return [event for c in commands for event in CampaignSimulator().answer(c)]


# ------------------------------------------------------------------------------- claims


@pytest.mark.slow
@pytest.mark.parametrize("body", GARBAGE)
def test_garbage_in_a_claim_stops_nobody(harness: CoordinatorHarness, body: bytes) -> None:
    open_campaign, command = first_task(harness)
    harness.store.put(claim_uri(command.campaign, command.task, command.attempt), body)
    harness.submit(small("sound"))
    cancelled = example(m.CampaignCancelled).model_copy(update={"campaign": command.campaign})
    harness.publish(cancelled)
    harness.step()
    assert open_campaign.state.finished is not None
    assert tasks_of(open_campaign.state)[command.task].status not in ("open", "running")
    harness.restart().open_all()
    assert set(harness.coordinator.open_campaigns) == {"sound"}
    assert harness.finish("sound").finished


# ------------------------------------------------------------------------------- the ledger


def test_a_damaged_segment_concerns_its_own_campaign(
    store: DigestingStore, harness: CoordinatorHarness
) -> None:
    results = results_of(harness.submit(small("sick")))
    harness.submit(small("sound"))
    store.damaged = frozenset({"campaigns/sick/ledger/00000001-000001.json"})
    harness.restart().open_all()
    assert "00000001-000001.json" in harness.coordinator.broken["sick"]
    harness.publish(*results)
    assert harness.finish("sound").finished
    kept = list(store.list("campaigns/sick/parked/"))
    assert len(kept) == sum(not isinstance(each, parked.OF_THE_MOMENT) for each in results)

    store.damaged = frozenset()
    harness.publish(example(m.CampaignResumed).model_copy(update={"campaign": "sick"}))
    harness.step()
    assert "sick" not in harness.coordinator.broken
    assert list(store.list("campaigns/sick/parked/")) == []
    tasks = tasks_of(harness.coordinator.open_campaigns["sick"].state)
    assert {tasks[each.task].status for each in results if isinstance(each, m.Result)} == {"done"}
    assert harness.finish("sick").finished


def test_an_event_that_becomes_too_long_harms_nobody(
    store: DigestingStore, harness: CoordinatorHarness
) -> None:
    """Whole numbers are shorter than the same as decimal ones."""
    harness.submit(small("sick"))
    store.damaged = frozenset({"campaigns/sick/ledger/00000001-000001.json"})
    harness.restart().open_all()
    offered = example(m.StructuresProposed).model_copy(update={"campaign": "sick"})
    atoms = {"species": ["H"] * 5000, "positions": [[1, 2, 3]] * 5000}
    body = json.dumps(json.loads(encode(offered)) | {"frames": [atoms]}, separators=(",", ":"))
    assert len(body) <= MAX_BODY
    harness.bus.publish([Outgoing(body.encode(), topic=topic_of(offered))])
    harness.step()
    assert list(store.list("campaigns/sick/parked/")) == []


@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "damaged"])
def test_an_amendment_of_any_length_is_kept_for_a_damaged_campaign(
    store: DigestingStore, harness: CoordinatorHarness, is_whole: bool
) -> None:
    of = small("sick")
    harness.submit(of)
    segment = "campaigns/sick/ledger/00000001-000001.json"
    store.damaged = frozenset({segment})
    harness.restart().open_all()
    systems = {**of.model_dump(mode="json")["systems"], "ethane": {"structures": ["y"]}}
    event = amendment(changed(of, systems=systems), **new_frames("ethane", 1000))
    with pytest.raises(ValueError, match="at most"):
        encode(event)
    message = announced(store, event)
    assert message.complete is not None
    harness.publish(message)
    harness.step()
    store.damaged = frozenset() if is_whole else frozenset({message.complete.uri})
    harness.publish(example(m.CampaignResumed).model_copy(update={"campaign": "sick"}))
    harness.step()
    state = harness.coordinator.open_campaigns["sick"].state
    assert state.plan.number == (2 if is_whole else 1)
    assert [each.author for each in state.plan.records] == (["ada"] if is_whole else [])


def test_a_campaign_damaged_while_it_is_served_is_left_and_the_others_go_on(
    store: DigestingStore, harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = results_of(harness.submit(small("sick")))
    harness.submit(small("sound"))

    def fail(entries: object) -> None:
        raise DigestMismatch("segment")

    monkeypatch.setattr(harness.coordinator.open_campaigns["sick"].ledger, "append", fail)
    harness.publish(*results)
    assert harness.finish("sound").finished
    assert set(harness.coordinator.broken) == {"sick"}
    assert list(store.list("campaigns/sick/parked/"))


def test_a_damaged_snapshot_is_passed_over(
    store: DigestingStore, harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "SNAPSHOT_EVERY", 1)
    monkeypatch.setattr(snapshots, "ENTRIES_PER_EVENT", 1_000)
    harness.submit(small())
    before = harness.finish()
    made = list(store.list("campaigns/world/snapshots/"))
    assert made
    store.damaged = frozenset(made)
    harness.restart().open("world")
    assert harness.coordinator.open_campaigns["world"].state == before


def test_a_campaign_with_a_hole_behind_its_snapshot_is_not_served(
    store: DigestingStore, harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator looks for it beside its work, also if nothing happens."""
    monkeypatch.setattr(snapshots, "SNAPSHOT_EVERY", 1)
    monkeypatch.setattr(snapshots, "ENTRIES_PER_EVENT", 1_000)
    open_campaign = harness.submit(small())
    for _ in range(4):
        harness.work()
        harness.step()
    open_campaign.ledger.written(open_campaign.state)
    store.delete(segment_uri("world", 2, 1))
    harness.restart().open_all()
    deadline = time.monotonic() + 30
    while not harness.coordinator.broken and time.monotonic() < deadline:
        harness.coordinator.check_clock()
        time.sleep(0.01)
    assert "segment 2 of the ledger is missing" in harness.coordinator.broken["world"]


def test_no_more_events_are_kept_than_the_limit(
    store: DigestingStore, harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parked, "MOST", 2)
    harness.submit(small())
    paused = example(m.CampaignPaused).model_copy(update={"campaign": "world"})
    harness.coordinator.parked.keep(
        "world", [paused.model_copy(update={"id": str(i)}) for i in range(5)]
    )
    assert len(list(store.list("campaigns/world/parked/"))) == 2


# ------------------------------------------------------------------------------- newer versions


def test_a_result_with_a_field_more_counts(harness: CoordinatorHarness) -> None:
    open_campaign, command = first_task(harness)
    assert harness.claim(command)
    *earlier, result = (e for e in CampaignSimulator().answer(command) if isinstance(e, m.Result))
    harness.publish(*earlier)
    newer = json.loads(encode(result)) | {"invented": {"later": 1}}
    for accepted in newer.get("accepted", []):
        accepted["more"] = 2
    assert decode_or_none(json.dumps(newer).encode()) is None
    harness.bus.publish([Outgoing(json.dumps(newer).encode(), topic=topic_of(result))])
    harness.step()
    assert tasks_of(open_campaign.state)[command.task].status == "done"
    assert harness.coordinator.inbox.dead_letters.count == 0


@pytest.mark.parametrize("kind", [m.CampaignPaused, m.StructuresProposed, m.Label])
def test_fields_of_other_messages_are_not_ignored(kind: type[m.Message]) -> None:
    body = json.dumps(json.loads(encode(example(kind))) | {"invented": 1}).encode()
    assert decode_leniently(body) is None


def test_an_event_of_a_newer_kind_is_kept_until_it_is_known(
    store: DigestingStore, harness: CoordinatorHarness
) -> None:
    harness.submit(small())
    newer = {"type": "labels-doubted/1", "campaign": "world", "id": "1", "time": 1.0}
    for topic in ("world.labels-doubted", "other.labels-doubted", "world.labels-done"):
        harness.bus.publish([Outgoing(json.dumps(newer).encode(), topic=topic)])
    harness.step()
    (key,) = store.list(campaign_uri("world", "parked", ""))
    assert json.loads(store.get(key)) == newer
    assert harness.coordinator.inbox.dead_letters.count == 2  # under the wrong topics
    harness.restart().open_all()
    harness.step()
    assert list(store.list(campaign_uri("world", "parked", ""))) == [key]
    assert harness.finish().finished
