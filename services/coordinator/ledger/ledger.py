"""One campaign's append-only ledger in the store: the events received and the decisions they led
to.

A segment is the object `campaigns/<c>/ledger/<seq>-<epoch>.json`, created once and never changed.
It holds a batch of entries, each one event with its decisions. Rebuilding the state applies the
messages of all segments in order and never calls `decide`, so that a newer version of the rules
cannot change what an older one decided.

Segments form a hash chain (`chain.py`): one that is missing or differs from what was written is
noticed, also where it is still a valid segment.

Opening a ledger for writing takes the next epoch, then lists the segments. After it has written a
segment, a writer checks that its epoch is still the newest. If so, every later writer finds the
segment in its list. If not, the writer raises `Fenced` and stops before it acts on the segment. A
late segment of an overtaken writer is recognised by its epoch and left out; its events are handled
again (`Ledger.orphans`).
"""

from __future__ import annotations

import re
import threading
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, NamedTuple

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from dpstream.services.coordinator.apply import apply
from dpstream.services.coordinator.garbage import no_full_collections
from dpstream.services.coordinator.ledger import snapshots
from dpstream.services.coordinator.ledger.chain import (
    HEAD_SECONDS,
    HEAD_SEGMENTS,
    Link,
    check_heads,
    check_link,
    segment_uri,
    write_head,
)
from dpstream.services.coordinator.ledger.snapshots import code_version
from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.state import Archive, State
from dpstream.shared.codec import AnyMessage
from dpstream.shared.errors import CorruptLedger, DigestMismatch, Fenced, NotFound, StoreError
from dpstream.shared.logs import logger
from dpstream.shared.messages import CampaignFinished, CampaignPaused, Command, Message, Result
from dpstream.shared.ports import Store
from dpstream.shared.spec import Spec
from dpstream.shared.spec.errors import first_of
from dpstream.shared.values import campaign_uri

log = logger()
_LOOKING = threading.Lock()
"""Held while one ledger is looked at for missing segments, so that many at a start take turns."""
AHEAD = 8
"""Segments fetched in advance while one is applied."""
Number = tuple[int, int]
"""Number of a segment and epoch of its writer."""


@dataclass(frozen=True)
class LedgerEntry:
    """One event and the decisions it led to."""

    event: Annotated[AnyMessage, Field(alias="heard")]
    decided: tuple[AnyMessage, ...] = ()

    @property
    def unprocessable(self) -> bool:
        """Whether `decide` raised on the event: then the entry only pauses the campaign."""
        return any(isinstance(fact, CampaignPaused) and fact.trace for fact in self.decided)


@pydantic_dataclass(frozen=True, config=ConfigDict(ser_json_inf_nan="strings"))
class Segment:
    seq: int
    epoch: int
    nonce: str
    entries: tuple[LedgerEntry, ...]
    code: str = field(default_factory=code_version)
    follows: Link | None = None
    """The segment before; None for the first one, and by release 0.1.0."""

    def dumps(self) -> bytes:
        return _SEGMENT.dump_json(self, by_alias=True)

    @staticmethod
    def loads(data: bytes) -> Segment:
        """Raises ValueError if `data` is not a segment."""
        return _SEGMENT.validate_json(data)


_SEGMENT = TypeAdapter(Segment)


class Stored(NamedTuple):
    """A segment as an object of the store."""

    segment: Segment
    link: Link


