"""The ledger: what was heard and decided, in order, by one writer, for good."""

from __future__ import annotations

import gzip
import json
import math
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from dpstream.services.coordinator.apply import apply
from dpstream.services.coordinator.ledger import ledger as ledger_module
from dpstream.services.coordinator.ledger import snapshots
from dpstream.services.coordinator.ledger.ledger import (
    AHEAD,
    Ledger,
    LedgerEntry,
    LedgerReader,
    begun_and_ended,
    load_state,
    read_messages,
    read_segments,
)
from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.records import KeySet, replace
from dpstream.services.coordinator.state import Archive, ExplorationState, State
from dpstream.shared import messages as m
from dpstream.shared.errors import CorruptLedger, Fenced, NotFound, StoreError
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import campaign_uri
from tests.support.adapters.faulty_adapters import FlakyStore, first
from tests.support.campaigns.campaign_simulator import CampaignSimulator, spec, submission
from tests.support.campaigns.lossy_delivery import Entry, LossyDelivery

FOLDER = "campaigns/world/ledger/"
WRONG = State(spec=spec(), exploration=ExplorationState(rounds=77))
"""A state that no ledger here leads to."""


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    made = FolderStore(tmp_path)
    made.put(campaign_uri("world", "spec.json"), spec().model_dump_json().encode())
    return made


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    """Every event and decision of one campaign."""
    campaign = LossyDelivery(CampaignSimulator(), spec(), seed=1)
    campaign.run()
    return campaign.ledger


def entry(each: Entry) -> LedgerEntry:
    return LedgerEntry(*each)


def write(ledger: Ledger, entries: Sequence[Entry], size: int = 1) -> None:
    for i in range(0, len(entries), size):
        ledger.append([entry(each) for each in entries[i : i + size]])


def write_snapshot(ledger: Ledger, state: State) -> State:
    """Writes a snapshot if one is due, and waits for it."""
    return ledger.written(ledger.snapshot(state))


def state_of(entries: Sequence[Entry]) -> State:
    state = State(spec=spec())
    for event, _ in entries:
        state, _ = decide(state, event)
    return state


def test_a_ledger_with_the_former_tag_of_an_event_reads_the_same(
    store: FolderStore, entries: list[Entry]
) -> None:
    write(Ledger.open(store, "world")[0], entries, 10)
    before = list(read_messages(store, "world"))
    renamed = 0
    for key in list(store.list(FOLDER)):
        data = store.get(key)
        renamed += data.count(b'"chunk-explored/1"')
        document = json.loads(data.replace(b'"chunk-explored/1"', b'"candidates-found/1"'))
        store.put(key, json.dumps(document | {"code": "0.1.0", "follows": None}).encode())
    assert renamed > 5
    assert list(read_messages(store, "world")) == before
    assert load_state(store, "world").dumps() == state_of(entries).dumps()


@pytest.mark.parametrize("size", [1, 7])
def test_what_was_appended_is_read_back(
    store: FolderStore, entries: list[Entry], size: int
) -> None:
    ledger, empty = Ledger.open(store, "world")
    assert empty == State(spec=spec())
    write(ledger, entries, size)
    reopened, state = Ledger.open(store, "world")
    assert state.dumps() == state_of(entries).dumps() == load_state(store, "world").dumps()
    assert reopened.seq == ledger.seq
    assert reopened.last == ledger.last
    messages = [message for each in entries for message in (each[0], *each[1])]
    assert list(read_messages(store, "world")) == messages


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> int:
    """Events between two snapshots."""
    monkeypatch.setattr(snapshots, "SNAPSHOT_EVERY", 20)
    monkeypatch.setattr(snapshots, "ENTRIES_PER_EVENT", 1_000_000)
    return 20


