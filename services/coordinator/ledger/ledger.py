"""One campaign's append-only ledger in the store: the events received and the decisions they led
to.

A segment is the object `campaigns/<c>/ledger/<seq>-<epoch>.json`, created once and never changed.
It holds a batch of entries, each one event with its decisions. Rebuilding the state applies the
messages of all segments in order and never calls `decide`, so that a newer version of the rules
cannot change what an older one decided.

Opening a ledger for writing takes the next epoch. Before every segment, a writer checks that its
epoch is still the newest; an older one raises `Fenced` and stops. A late segment of an overtaken
writer is recognised by its epoch and left out; its events are handled again (`Ledger.orphans`).
"""

from __future__ import annotations

import gc
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from dpstream.services.coordinator.apply import apply
from dpstream.services.coordinator.ledger import snapshots
from dpstream.services.coordinator.ledger.snapshots import code_version
from dpstream.services.coordinator.state import State
from dpstream.shared.codec import AnyMessage
from dpstream.shared.errors import CorruptLedger, DigestMismatch, Fenced, NotFound, StoreError
from dpstream.shared.messages import CampaignFinished, CampaignPaused, Message
from dpstream.shared.ports import Store
from dpstream.shared.spec import Spec
from dpstream.shared.spec.errors import first_of
from dpstream.shared.values import campaign_uri

AHEAD = 8
"""Segments fetched in advance while one is applied."""

_GC_THRESHOLDS = gc.get_threshold()
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

    def dumps(self) -> bytes:
        return _SEGMENT.dump_json(self, by_alias=True)

    @staticmethod
    def loads(data: bytes) -> Segment:
        """Raises ValueError if `data` is not a segment."""
        return _SEGMENT.validate_json(data)