@dataclass
class Ledger:
    """The ledger of one campaign, opened for writing under `epoch`."""

    store: Store
    campaign: str
    epoch: int
    seq: int = 0
    last: Segment | None = None
    """The newest segment: its messages are published again after a restart."""
    orphans: tuple[Message, ...] = field(default=())
    """Events in segments of overtaken writers only: to be handled like redeliveries."""
    former: dict[str, Command] = field(default_factory=dict)
    """Commands that overtaken writers decided, by task."""
    overtaken: tuple[Number, ...] = ()
    """The segments of overtaken writers that were there when it was opened."""
    since_snapshot: int = 0
    """Entries since the newest snapshot."""
    snapshot_seq: int = 0
    """Number of the segment after which that was begun."""
    link: Link | None = None
    """To the newest segment."""
    headed: int = 0
    """Number of the last segment that this writer wrote a head of."""
    headed_at: float = -HEAD_SECONDS
    """When one was due last, s, on a clock that is never set back."""
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Identifies the segments of this writer."""
    missing: CorruptLedger | None = None
    """Names a missing segment before the snapshot that the ledger was opened with, once one is
    found."""
    _beside: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1))
    """The thread that writes snapshots."""
    _snapshot: tuple[Archive, Future[Archive]] | None = None
    """The one that is being written: the archive of its state, and what it is to become."""

    @staticmethod
    def open(store: Store, campaign: str) -> tuple[Ledger, State]:
        """Takes the next epoch and rebuilds the state from the newest snapshot and the segments
        since. Raises NotFound if there is no such campaign, CorruptLedger naming a segment that
        cannot be read; one that is missing before the snapshot is found later (`missing`), since a
        long ledger has a great many. Raises `Fenced` if a newer coordinator has taken over
        meanwhile."""
        spec = Spec.model_validate_json(store.get(campaign_uri(campaign, "spec.json")))
        ledger = Ledger(store, campaign, take_epoch(store, campaign))
        state, begun, known = _from_snapshot(store, campaign, State(spec=spec))
        done = begun[0]
        valid, overtaken = _ranked(store, campaign, from_seq=max(1, done))
        if done and begun not in valid:  # a late segment changed what is valid
            return Ledger.open(store, campaign)
        there = {number for number in known if store.exists(segment_uri(campaign, *number))}
        ledger.snapshot_seq = done
        ledger.overtaken = tuple(sorted({*there, *overtaken}.difference(valid)))
        orphans: dict[str, Message] = {}
        for segment, _ in _fetched(store, campaign, ledger.overtaken):
            for entry in segment.entries:
                if segment.seq >= done or _is_awaited(entry.event, state):
                    orphans[entry.event.id] = entry.event
                commands = (each for each in entry.decided if isinstance(each, Command))
                ledger.former |= {command.task: command for command in commands}
        for segment, link in _chained(_fetched(store, campaign, valid)):
            for entry in segment.entries:
                orphans.pop(entry.event.id, None)
            ledger.seq, ledger.last, ledger.link = segment.seq, segment, link
            if segment.seq > done:
                ledger.since_snapshot += len(segment.entries)
                state = ledger.snapshot(replay(state, segment))
        check_heads(store, campaign, ledger.link)
        ledger.orphans = tuple(orphans.values())
        ledger.check()  # what it has read may be unknown to a newer one
        if done > 1:
            threading.Thread(target=ledger._look_for_missing, args=(done,), daemon=True).start()
        return ledger, state

    def append(self, entries: Sequence[LedgerEntry]) -> Segment:
        """Writes the next segment; it is durable on return. Raises `Fenced` if a newer coordinator
        has taken over; the segment may be there, but nothing may follow from it. After a
        `StoreError` too the segment may have been written: call `recover`."""
        segment = Segment(self.seq + 1, self.epoch, self.nonce, tuple(entries), follows=self.link)
        key = segment_uri(self.campaign, segment.seq, self.epoch)
        data = segment.dumps()
        if not self.store.create(key, data):
            found = self.store.get(key)
            if found != data and _nonce(found) != self.nonce:
                raise Fenced(f"{self.campaign}: taken over by a newer coordinator")
            if found != data:
                raise StoreError(f"{key}: an earlier write of this process has arrived late")
        self.check()
        self._count_segment(Stored(segment, Link.to(segment.seq, self.epoch, data)))
        return segment

    def recover(self, state: State) -> State:
        """After a failed `append`, applies the segment to `state` if it was written after all.
        Raises `Fenced` if a newer coordinator has taken over."""
        number = (self.seq + 1, self.epoch)
        key = segment_uri(self.campaign, *number)
        if not self.store.exists(key):
            return state
        self.check()
        stored = _decoded(key, number, self.store.get(key))
        self._count_segment(stored)
        return replay(state, stored.segment)

    def _count_segment(self, stored: Stored) -> None:
        self.last, self.link = stored
        self.seq = self.last.seq
        self.since_snapshot += len(self.last.entries)

    def is_there(self) -> bool:
        """Whether the campaign is still in the store."""
        return self.store.exists(_epoch_uri(self.campaign, self.epoch))

    def check(self) -> None:
        """Raises `Fenced` if a newer coordinator has taken over."""
        if self.store.exists(_epoch_uri(self.campaign, self.epoch + 1)):
            raise Fenced(f"{self.campaign}: taken over by a newer coordinator")

    def snapshot(self, state: State) -> State:
        """Begins to write a snapshot of `state` in another thread if one is due, and writes a head
        with it and at the end. Returns the state without the records in a segment of the archive
        that has been written since."""
        if self._snapshot is not None and self._snapshot[1].done():
            state = self.written(state)
        segments = self.seq - self.snapshot_seq
        if self._snapshot is None and snapshots.is_due(state, self.since_snapshot, segments):
            assert self.link is not None
            where = self.store, self.campaign, self.link, self.epoch
            overtaken = [number for number in self.overtaken if number[0] <= self.seq]
            writing = self._beside.submit(snapshots.write, *where, state, overtaken)
            self._snapshot = state.archive, writing
            self.since_snapshot, self.snapshot_seq = 0, self.seq
            self.write_head()
        elif state.finished is not None:
            self.write_head()
        return state

    def written(self, state: State) -> State:
        """Waits for the snapshot that is being written; returns as `snapshot`."""
        if self._snapshot is None:
            return state
        before, writing = self._snapshot
        self._snapshot = None
        try:
            archive = state.archive.stored(before, writing.result())
        except StoreError as error:
            log.warning("no snapshot written", campaign=self.campaign, reason=str(error))
            return state
        return replace(state, archive=archive)

    def _look_for_missing(self, before: int) -> None:
        with _LOOKING:
            try:
                there = {seq for seq, _ in numbers_of(self.store, self.campaign)}
                _check_numbers(self.campaign, there, range(1, before))
            except CorruptLedger as error:
                self.missing = error
            except StoreError as error:
                log.warning("missing segments not looked for", reason=str(error))

    def write_head(self) -> None:
        """Writes a head of the newest segment, if this writer has not yet."""
        if self.link is not None and self.headed < self.seq:
            write_head(self.store, self.campaign, self.link)
            self.headed = self.seq

    def write_due_head(self, now: float) -> None:
        """Writes a head if one is due at `now`, s, on a clock that is never set back."""
        late = now - self.headed_at >= HEAD_SECONDS
        if self.headed < self.seq and (late or self.seq - self.headed >= HEAD_SEGMENTS):
            self.write_head()
            self.headed_at = now


def _is_awaited(event: Message, state: State) -> bool:
    """Whether the event is a result of a task that is open, or that may still be issued."""
    if not isinstance(event, Result):
        return False
    task = state.tasks.get(event.task)
    return not state.archive.has_task(event.task) if task is None else task.is_live


def _nonce(data: bytes) -> object:
    try:
        return Segment.loads(data).nonce
    except ValueError:
        return None


def replay(state: State, segment: Segment) -> State:
    """The state after a segment: its messages are applied, and nothing is decided again."""
    for entry in segment.entries:
        if not entry.unprocessable:
            state = apply(state, entry.event)
        for message in entry.decided:
            state = apply(state, message)
    return state


def read_segments(store: Store, campaign: str) -> Iterator[Segment]:
    """Yields the valid segments in order; only a few are in memory at a time. Raises CorruptLedger
    if one is missing, cannot be read or is not the one that its successor follows."""
    last = None
    for stored in _read(store, campaign):
        yield stored.segment
        last = stored.link
    check_heads(store, campaign, last)


def _read(
    store: Store, campaign: str, after: int = 0, before: Link | None = None
) -> Iterator[Stored]:
    """The valid segments with numbers above `after`; `before`: the one with this number, as it was
    read."""
    valid, _ = _ranked(store, campaign, from_seq=max(1, after))
    if before is not None and (before.seq, before.epoch) not in valid[:1]:
        before = None  # its writer had been overtaken
    fetched = _fetched(store, campaign, [number for number in valid if number[0] > after])
    yield from _chained(fetched, before)


def _chained(fetched: Iterable[Stored], before: Link | None = None) -> Iterator[Stored]:
    """The segments, which follow one another. Raises CorruptLedger where one does not."""
    for stored in fetched:
        segment = stored.segment
        check_link(segment.follows, before, segment.seq, segment.code)
        yield stored
        before = stored.link


def numbers_of(store: Store, campaign: str, from_seq: int = 1) -> list[Number]:
    """Numbers of all segments with this number and above, in order."""
    folder = campaign_uri(campaign, "ledger", "")
    return [number_in(key) for key in store.list(folder, after=f"{folder}{from_seq:08d}")]


def read_segment(store: Store, campaign: str, number: Number) -> Stored:
    """One segment. Raises CorruptLedger if it is missing or cannot be read."""
    return _received(campaign, number, partial(store.get, segment_uri(campaign, *number)))


def _ranked(store: Store, campaign: str, from_seq: int = 1) -> tuple[list[Number], list[Number]]:
    """Numbers of the valid segments, in order, and of those that overtaken writers left behind.

    The newest segment of the newest writer is valid, and every one that a valid one follows. Raises
    CorruptLedger if a number is missing.
    """
    numbers = numbers_of(store, campaign, from_seq)
    if not numbers:
        return [], []
    by_seq: dict[int, list[int]] = {}
    for seq, epoch in numbers:
        by_seq.setdefault(seq, []).append(epoch)
    newest = max(numbers, key=lambda number: (number[1], number[0]))
    _check_numbers(campaign, by_seq, range(from_seq, newest[0]))
    valid = [newest]
    for seq in range(newest[0] - 1, from_seq - 1, -1):
        valid.append((seq, _followed(store, campaign, valid[-1], by_seq[seq])))
    counted = set(valid)
    return valid[::-1], sorted(number for number in numbers if number not in counted)


def _check_numbers(campaign: str, there: Collection[int], needed: Iterable[int]) -> None:
    for seq in needed:
        if seq not in there:
            raise CorruptLedger(f"{campaign}: segment {seq} of the ledger is missing")


def _followed(store: Store, campaign: str, number: Number, epochs: Sequence[int]) -> int:
    """Which of the segments of these epochs a segment follows. A writer may have overtaken another
    one that wrote a segment of the same number afterwards."""
    highest = max(epochs)
    if len(epochs) == 1 or number[1] == highest:  # a writer follows its own segments
        return highest
    follows = read_segment(store, campaign, number).segment.follows
    if follows is None:  # by release 0.1.0, for which the highest epoch counts
        return highest
    return follows.epoch


def _fetched(store: Store, campaign: str, numbers: Iterable[Number]) -> Iterator[Stored]:
    """Yields segments in order and fetches the next few meanwhile, to hide the latency of the
    store."""
    with ThreadPoolExecutor(AHEAD) as pool, no_full_collections():
        coming: deque[tuple[Number, Future[bytes]]] = deque()
        for number in numbers:
            key = segment_uri(campaign, *number)
            coming.append((number, pool.submit(store.get, key)))
            if len(coming) > AHEAD:
                number, data = coming.popleft()
                yield _received(campaign, number, data.result)
        for number, data in coming:
            yield _received(campaign, number, data.result)


def _received(campaign: str, number: Number, get: Callable[[], bytes]) -> Stored:
    try:
        return _decoded(segment_uri(campaign, *number), number, get())
    except (DigestMismatch, NotFound) as error:
        raise CorruptLedger(str(error)) from error


def _decoded(key: str, number: Number, data: bytes) -> Stored:
    """The segment in an object. Raises CorruptLedger if it is none, or has another number."""
    try:
        segment = Segment.loads(data)
    except ValidationError as error:
        raise CorruptLedger(f"{key}: not a segment of a ledger: {first_of(error)}") from error
    if (segment.seq, segment.epoch) != number:
        raise CorruptLedger(
            f"{key}: contains segment {segment.seq} by epoch {segment.epoch} of a ledger"
        )
    return Stored(segment, Link.to(*number, data))


@dataclass
class LedgerReader:
    """Follows a ledger that a coordinator writes. `state` is the state after segment `seq`, the
    last one read."""

    store: Store
    campaign: str
    state: State
    seq: int = 0
    link: Link | None = None
    """To that segment, once one was read."""

    @staticmethod
    def begin(store: Store, campaign: str) -> LedgerReader:
        """A reader before the first segment. Raises NotFound if there is no such campaign."""
        spec = Spec.model_validate_json(store.get(campaign_uri(campaign, "spec.json")))
        return LedgerReader(store, campaign, State(spec=spec))

    @staticmethod
    def open(store: Store, campaign: str) -> LedgerReader:
        """A reader at the last segment; starts from the newest snapshot."""
        reader = LedgerReader.begin(store, campaign)
        reader.state, (reader.seq, _), _ = _from_snapshot(store, campaign, reader.state)
        reader.update()
        return reader

    def update(self) -> None:
        """Applies the segments written since the last call."""
        for _ in self.new_segments():
            pass

    def new_segments(self) -> Iterator[Segment]:
        """Yields the segments written since the last call; each is applied before it is yielded."""
        is_first = self.link is None
        for segment, link in _read(self.store, self.campaign, self.seq, self.link):
            self.state, self.seq, self.link = replay(self.state, segment), segment.seq, link
            yield segment
        if is_first:
            check_heads(self.store, self.campaign, self.link, self.seq)


def load_state(store: Store, campaign: str) -> State:
    """The state of a campaign. Raises NotFound if there is no such campaign."""
    return LedgerReader.open(store, campaign).state


def messages_of(segments: Iterable[Segment]) -> Iterator[Message]:
    """Every message of the segments: each event followed by its decisions."""
    for segment in segments:
        for entry in segment.entries:
            yield entry.event
            yield from entry.decided


def read_messages(store: Store, campaign: str) -> Iterator[Message]:
    """Every message of a campaign's ledger: each event followed by its decisions."""
    return messages_of(read_segments(store, campaign))


