"""Ended tasks and frames in a dataset leave the working state, and nothing else changes."""

from __future__ import annotations

import gzip
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from immutables import Map

from dpstream.integrity.repair import plan
from dpstream.integrity.verify import verify
from dpstream.services.coordinator.ledger import archive as archive_segments
from dpstream.services.coordinator.ledger import snapshots
from dpstream.services.coordinator.ledger.examine import damaged_snapshots, differing_snapshots
from dpstream.services.coordinator.ledger.ledger import (
    Ledger,
    LedgerEntry,
    LedgerReader,
    load_state,
    replay,
)
from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.records import KeySet, replace
from dpstream.services.coordinator.state import CandidateState, State
from dpstream.services.coordinator.views.pages import label_page, task_page
from dpstream.shared import messages as m
from dpstream.shared.errors import StoreError
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import campaign_uri
from tests.support.campaigns.archived import frames_of, tasks_of
from tests.support.campaigns.campaign_simulator import CampaignSimulator, spec
from tests.support.campaigns.lossy_delivery import Entry, LossyDelivery, replayed
from tests.support.soak import examples

MOST_BYTES = 160
"""Growth of the encoded working state per settled frame: its key, and the ids of two to three
tasks. Frame and tasks themselves take some 3 kB."""
ENDLESS = spec(
    mode="streaming",
    stages=[{"name": "only", "systems": ["methane"], "temperatures": [50.0, 100.0]}],
    md={"steps": 100, "every": 10, "trajectories": 10, "chunk": 5},
    selection={"per_round": 20, "select_every": 5},
    labels={"bundle": 1},
    budget={"labels": 10**6, "rounds": 10**6},
    streaming={"retrain_after": 20},
)

keys = st.sets(st.binary(min_size=16, max_size=16).map(bytes.hex), max_size=20)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    made = FolderStore(tmp_path)
    made.put(campaign_uri("world", "spec.json"), spec().model_dump_json().encode())
    return made


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    campaign = LossyDelivery(CampaignSimulator(), spec())
    campaign.run()
    return campaign.ledger


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> int:
    """Events between two snapshots."""
    monkeypatch.setattr(snapshots, "SNAPSHOT_EVERY", 20)
    monkeypatch.setattr(snapshots, "ENTRIES_PER_EVENT", 1_000_000)
    return 20


class Endless(CampaignSimulator):
    """Every committee finds new candidates, which the next one finds accurate."""

    def _judge(self, command: m.Judge) -> list[m.Message]:
        return CampaignSimulator(ripe=0)._judge(command)


def written(store: FolderStore, entries: list[Entry]) -> tuple[Ledger, State]:
    """A ledger with these entries and its snapshots."""
    ledger, state = Ledger.open(store, "world")
    for event, decided in entries:
        state = replay(state, ledger.append([LedgerEntry(event, tuple(decided))]))
        state = ledger.written(ledger.snapshot(state))
    return ledger, state


@given(keys, keys)
def test_a_key_set_is_a_set(some: set[str], others: set[str]) -> None:
    assert set(KeySet.of(some) | KeySet.of(others)) == some | others
    assert (KeySet.of(some) | KeySet.of(others)) == KeySet.of(some | others)
    assert len(KeySet.of(some)) == len(some)
    assert all(key in KeySet.of(some) for key in some)
    assert not any(key in KeySet.of(some) for key in others - some)


def test_a_key_set_of_task_ids() -> None:
    one, other = str(uuid.uuid4()), str(uuid.uuid4())
    assert one in KeySet.of([one])
    assert other not in KeySet.of([one])
    assert "no id" not in KeySet.of([one])


@pytest.mark.slow
def test_the_working_state_does_not_grow_with_settled_frames() -> None:
    campaign = LossyDelivery(Endless(ripe=10**6), ENDLESS)
    settled, sizes = [], []
    for wanted in (50, 350):
        campaign.until(lambda state, wanted=wanted: state.archive.requested >= wanted)
        settled.append(campaign.state.archive.requested)
        sizes.append(len(campaign.state.dumps()))
        assert len(campaign.state.labels.frames) < 100
        assert len(campaign.state.tasks) < 100
        assert len(campaign.state.candidates.taken) < 100
    assert (sizes[1] - sizes[0]) / (settled[1] - settled[0]) < MOST_BYTES


class Forgetful(LossyDelivery):
    """Keeps ids alone of all that has ended, as after a restart."""

    def deliver(self, event: m.Message) -> tuple[m.Message, ...]:
        decided = super().deliver(event)
        self.state = replace(self.state, archive=self.state.archive.ids)
        return decided


@pytest.mark.slow
@examples(6, usual=3)
@given(
    st.integers(0, 10**6), st.sampled_from(["lockstep", "streaming"]), st.sampled_from([0.0, 0.1])
)
def test_ids_suffice_in_any_order_with_lost_and_doubled_messages(
    seed: int, mode: str, faults: float
) -> None:
    runs = []
    for kind in (LossyDelivery, Forgetful):
        campaign = kind(CampaignSimulator(), spec(mode=mode), seed, faults)
        campaign.run_resumed(lambda state: None)
        runs.append(campaign)
    first, second = runs
    assert first.ledger == second.ledger
    assert first.state == second.state
    assert first.state.dumps() == second.state.dumps()
    for event, _ in first.ledger[1:]:
        if isinstance(event, m.Result):
            assert decide(second.state, event) == (second.state, ()), "delivered again at the end"