def test_a_snapshot_and_the_rest_tell_the_same(
    store: FolderStore, entries: list[Entry], often: int
) -> None:
    ledger, state = Ledger.open(store, "world")
    for each in entries[: often + 5]:
        ledger.append([entry(each)])
        state = ledger_module.replay(state, Segments.of(each))
        write_snapshot(ledger, state)
    assert len(snapshots.listed(store, "world")) == 1
    for number in range(1, often):  # a snapshot spares reading what it covers
        store.put(f"{FOLDER}{number:08d}-000001.json", b"not read")
    reopened, found = Ledger.open(store, "world")
    assert found.dumps() == state.dumps()
    assert (reopened.seq, reopened.last, reopened.since_snapshot) == (ledger.seq, ledger.last, 5)
    assert load_state(store, "world").dumps() == state.dumps()


class Segments:
    @staticmethod
    def of(each: Entry) -> ledger_module.Segment:
        return ledger_module.Segment(1, 1, "n", (entry(each),))


def test_a_snapshot_of_other_code_is_not_trusted(
    store: FolderStore, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, _ = Ledger.open(store, "world")
    write(ledger, entries)
    monkeypatch.setattr(snapshots, "SNAPSHOT_EVERY", 1)
    write_snapshot(ledger, WRONG)
    assert Ledger.open(store, "world")[1] == WRONG, "the snapshot is read, wrong as it is"
    monkeypatch.setattr(snapshots, "code_version", lambda: "another")
    assert Ledger.open(store, "world")[1].dumps() == state_of(entries).dumps()


def test_a_snapshot_of_release_0_1_0_is_passed_over(
    store: FolderStore, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All fields of its state were in one table; also where the package claims to be 0.1.0."""
    monkeypatch.setattr(snapshots, "code_version", lambda: "0.1.0")
    ledger, _ = Ledger.open(store, "world")
    write(ledger, entries)
    flat = {"spec": spec().model_dump(mode="json"), "waves": 77, "pending": 3, "frames": {}}
    old = {"seq": ledger.seq, "code": "0.1.0", "state": flat}
    name = f"campaigns/world/snapshots/{ledger.seq:08d}-000001.json.gz"
    store.put(name, gzip.compress(json.dumps(old).encode()))
    assert Ledger.open(store, "world")[1].dumps() == state_of(entries).dumps()


def test_a_snapshot_of_another_format_is_passed_over(
    store: FolderStore, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, _ = Ledger.open(store, "world")
    write(ledger, entries)
    monkeypatch.setattr(snapshots, "SNAPSHOT_EVERY", 1)
    write_snapshot(ledger, WRONG)
    assert Ledger.open(store, "world")[1] == WRONG, "the snapshot is read, wrong as it is"
    monkeypatch.setattr(snapshots, "FORMAT", snapshots.FORMAT + 1)
    assert Ledger.open(store, "world")[1].dumps() == state_of(entries).dumps()


@pytest.mark.parametrize("archived", [False, True])
def test_snapshots_of_a_large_campaign_are_rarer(
    store: FolderStore,
    entries: list[Entry],
    often: int,
    monkeypatch: pytest.MonkeyPatch,
    archived: bool,
) -> None:
    ledger, empty = Ledger.open(store, "world")
    write(ledger, entries[:4], 1)
    if archived:
        state = state_of(entries)
        size, setting = len(state.archive), "ARCHIVED_PER_EVENT"
    else:
        state = apply(empty, submission(spec(), frames=100))
        size, setting = 100, "ENTRIES_PER_EVENT"
    monkeypatch.setattr(snapshots, setting, 2)
    for ledger.since_snapshot, expected in [(often, 0), (size // 2 - 1, 0), (size // 2, 1), (0, 1)]:
        state = write_snapshot(ledger, state)
        assert len(snapshots.listed(store, "world")) == expected


def test_what_a_restart_has_folded_brings_the_next_snapshot_nearer(
    store: FolderStore, entries: list[Entry], often: int
) -> None:
    for each in entries[:often]:  # a coordinator that is killed after every event
        ledger, state = Ledger.open(store, "world")
        assert not list(store.list("campaigns/world/snapshots/"))
        state = ledger_module.replay(state, ledger.append([entry(each)]))
        write_snapshot(ledger, state)
    assert len(snapshots.listed(store, "world")) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [b"", b"{", gzip.compress(b'{"code": "x"}'), gzip.compress(b"[" * 99)[:20]],
    ids=["empty", "no archive", "another's", "cut"],
)
def test_an_unreadable_snapshot_costs_time_only(
    store: FolderStore, entries: list[Entry], damage: bytes
) -> None:
    ledger, _ = Ledger.open(store, "world")
    write(ledger, entries)
    store.put(f"campaigns/world/snapshots/{len(entries):08d}-000001.json.gz", damage)
    assert Ledger.open(store, "world")[1].dumps() == state_of(entries).dumps()


def test_the_snapshot_of_an_overtaken_segment_is_not_trusted(
    store: FolderStore, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = Ledger.open(store, "world")
    new, _ = Ledger.open(store, "world")
    monkeypatch.setattr(old, "check", lambda: None)  # it looked before the newer one came
    old.append([entry(entries[1])])
    new.append([entry(entries[0])])
    monkeypatch.setattr(snapshots, "SNAPSHOT_EVERY", 1)
    write_snapshot(old, WRONG)
    assert Ledger.open(store, "world")[1].dumps() == state_of(entries[:1]).dumps()


# ----------------------------------------------------------------------------------- one writer


def test_the_older_of_two_writers_is_fenced_and_changes_nothing(
    store: FolderStore, entries: list[Entry]
) -> None:
    old, _ = Ledger.open(store, "world")
    old.append([entry(entries[0])])
    new, _ = Ledger.open(store, "world")
    new.append([entry(entries[1])])
    before = {key: store.get(key) for key in store.list("campaigns/world/")}
    for _ in range(2):
        with pytest.raises(Fenced, match="taken over"):
            old.append([entry(entries[2])])
    after = {key: store.get(key) for key in store.list("campaigns/world/")}
    assert after.keys() - before.keys() == {f"{FOLDER}00000002-000001.json"}
    assert {key: after[key] for key in before} == before
    assert load_state(store, "world").dumps() == state_of(entries[:2]).dumps()


def test_every_opening_takes_an_epoch_of_its_own(store: FolderStore) -> None:
    assert [Ledger.open(store, "world")[0].epoch for _ in range(3)] == [1, 2, 3]


def test_reading_takes_no_epoch(store: FolderStore, entries: list[Entry]) -> None:
    ledger, _ = Ledger.open(store, "world")
    load_state(store, "world")
    list(read_messages(store, "world"))
    ledger.append([entry(entries[0])])


def test_events_of_an_overtaken_sibling_are_heard_again(
    store: FolderStore, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = Ledger.open(store, "world")
    old.append([entry(entries[0])])
    new, _ = Ledger.open(store, "world")
    monkeypatch.setattr(old, "check", lambda: None)
    old.append([entry(entries[1]), entry(entries[2])])
    new.append([entry(entries[1])])
    third, state = Ledger.open(store, "world")
    assert state.dumps() == state_of(entries[:2]).dumps()
    assert third.orphans == (entries[2][0],)
    for orphan in third.orphans:
        state, _ = decide(state, orphan)
    assert state.dumps() == state_of(entries[:3]).dumps()


def test_a_restart_from_a_snapshot_knows_the_segments_of_overtaken_writers_before_it(
    store: FolderStore, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "SNAPSHOT_EVERY", 1)
    old, _ = Ledger.open(store, "world")
    new, state = Ledger.open(store, "world")
    monkeypatch.setattr(old, "check", lambda: None)
    old.append([entry(entries[0])])
    new.append([entry(entries[0])])
    third, state = Ledger.open(store, "world")
    for each in entries[1:4]:
        third.append([entry(each)])
        state, _ = decide(state, each[0])
        state = third.written(third.snapshot(state))
    assert (third.seq, third.overtaken) == (4, ((1, 1),))
    assert Ledger.open(store, "world")[0].overtaken == ((1, 1),)
    store.delete(f"{FOLDER}00000001-000001.json")  # as a repair does if it is damaged
    assert Ledger.open(store, "world")[0].overtaken == ()


def test_whoever_is_overtaken_while_it_reads_the_ledger_is_fenced(
    store: FolderStore, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its predecessor's segment is not known to its successor, which has listed the segments."""
    old, _ = Ledger.open(store, "world")
    list_, newest = store.list, list[Ledger]()

    def list_meanwhile(prefix: str, after: str = "") -> Iterable[str]:
        if prefix == FOLDER:
            monkeypatch.undo()
            newest.append(Ledger.open(store, "world")[0])
            with pytest.raises(Fenced):
                old.append([entry(entries[0])])
        return list_(prefix, after)

    monkeypatch.setattr(store, "list", list_meanwhile)
    with pytest.raises(Fenced):
        Ledger.open(store, "world")
    assert newest[0].seq == 0


def test_a_long_campaign_delays_no_snapshot_for_many_segments() -> None:
    state = replace(State(spec=spec()), archive=Archive(tasks=KeySet(b"0" * 16 * 500_000)))
    assert not snapshots.is_due(state, events=1000, segments=999)
    assert snapshots.is_due(state, events=1000, segments=1000)
    assert snapshots.is_due(state, events=500_000 // 128, segments=100)


def test_a_restart_lists_the_segments_from_the_newest_snapshot_on(
    store: FolderStore, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "SNAPSHOT_EVERY", 1)
    ledger, state = Ledger.open(store, "world")
    for each in entries[:5]:
        ledger.append([entry(each)])
        state, _ = decide(state, each[0])
        state = ledger.written(ledger.snapshot(state))
    listed, list_, here = list[str](), store.list, threading.get_ident()

    def record(prefix: str, after: str = "") -> Iterable[str]:
        found = list(list_(prefix, after))
        if prefix == FOLDER and threading.get_ident() == here:
            listed.extend(found)
        return found

    monkeypatch.setattr(store, "list", record)
    reopened, _ = Ledger.open(store, "world")
    assert reopened.seq == 5
    assert set(listed) == {f"{FOLDER}0000000{number}-000001.json" for number in (4, 5)}


@pytest.mark.parametrize("is_there", [False, True])
def test_whoever_takes_over_knows_every_segment_that_its_predecessor_acts_on(
    store: FolderStore, entries: list[Entry], monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    """The successor starts while a segment is being written: just before it is there, or after."""
    old, _ = Ledger.open(store, "world")
    old.append([entry(entries[0])])
    create, successors = store.create, list[Ledger]()

    def create_meanwhile(key: str, data: bytes) -> bool:
        monkeypatch.undo()
        created = is_there and create(key, data)
        successors.append(Ledger.open(store, "world")[0])
        return created or create(key, data)

    monkeypatch.setattr(store, "create", create_meanwhile)
    with pytest.raises(Fenced):
        old.append([entry(entries[1])])
    (new,) = successors
    assert new.seq == (2 if is_there else 1)


def test_campaigns_are_found_without_listing_what_is_in_them(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        store.put(f"campaigns/c{number}/spec.json", b"{}")
        store.put(f"campaigns/c{number}/ledger/{number}", b"{}")
    store.put("campaigns/c1/finished.json", b"{}")
    store.put("campaigns/c2/finished.json", b"{}")
    store.put("campaigns/c2/plans/2.json", b"{}")
    store.put("campaigns/begins/claims/x", b"{}")
    listed, list_ = list[str](), store.list
    monkeypatch.setattr(store, "list", lambda prefix: listed.append(prefix) or list_(prefix))
    begun, ended = begun_and_ended(store)
    assert (begun - {"world"}, ended) == ({"c0", "c1", "c2"}, {"c1"})
    assert listed == ["campaigns/c2/plans/"]


def test_a_late_write_beyond_the_newer_writers_last_segment_is_no_history(
    store: FolderStore, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = Ledger.open(store, "world")
    old.append([entry(entries[0])])
    new, _ = Ledger.open(store, "world")
    new.append([entry(entries[1])])
    monkeypatch.setattr(old, "check", lambda: None)
    old.seq = 2
    old.append([entry(entries[3])])
    third, state = Ledger.open(store, "world")
    assert state.dumps() == state_of(entries[:2]).dumps()
    assert (third.seq, third.orphans) == (2, (entries[3][0],))


def test_a_create_that_says_no_but_wrote_our_own_bytes_has_won(
    store: FolderStore, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, _ = Ledger.open(store, "world")
    create = store.create

    def ambiguous(key: str, data: bytes) -> bool:
        create(key, data)
        return False  # the answer was lost, and the client tried again

    monkeypatch.setattr(store, "create", ambiguous)
    assert ledger.append([entry(entries[0])]).seq == 1
    monkeypatch.undo()
    assert load_state(store, "world").dumps() == state_of(entries[:1]).dumps()


def test_a_segment_of_somebody_else_in_our_place_fences(
    store: FolderStore, entries: list[Entry]
) -> None:
    ledger, _ = Ledger.open(store, "world")
    store.put(f"{FOLDER}00000001-000001.json", b"somebody else's")
    with pytest.raises(Fenced, match="world: taken over by a newer coordinator"):
        ledger.append([entry(entries[0])])


def test_after_a_lost_answer_the_ledger_opened_again_has_the_segment(
    store: FolderStore, entries: list[Entry]
) -> None:
    ledger, _ = Ledger.open(FlakyStore(store, first(0)), "world")
    ledger.store = FlakyStore(store, first(1, "created"))
    with pytest.raises(StoreError):
        ledger.append([entry(entries[0])])
    reopened, state = Ledger.open(store, "world")
    assert reopened.seq == 1
    assert state.dumps() == state_of(entries[:1]).dumps()


# -------------------------------------------------------------------------------------- history


def test_an_upgrade_does_not_rewrite_history(
    store: FolderStore, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, _ = Ledger.open(store, "world")
    write(ledger, entries)
    before = load_state(store, "world").dumps()

    def other(*_: object) -> None:
        raise AssertionError("history was decided again")

    monkeypatch.setattr("dpstream.services.coordinator.policy.decide", other)
    monkeypatch.setattr("dpstream.services.coordinator.policy.RULES", (other,))
    monkeypatch.setattr(snapshots, "code_version", lambda: "99.0")
    assert Ledger.open(store, "world")[1].dumps() == before


def test_an_unprocessable_event_leaves_only_the_pause_behind(
    store: FolderStore, entries: list[Entry]
) -> None:
    ledger, _ = Ledger.open(store, "world")
    write(ledger, entries[:20])
    before = load_state(store, "world")
    pause = m.CampaignPaused(
        id="p", campaign="world", time=1.0, cause=entries[20][0].id, why="raised", trace="Traceback"
    )
    ledger.append([LedgerEntry(entries[20][0], (pause,))])
    after = load_state(store, "world")
    left = replace(before, paused="raised", handled=before.handled.set("p", None))
    assert after.dumps() == left.dumps()


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"seq": 2}', b"\xff\xfe"])
def test_a_damaged_segment_is_named(
    store: FolderStore, entries: list[Entry], damage: bytes
) -> None:
    ledger, _ = Ledger.open(store, "world")
    write(ledger, entries[:3])
    store.put(f"{FOLDER}00000002-000001.json", damage)
    for read in (Ledger.open, load_state, lambda *of: list(read_messages(*of))):
        with pytest.raises(CorruptLedger, match=r"campaigns/world/ledger/00000002-000001\.json"):
            read(store, "world")


def test_a_segment_with_a_message_of_no_known_kind_is_named(
    store: FolderStore, entries: list[Entry]
) -> None:
    ledger, _ = Ledger.open(store, "world")
    write(ledger, entries[:1])
    key = f"{FOLDER}00000001-000001.json"
    document = json.loads(store.get(key))
    document["entries"][0]["heard"]["type"] = "future/9"
    store.put(key, json.dumps(document).encode())
    with pytest.raises(CorruptLedger, match="00000001-000001"):
        load_state(store, "world")


def test_a_missing_segment_is_noticed(store: FolderStore, entries: list[Entry]) -> None:
    ledger, _ = Ledger.open(store, "world")
    write(ledger, entries[:3])
    store.delete(f"{FOLDER}00000002-000001.json")
    with pytest.raises(CorruptLedger, match="segment 2"):
        Ledger.open(store, "world")


def test_a_campaign_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Ledger.open(FolderStore(tmp_path), "world")


def test_a_segment_reads_back_as_it_was_written(entries: list[Entry]) -> None:
    submitted = LedgerEntry(submission(spec()))
    segment = ledger_module.Segment(3, 2, "nonce", (submitted, *map(entry, entries)))
    assert ledger_module.Segment.loads(segment.dumps()) == segment


def test_what_is_not_finite_stays_so(
    store: FolderStore, entries: list[Entry], often: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "SNAPSHOT_EVERY", 1)
    ledger, state = Ledger.open(store, "world")
    number = next(i for i, each in enumerate(entries) if isinstance(each[0], m.AuditDone))
    bad = entries[number][0].model_copy(update={"force_upper": math.inf, "exceed_upper": math.nan})
    write(ledger, entries[:number])
    for each in entries[:number]:
        state = ledger_module.replay(state, Segments.of(each))
    state = ledger_module.replay(state, ledger.append([LedgerEntry(bad)]))
    assert state.dumps() == load_state(store, "world").dumps()
    write_snapshot(ledger, state)
    audit = Ledger.open(store, "world")[1].exploration.stage.audit
    assert audit is not None
    assert audit.force_upper == math.inf
    assert math.isnan(audit.exceed_upper)
    key = f"{FOLDER}{ledger.seq:08d}-000001.json"
    store.put(key, store.get(key).replace(b'"Infinity"', b"Infinity"))  # as json.dumps writes it
    for head in store.list("campaigns/world/heads/"):
        store.delete(head)
    assert list(read_messages(store, "world"))[-1].force_upper == math.inf


def test_a_long_ledger_is_read_a_few_segments_at_a_time(
    store: FolderStore, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, _ = Ledger.open(store, "world")
    write(ledger, entries[:40])
    fetched: list[str] = []
    get = store.get
    monkeypatch.setattr(store, "get", lambda key: fetched.append(key) or get(key))
    segments = read_segments(store, "world")
    for number, segment in enumerate(segments, start=1):
        assert segment.seq == number
        assert len(fetched) <= number + AHEAD
    assert number == len(fetched) == 40


def test_looking_again_reads_only_what_is_new(
    store: FolderStore, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, _ = Ledger.open(store, "world")
    write(ledger, entries[:5])
    reading = LedgerReader.open(store, "world")
    write(ledger, entries[5:8])
    listed: list[str] = []
    find = store.list

    def listing(prefix: str, after: str = "") -> list[str]:
        listed.extend(found := list(find(prefix, after)))
        return found

    monkeypatch.setattr(store, "list", listing)
    assert [segment.seq for segment in reading.new_segments()] == [6, 7, 8]
    assert len(listed) == 4
    assert reading.state.dumps() == state_of(entries[:8]).dumps()


def test_after_an_outage_the_writer_knows_what_it_wrote(
    store: FolderStore, entries: list[Entry]
) -> None:
    for operation, written in [("created", True), ("create", False)]:
        ledger, state = Ledger.open(store, "world")
        before = ledger.seq
        ledger.store = FlakyStore(store, first(1, operation))
        with pytest.raises(StoreError):
            ledger.append([entry(entries[before])])
        state = ledger.recover(state)
        assert ledger.seq == before + written
        assert state.dumps() == state_of(entries[: ledger.seq]).dumps()
        ledger.append([entry(entries[ledger.seq])])
    assert load_state(store, "world").dumps() == state_of(entries[:3]).dumps()


def test_our_own_write_that_arrives_late_is_in_doubt_and_not_a_rival(
    store: FolderStore, entries: list[Entry]
) -> None:
    ledger, state = Ledger.open(store, "world")
    late = ledger_module.Segment(1, ledger.epoch, ledger.nonce, (entry(entries[0]),))
    store.put(f"{FOLDER}00000001-000001.json", late.dumps())
    with pytest.raises(StoreError, match="arrived late"):
        ledger.append([entry(entries[1])])
    assert ledger.recover(state).dumps() == state_of(entries[:1]).dumps()
    ledger.append([entry(entries[1])])