def campaigns(store: Store) -> list[str]:
    """Names of all campaigns in a store."""
    return sorted(begun_and_ended(store)[0])


def begun_and_ended(store: Store) -> tuple[set[str], set[str]]:
    """Names of all campaigns in a store, and of those that have ended. Takes no longer if there is
    much in a campaign."""
    folders = [entry for entry in store.entries("campaigns/") if entry.endswith("/")]
    with ThreadPoolExecutor(AHEAD) as pool:
        found = dict(zip(folders, pool.map(store.entries, folders), strict=True))
    begun, ended = set[str](), set[str]()
    for folder, entries in found.items():
        name = folder.split("/")[1]
        ends = {_number_of(entry) for entry in entries if entry.startswith(f"{folder}finished")}
        if f"{folder}spec.json" in entries:
            begun.add(name)
        plan = _newest_plan(store, name) if ends and f"{folder}plans/" in entries else 1
        if plan in ends:
            ended.add(name)
    return begun, ended


def verdict(store: Store, campaign: str) -> CampaignFinished | None:
    """The verdict on a campaign, without reading its ledger; None if it has not ended by its newest
    plan."""
    try:
        key = finished_uri(campaign, _newest_plan(store, campaign))
        return CampaignFinished.model_validate_json(store.get(key))
    except NotFound:
        return None