_SEGMENT = TypeAdapter(Segment)


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
    since_snapshot: int = 0
    """Entries since the newest snapshot."""
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Identifies the segments of this writer."""

    @staticmethod
    def open(store: Store, campaign: str) -> tuple[Ledger, State]:
        """Takes the next epoch and rebuilds the state. Raises NotFound if there is no such
        campaign, CorruptLedger naming a segment that cannot be read."""
        spec = Spec.model_validate_json(store.get(campaign_uri(campaign, "spec.json")))
        ledger = Ledger(store, campaign, take_epoch(store, campaign))
        state, done = _from_snapshot(store, campaign, State(spec=spec))
        valid, overtaken = _ranked(store, campaign, from_seq=max(1, done))
        stale = _fetched(store, campaign, overtaken)
        orphans = {entry.event.id: entry.event for segment in stale for entry in segment.entries}
        for segment in _fetched(store, campaign, valid):
            for entry in segment.entries:
                orphans.pop(entry.event.id, None)
            if segment.seq > done:
                state = replay(state, segment)
                ledger.since_snapshot += len(segment.entries)
            ledger.seq, ledger.last = segment.seq, segment
        ledger.orphans = tuple(orphans.values())
        return ledger, state

    def append(self, entries: Sequence[LedgerEntry]) -> Segment:
        """Writes the next segment; it is durable on return. Raises `Fenced` if a newer coordinator
        has taken over. After a `StoreError` the segment may have been written: call `recover`."""
        self.check()
        segment = Segment(self.seq + 1, self.epoch, self.nonce, tuple(entries))
        key = _segment_uri(self.campaign, segment.seq, self.epoch)
        data = segment.dumps()
        if not self.store.create(key, data):
            found = self.store.get(key)
            if found != data and _nonce(found) != self.nonce:
                raise Fenced(f"{self.campaign}: taken over by a newer coordinator")
            if found != data:
                raise StoreError(f"{key}: an earlier write of this process has arrived late")
        self._count_segment(segment)
        return segment

    def recover(self, state: State) -> State:
        """After a failed `append`, applies the segment to `state` if it was written after all."""
        key = _segment_uri(self.campaign, self.seq + 1, self.epoch)
        if not self.store.exists(key):
            return state
        segment = _decoded(key, self.store.get(key))
        self._count_segment(segment)
        return replay(state, segment)

    def _count_segment(self, segment: Segment) -> None:
        self.seq, self.last = segment.seq, segment
        self.since_snapshot += len(segment.entries)

    def check(self) -> None:
        """Raises `Fenced` if a newer coordinator has taken over."""
        if self.store.exists(_epoch_uri(self.campaign, self.epoch + 1)):
            raise Fenced(f"{self.campaign}: taken over by a newer coordinator")

    def snapshot(self, state: State) -> None:
        """Writes a snapshot of `state` if one is due."""
        if snapshots.is_due(state, self.since_snapshot):
            name = _name(self.seq, self.epoch)
            snapshots.write(self.store, self.campaign, name, self.seq, state)
            self.since_snapshot = 0


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


def read_segments(store: Store, campaign: str, after: int = 0) -> Iterator[Segment]:
    """Yields the valid segments with numbers above `after` in order; only a few are in memory at a
    time. Raises CorruptLedger if one is missing or cannot be read."""
    valid, _ = _ranked(store, campaign, from_seq=max(1, after))
    yield from _fetched(store, campaign, [number for number in valid if number[0] > after])


def _ranked(store: Store, campaign: str, from_seq: int = 1) -> tuple[list[Number], list[Number]]:
    """Numbers of the valid segments, in order, and of those that overtaken writers left behind.

    Of several segments with one number, the highest epoch is valid. Raises CorruptLedger if a
    number is missing.
    """
    by_seq: dict[int, list[int]] = {}
    folder = campaign_uri(campaign, "ledger", "")
    for key in store.list(folder, after=f"{folder}{from_seq:08d}"):
        seq, epoch = _numbers(key)
        by_seq.setdefault(seq, []).append(epoch)
    valid: list[Number] = []
    overtaken: list[Number] = []
    for seq in sorted(by_seq):
        *lower, highest = sorted(by_seq[seq])
        # A late write of an overtaken writer can be the only segment with its number, at the end
        # of the ledger. Its epoch is lower than that of the segment before.
        stale = bool(valid) and highest < valid[-1][1]
        overtaken += [(seq, epoch) for epoch in (*lower, *([highest] if stale else []))]
        valid += [] if stale else [(seq, highest)]
    for number, (seq, _) in enumerate(valid, start=from_seq):
        if seq != number:
            raise CorruptLedger(f"{campaign}: segment {number} of the ledger is missing")
    return valid, overtaken


def _fetched(store: Store, campaign: str, numbers: Iterable[Number]) -> Iterator[Segment]:
    """Yields segments in order and fetches the next few meanwhile, to hide the latency of the
    store."""
    with ThreadPoolExecutor(AHEAD) as pool, _no_full_collections():
        coming: deque[tuple[str, Future[bytes]]] = deque()
        for number in numbers:
            key = _segment_uri(campaign, *number)
            coming.append((key, pool.submit(store.get, key)))
            if len(coming) > AHEAD:
                yield _received(*coming.popleft())
        while coming:
            yield _received(*coming.popleft())


@contextmanager
def _no_full_collections() -> Iterator[None]:
    """Suspends collections of the oldest generation. Messages and states contain no cycles and stay
    alive; searching all of them repeatedly takes longer than applying the segments."""
    gc.set_threshold(*_GC_THRESHOLDS[:2], 1_000_000_000)
    try:
        yield
    finally:
        gc.set_threshold(*_GC_THRESHOLDS)


def _received(key: str, data: Future[bytes]) -> Segment:
    try:
        return _decoded(key, data.result())
    except DigestMismatch as error:
        raise CorruptLedger(str(error)) from error


def _decoded(key: str, data: bytes) -> Segment:
    try:
        return Segment.loads(data)
    except ValidationError as error:
        raise CorruptLedger(f"{key}: not a segment of a ledger: {first_of(error)}") from error


@dataclass
class LedgerReader:
    """Follows a ledger that a coordinator writes. `state` is the state after segment `seq`, the
    last one read."""

    store: Store
    campaign: str
    state: State
    seq: int = 0

    @staticmethod
    def begin(store: Store, campaign: str) -> LedgerReader:
        """A reader before the first segment. Raises NotFound if there is no such campaign."""
        spec = Spec.model_validate_json(store.get(campaign_uri(campaign, "spec.json")))
        return LedgerReader(store, campaign, State(spec=spec))

    @staticmethod
    def open(store: Store, campaign: str) -> LedgerReader:
        """A reader at the last segment; starts from the newest snapshot."""
        reader = LedgerReader.begin(store, campaign)
        reader.state, reader.seq = _from_snapshot(store, campaign, reader.state)
        reader.update()
        return reader

    def update(self) -> None:
        """Applies the segments written since the last call."""
        for _ in self.new_segments():
            pass

    def new_segments(self) -> Iterator[Segment]:
        """Yields the segments written since the last call; each is applied before it is yielded."""
        for segment in read_segments(self.store, self.campaign, after=self.seq):
            self.state, self.seq = replay(self.state, segment), segment.seq
            yield segment


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
    """Names of all campaigns in a store, and of those that have ended. Reads only the keys."""
    begun, ended = set[str](), set[str]()
    for key in store.list("campaigns/"):
        _, name, *rest = key.split("/")
        if rest == ["spec.json"]:
            begun.add(name)
        elif rest == ["finished.json"]:
            ended.add(name)
    return begun, ended


def verdict(store: Store, campaign: str) -> CampaignFinished | None:
    """The verdict on a campaign, without reading its ledger; None if it has not ended."""
    try:
        return CampaignFinished.model_validate_json(store.get(finished_uri(campaign)))
    except NotFound:
        return None


def take_epoch(store: Store, campaign: str) -> int:
    """Takes the next free epoch."""
    taken = store.list(campaign_uri(campaign, "epoch", ""))
    epoch = max((int(key.rsplit("/", 1)[1]) for key in taken), default=0) + 1
    while not store.create(_epoch_uri(campaign, epoch), uuid.uuid4().hex.encode()):
        epoch += 1
    return epoch


def finished_uri(campaign: str) -> str:
    return campaign_uri(campaign, "finished.json")


def _epoch_uri(campaign: str, epoch: int) -> str:
    return campaign_uri(campaign, "epoch", f"{epoch:06d}")


def _segment_uri(campaign: str, seq: int, epoch: int) -> str:
    return campaign_uri(campaign, "ledger", f"{_name(seq, epoch)}.json")


def _name(seq: int, epoch: int) -> str:
    """Name of a segment and of the snapshot after it."""
    return f"{seq:08d}-{epoch:06d}"


def _numbers(key: str) -> Number:
    """Number and epoch of a segment or snapshot, from its key."""
    try:
        seq, epoch = key.rsplit("/", 1)[1].partition(".")[0].split("-")
        return int(seq), int(epoch)
    except ValueError as error:
        raise CorruptLedger(f"{key}: not the name of a segment") from error


def _from_snapshot(store: Store, campaign: str, empty: State) -> tuple[State, int]:
    """The state of the newest snapshot after a valid segment, and the number of that segment."""

    def is_valid(key: str) -> bool:
        number = _numbers(key)
        return number in _ranked(store, campaign, from_seq=max(1, number[0] - 1))[0]

    found = snapshots.newest(store, campaign, is_valid)
    return (empty, 0) if found is None else (found.state, found.seq)