@pytest.mark.slow
@examples(6, usual=3)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1]))
def test_what_is_forgotten_of_trajectories_decides_nothing(seed: int, faults: float) -> None:
    runs = []
    for forgets in (True, False):
        with pytest.MonkeyPatch.context() as patched:
            if not forgets:
                patched.setattr(CandidateState, "forgot_all_but", lambda candidates, _: candidates)
            campaign = LossyDelivery(
                CampaignSimulator(ripe=6), spec(mode="streaming"), seed, faults
            )
            campaign.run_resumed(lambda state: None)
        runs.append(campaign)
    first, second = runs
    assert first.ledger == second.ledger, "also the pools that tasks choose from"
    assert len(first.state.candidates.taken) < len(second.state.candidates.taken)


def test_snapshots_hold_what_has_ended_once(
    store: FolderStore, entries: list[Entry], often: int
) -> None:
    _, state = written(store, entries)
    assert len(state.archive.segments) == len(snapshots.listed(store, "world")) > 3
    tasks, frames = list[str](), list[str]()
    for segment in state.archive.segments:
        records = archive_segments.read(store, segment)
        assert sum(segment.tasks.values()) == len(records.tasks)
        assert segment.frames == len(records.frames)
        tasks += records.tasks
        frames += records.frames
    assert len(tasks) == len(set(tasks)) == len(state.archive.tasks)
    assert len(frames) == len(set(frames)) == len(state.archive.frames)


def test_segments_are_merged(
    store: FolderStore, entries: list[Entry], often: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_segments, "MERGED", 3)
    _, state = written(store, entries)
    segments = state.archive.segments
    merged = sum(segment.is_merged for segment in segments)
    assert merged > 1
    assert len(segments) == merged + len(snapshots.listed(store, "world")) % 3
    records = [archive_segments.read(store, segment) for segment in segments]
    assert [sum(segment.tasks.values()) for segment in segments] == [len(r.tasks) for r in records]
    assert [segment.frames for segment in segments] == [len(r.frames) for r in records]
    assert sum(len(each.tasks) for each in records) == len(state.archive.tasks)
    assert sum(len(each.frames) for each in records) == len(state.archive.frames)
    assert load_state(store, "world").dumps() == Ledger.open(store, "world")[1].dumps()
    assert sound(store)
    part = min(store.list(archive_segments.folder("world")))
    store.delete(part)
    assert [each.key for each in damaged_snapshots(store, "world")] == snapshots.listed(
        store, "world"
    )[:2]


def test_what_cannot_be_read_is_not_merged(
    store: FolderStore, entries: list[Entry], often: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_segments, "MERGED", 2)
    ledger, state = written(store, entries[: often + 1])
    store.delete(state.archive.segments[0].stored.uri)
    for event, decided in entries[often + 1 :]:
        state = replay(state, ledger.append([LedgerEntry(event, tuple(decided))]))
        state = ledger.written(ledger.snapshot(state))
    assert len(state.archive.segments) > 2
    assert not any(segment.is_merged for segment in state.archive.segments)
    assert load_state(store, "world").dumps() == state.dumps()


def test_with_and_without_snapshots_the_state_is_the_same(
    store: FolderStore, entries: list[Entry], often: int
) -> None:
    _, state = written(store, entries)
    reader = LedgerReader.begin(store, "world")
    reader.update()
    assert reader.state == state == load_state(store, "world") == Ledger.open(store, "world")[1]
    for key in list(store.list("campaigns/world/snapshots/")):
        store.delete(key)
    assert Ledger.open(store, "world")[1].dumps() == state.dumps()
    assert snapshots.listed(store, "world"), "written while the ledger was replayed"
    assert load_state(store, "world").dumps() == state.dumps()


