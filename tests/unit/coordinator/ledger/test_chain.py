"""The ledger is a hash chain: a loss or a change of what was written is noticed, wherever it is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpstream.services.coordinator.ledger import chain, snapshots
from dpstream.services.coordinator.ledger.ledger import (
    Ledger,
    LedgerEntry,
    LedgerReader,
    Segment,
    load_state,
    read_messages,
    read_segments,
)
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m
from dpstream.shared.errors import CorruptLedger
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import campaign_uri
from tests.support.campaigns.campaign_simulator import spec
from tests.support.campaigns.coordinator import CoordinatorHarness, small
from tests.support.campaigns.release_0_1 import unpack
from tests.support.soak import examples

FOLDER = "campaigns/world/ledger/"
READERS: list[Callable[[FolderStore], object]] = [
    lambda store: Ledger.open(store, "world"),
    lambda store: load_state(store, "world"),
    lambda store: list(read_messages(store, "world")),
]


def with_spec(folder: Path) -> FolderStore:
    made = FolderStore(folder)
    made.put(campaign_uri("world", "spec.json"), spec().model_dump_json().encode())
    return made


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return with_spec(tmp_path)


def pause(number: int) -> LedgerEntry:
    """An event that any state takes in."""
    return LedgerEntry(m.CampaignPaused(id=str(number), campaign="world", time=1.0, why="x"))


def write(ledger: Ledger, numbers: range) -> None:
    for number in numbers:
        ledger.append([pause(number)])


def key_of(number: int, epoch: int = 1) -> str:
    return chain.segment_uri("world", number, epoch)


def written(store: FolderStore, segments: int = 5) -> Ledger:
    """A ledger of so many segments with a head of the last one."""
    ledger, _ = Ledger.open(store, "world")
    write(ledger, range(segments))
    ledger.write_head()
    return ledger


# ------------------------------------------------------------------------------- what is noticed


def changed(data: bytes) -> bytes:
    """Another valid segment."""
    document = json.loads(data)
    document["entries"][0]["heard"]["why"] = "y"
    return json.dumps(document).encode()


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_changed_segment_is_noticed(
    store: FolderStore, number: int, read: Callable[[FolderStore], object]
) -> None:
    written(store)
    store.put(key_of(number), changed(store.get(key_of(number))))
    with pytest.raises(CorruptLedger, match=rf"segment {number} |0000000{number}"):
        read(store)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("left", [0, 1, 4])
def test_a_cut_tail_is_noticed(
    store: FolderStore, left: int, read: Callable[[FolderStore], object]
) -> None:
    written(store)
    for number in range(left + 1, 6):
        store.delete(key_of(number))
    with pytest.raises(CorruptLedger, match=f"ends with segment {left}, but segment 5 was written"):
        read(store)


def test_a_hole_behind_a_snapshot_is_noticed_by_the_writer(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "SNAPSHOT_EVERY", 1)
    ledger = written(store)
    ledger.written(ledger.snapshot(State(spec=spec())))
    store.delete(key_of(2))
    again, _ = Ledger.open(store, "world")
    write(again, range(6, 8))  # it looks beside its work
    deadline = time.monotonic() + 30
    while again.missing is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "segment 2 of the ledger is missing" in str(again.missing)


def test_a_segment_in_the_place_of_another_is_noticed(store: FolderStore) -> None:
    written(store)
    store.put(key_of(3), store.get(key_of(2)))
    with pytest.raises(CorruptLedger, match="contains segment 2"):
        load_state(store, "world")


def test_a_segment_without_its_link_is_noticed(store: FolderStore) -> None:
    written(store, 2)
    document = json.loads(store.get(key_of(2)))
    store.put(key_of(2), json.dumps(document | {"follows": None}).encode())
    with pytest.raises(CorruptLedger, match="does not name the one it follows"):
        load_state(store, "world")


@pytest.mark.slow
@given(number=st.integers(1, 4), bit=st.integers(0, 10_000))
@examples(500, 40)
def test_any_flipped_bit_is_noticed(number: int, bit: int) -> None:
    with TemporaryDirectory() as folder:
        store = with_spec(Path(folder))
        written(store, 4)
        data = bytearray(store.get(key_of(number)))
        data[bit // 8 % len(data)] ^= 1 << bit % 8
        store.put(key_of(number), bytes(data))
        for read in READERS:
            with pytest.raises(CorruptLedger):
                read(store)


# ------------------------------------------------------------------------------- several writers


@pytest.mark.slow
@given(st.lists(st.integers(0, 3), max_size=12))
@examples(500, 60)
def test_late_writes_of_overtaken_writers_lose_no_event_and_damage_nothing(
    turns: list[int],
) -> None:
    """Number 0 is a coordinator that starts; the others are those that started last, which write
    without looking whether they were overtaken."""
    with TemporaryDirectory() as folder:
        store = with_spec(Path(folder))
        writers: list[Ledger] = []
        for number, turn in enumerate(turns):
            if turn == 0 or len(writers) < turn:
                writers.append(Ledger.open(store, "world")[0])
                writers[-1].check = lambda: None  # type: ignore[method-assign]
            else:
                writers[-turn].append([pause(number)])
                writers[-turn].write_head()
        last, _ = Ledger.open(store, "world")
        segments = list(read_segments(store, "world"))
        ids = [entry.event.id for segment in segments for entry in segment.entries]
        stored = [Segment.loads(store.get(key)) for key in store.list(FOLDER)]
        assert len(ids) == len(set(ids))
        assert {entry.event.id for segment in stored for entry in segment.entries} == {
            *ids,
            *(event.id for event in last.orphans),
        }
        assert [segment.seq for segment in segments] == list(range(1, last.seq + 1))
        last.append([pause(-1)])
        assert [s.seq for s in read_segments(store, "world")] == list(range(1, last.seq + 1))


def test_the_segment_that_the_newest_writer_followed_counts(store: FolderStore) -> None:
    """The third writer followed what the first wrote; then the second wrote a sibling of it."""
    first, _ = Ledger.open(store, "world")
    second, _ = Ledger.open(store, "world")
    for ledger in (first, second):
        ledger.check = lambda: None  # type: ignore[method-assign]
    first.append([pause(1)])
    third, _ = Ledger.open(store, "world")
    second.append([pause(2)])
    third.append([pause(3)])
    ids = [message.id for message in read_messages(store, "world")]
    assert ids == ["1", "3"]
    assert [event.id for event in Ledger.open(store, "world")[0].orphans] == ["2"]


def test_a_lost_segment_is_not_replaced_by_its_overtaken_sibling(store: FolderStore) -> None:
    old, _ = Ledger.open(store, "world")
    new, _ = Ledger.open(store, "world")
    old.check = lambda: None  # type: ignore[method-assign]
    old.append([pause(1)])
    write(new, range(2, 4))
    store.delete(key_of(1, epoch=2))
    with pytest.raises(CorruptLedger, match="segment 1 of the ledger by epoch 1 differs"):
        load_state(store, "world")


def test_a_follower_of_an_overtaken_writer_goes_on(store: FolderStore) -> None:
    old, _ = Ledger.open(store, "world")
    new, _ = Ledger.open(store, "world")
    old.check = lambda: None  # type: ignore[method-assign]
    old.append([pause(1)])
    reader = LedgerReader.open(store, "world")
    write(new, range(2, 4))
    assert [segment.seq for segment in reader.new_segments()] == [2]


# ------------------------------------------------------------------------------- heads


def heads_of(store: FolderStore) -> list[int]:
    return [head.seq for head in chain.heads(store, "world")]


def test_a_head_is_due_after_so_many_segments_or_seconds(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpstream.services.coordinator.ledger.ledger.HEAD_SEGMENTS", 3)
    ledger, _ = Ledger.open(store, "world")
    for now in (0.0, 1.0, 2.0, 3.0, 62.9, 63.0, 123.0, 124.0):
        write(ledger, range(1))
        ledger.write_due_head(now)
    assert heads_of(store) == [1, 4, 6, 7]
    ledger.write_due_head(200.0)
    ledger.write_due_head(300.0)
    assert heads_of(store) == [1, 4, 6, 7, 8]


def test_heads_are_listed_from_the_last_segment_on(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, _ = Ledger.open(store, "world")
    for number in range(10):
        write(ledger, range(number, number + 1))
        ledger.write_head()
    listed: list[str] = []
    find = store.list

    def listing(prefix: str, after: str = "") -> list[str]:
        found = list(find(prefix, after))
        listed.extend(key for key in found if "/heads/" in key)
        return found

    monkeypatch.setattr(store, "list", listing)
    for read in READERS:
        listed.clear()
        read(store)
        assert len(listed) == 1


def test_a_coordinator_writes_heads_in_time_at_its_end_and_at_the_end_of_a_campaign(
    store: FolderStore,
) -> None:
    harness = CoordinatorHarness(store)
    open_campaign = harness.submit(small())
    harness.pass_time(100.0)
    assert heads_of(store)[-1] == open_campaign.ledger.seq
    for _ in range(2):
        harness.work()
        harness.step()
    assert heads_of(store)[-1] < open_campaign.ledger.seq
    harness.coordinator._write_heads()
    assert heads_of(store)[-1] == open_campaign.ledger.seq
    assert harness.finish().finished
    assert heads_of(store)[-1] == open_campaign.ledger.seq


def test_a_cut_ledger_pauses_its_campaign(store: FolderStore) -> None:
    harness = CoordinatorHarness(store)
    harness.submit(small())
    harness.finish()
    store.delete("campaigns/world/finished.json")
    store.delete(list(store.list(FOLDER))[-1])
    harness.restart().open_all()
    assert "cut off" in harness.coordinator.broken["world"]


# ------------------------------------------------------------------------------- release 0.1.0


@pytest.mark.slow
def test_a_ledger_of_release_0_1_0_is_chained_from_its_next_segment_on(tmp_path: Path) -> None:
    old = unpack("killed", tmp_path)
    ledger, _ = Ledger.open(old.store, old.name)
    ends = ledger.seq
    entry = LedgerEntry(m.CampaignPaused(id="1", campaign=old.name, time=1.0, why="x"))
    ledger.append([entry])
    key = chain.segment_uri(old.name, ends, 1)
    old.store.put(key, old.store.get(key).replace(b"0", b"1", 1))
    with pytest.raises(CorruptLedger):
        load_state(old.store, old.name)