def _newest_plan(store: Store, campaign: str) -> int:
    plans = store.list(campaign_uri(campaign, "plans", ""))
    return max((_number_of(key) for key in plans), default=1)


def _number_of(key: str) -> int:
    """The number of a plan, or of the plan that has ended, from its key."""
    number = re.search(r"/(?:plans/|finished-)(\d+)", key)
    return int(number[1]) if number else 1


def take_epoch(store: Store, campaign: str) -> int:
    """Takes the next free epoch."""
    taken = store.list(campaign_uri(campaign, "epoch", ""))
    epoch = max((int(key.rsplit("/", 1)[1]) for key in taken), default=0) + 1
    while not store.create(_epoch_uri(campaign, epoch), uuid.uuid4().hex.encode()):
        epoch += 1
    return epoch


def finished_uri(campaign: str, plan: int = 1) -> str:
    """The key of the verdict on a campaign under a plan."""
    return campaign_uri(campaign, "finished.json" if plan == 1 else f"finished-{plan}.json")


def _epoch_uri(campaign: str, epoch: int) -> str:
    return campaign_uri(campaign, "epoch", f"{epoch:06d}")


def number_in(key: str) -> Number:
    """Number and epoch of a segment or snapshot, from its key."""
    try:
        seq, epoch = key.rsplit("/", 1)[1].partition(".")[0].split("-")
        return int(seq), int(epoch)
    except ValueError as error:
        raise CorruptLedger(f"{key}: not the name of a segment") from error


def _from_snapshot(
    store: Store, campaign: str, empty: State
) -> tuple[State, Number, tuple[Number, ...]]:
    """The state of the newest snapshot after a valid segment, that segment, and the segments of
    overtaken writers up to there."""
    is_valid = partial(_is_valid, store, campaign)
    found = snapshots.newest(store, campaign, lambda key: is_valid(number_in(key)))
    if found is None:
        return empty, (0, 0), ()
    return found.state, (found.seq, found.epoch), found.overtaken


def _is_valid(store: Store, campaign: str, number: Number) -> bool:
    """Whether a segment is valid. Lists only the names from there on."""
    return number in _ranked(store, campaign, from_seq=max(1, number[0] - 1))[0]