class SlowStore(FolderStore):
    """Creates no snapshot before `go` is set; or fails to, if `down`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.go, self.down = threading.Event(), False

    def create(self, key: str, data: bytes) -> bool:
        if "/snapshots/" in key:
            assert self.go.wait(60)
            if self.down:
                raise StoreError("out of order")
        return super().create(key, data)


def test_the_ledger_goes_on_while_a_snapshot_is_written(
    store: FolderStore, entries: list[Entry], often: int, tmp_path: Path
) -> None:
    slow = SlowStore(tmp_path)
    ledger, state = Ledger.open(slow, "world")
    for event, decided in entries[: 2 * often]:
        state = replay(state, ledger.append([LedgerEntry(event, tuple(decided))]))
        state = ledger.snapshot(state)
    assert not snapshots.listed(store, "world")
    assert not state.archive.segments
    before = state
    slow.go.set()
    state = ledger.written(state)
    assert len(snapshots.listed(store, "world")) == len(state.archive.segments) == 1
    assert state == before
    assert 0 < len(state.archive.ended) < len(before.archive.ended), "what has ended since"
    assert load_state(store, "world").dumps() == state.dumps()


def test_what_a_failed_snapshot_did_not_store_is_in_the_next(
    store: FolderStore, entries: list[Entry], often: int, tmp_path: Path
) -> None:
    failing = SlowStore(tmp_path)
    failing.go.set()
    failing.down = True
    ledger, state = written(failing, entries[:often])
    assert not state.archive.segments
    failing.down = False
    for event, decided in entries[often : 2 * often]:
        state = replay(state, ledger.append([LedgerEntry(event, tuple(decided))]))
        state = ledger.written(ledger.snapshot(state))
    assert len(state.archive.segments) == 1
    assert load_state(store, "world").dumps() == state.dumps()


# --------------------------------------------------------------------------------------- damage


def cut(store: FolderStore, key: str) -> None:
    store.put(key, store.get(key)[:-3])


def rewritten(store: FolderStore, key: str) -> None:
    records = gzip.decompress(store.get(key)).replace(b'"done"', b'"lost"')
    store.put(key, gzip.compress(records))


def sound(store: FolderStore) -> bool:
    """Whether the snapshots are whole, and those that the ledger leads to."""
    damaged = damaged_snapshots(store, "world")
    return not [*damaged, *differing_snapshots(store, "world")]


@pytest.mark.slow
@pytest.mark.parametrize("damage", [FolderStore.delete, cut, rewritten])
def test_a_damaged_segment_of_the_archive_costs_time_only(
    store: FolderStore,
    entries: list[Entry],
    often: int,
    damage: Callable[[FolderStore, str], None],
) -> None:
    _, state = written(store, entries)
    segments = state.archive.segments
    place = len(segments) // 2
    damage(store, segments[place].stored.uri)
    assert load_state(store, "world").dumps() == state.dumps()
    snapshots_with_it = snapshots.listed(store, "world")[place:]
    found = {each.key: each.why for each in damaged_snapshots(store, "world")}
    assert list(found) == snapshots_with_it
    assert found.keys() <= {each.key for each in verify(store, "world").damage}
    assert all(segments[place].stored.uri in why for why in found.values())
    plan(store, "world").write()
    assert sound(store)
    assert Ledger.open(store, "world")[1].dumps() == state.dumps()
    assert sound(store), "new segments have names of their own"
    assert len(snapshots.listed(store, "world")) > place
    assert load_state(store, "world").dumps() == state.dumps()


def test_a_deep_check_compares_the_records(
    store: FolderStore, entries: list[Entry], monkeypatch: pytest.MonkeyPatch, often: int
) -> None:
    """A segment with other records than the ledger leads to, named with its digest."""
    write = archive_segments.write

    def wrong(store: FolderStore, campaign: str, name: str, archive: object) -> object:
        ended = {k: v._replace(title="?") for k, v in archive.ended.items()}  # type: ignore
        return write(store, campaign, name, replace(archive, ended=Map(ended)))  # type: ignore

    monkeypatch.setattr(archive_segments, "write", wrong)
    written(store, entries[: often + 1])
    assert not list(damaged_snapshots(store, "world"))
    (found,) = differing_snapshots(store, "world")
    assert "/archive/" in found.why


# ---------------------------------------------------------------------------------------- pages


class CountingStore(FolderStore):
    reads = 0

    def get(self, key: str, most: int | None = None) -> bytes:
        self.reads += 1
        return super().get(key, most)


def test_pages_are_complete_and_read_what_they_show(
    store: FolderStore, entries: list[Entry], often: int, tmp_path: Path
) -> None:
    _, state = written(store, entries)
    whole = replayed(spec(), entries)
    all_tasks, all_frames = tasks_of(whole), frames_of(whole)
    lines = task_page(store, state, None, None, 0, 10**6)
    assert {line.task: (line.kind, line.status, line.title) for line in lines} == {
        name: (task.kind, task.status, task.title) for name, task in all_tasks.items()
    }
    assert len(lines) == len(all_tasks)
    shown = label_page(store, state, None, 0, 10**6)
    assert {line.key: (line.status, line.purpose, line.label) for line in shown} == {
        key: (frame.status, frame.purpose, frame.label) for key, frame in all_frames.items()
    }
    for kind, status in (("label", None), (None, "done"), ("label", "done"), (None, None)):
        wanted = [x for x in lines if kind in (None, x.kind) and status in (None, x.status)]
        assert len(wanted) > 7
        pages = [task_page(store, state, status, kind, at, 7) for at in range(0, len(wanted), 7)]
        assert [line for page in pages for line in page] == wanted
    counting = CountingStore(tmp_path)
    oldest = task_page(counting, state, None, None, len(lines) - 1, 7)
    assert oldest == lines[-1:]
    assert counting.reads == 1
    assert label_page(counting, state, "rejected", 0, 7) == [
        line for line in shown if line.status == "rejected"
    ]
    assert counting.reads == 1
