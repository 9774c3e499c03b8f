"""One campaign's append-only ledger in the store: what was heard, and what was decided.

A segment is `campaigns/<c>/ledger/<seq>-<epoch>.json`, created once and never changed. Rebuilding
folds segments through `apply` and never calls `decide`, so an upgrade does not rewrite history.
Whoever opens a ledger for writing takes the next epoch; an older writer finds out before its next
segment and stops.
"""

from __future__ import annotations

import gc
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from dpstream.services.coordinator.apply import apply
from dpstream.services.coordinator.ledger import snapshots
from dpstream.services.coordinator.ledger.snapshots import code_version
from dpstream.services.coordinator.state import State
from dpstream.shared.codec import AnyMessage
from dpstream.shared.errors import CorruptLedger, Fenced, NotFound, StoreError
from dpstream.shared.messages import CampaignFinished, CampaignPaused, Message
from dpstream.shared.ports import Store
from dpstream.shared.spec import Spec
from dpstream.shared.spec.errors import first_of
from dpstream.shared.values import campaign_uri

AHEAD = 8
"""Segments on their way from the store while one is folded."""

_COLLECTED = gc.get_threshold()
Number = tuple[int, int]
"""Of a segment: its place in the ledger, and the epoch of its writer."""


@dataclass(frozen=True)
class LedgerEntry:
    """One event heard and the decisions it led to."""

    heard: AnyMessage
    decided: tuple[AnyMessage, ...] = ()

    @property
    def unprocessable(self) -> bool:
        """Whether `decide` raised on the event: it left no trace in the state but the pause."""
        return any(isinstance(fact, CampaignPaused) and fact.trace for fact in self.decided)


@pydantic_dataclass(frozen=True, config=ConfigDict(ser_json_inf_nan="strings"))
class Segment:
    seq: int
    epoch: int
    nonce: str
    entries: tuple[LedgerEntry, ...]
    code: str = field(default_factory=code_version)

    def dumps(self) -> bytes:
        return _SEGMENT.dump_json(self)

    @staticmethod
    def loads(data: bytes) -> Segment:
        """Raises ValueError for what `dumps` has not written."""
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
    """Events that only an overtaken writer had folded: to be heard like redeliveries."""
    unkept: int = 0
    """Events since the newest snapshot."""
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Of this writer: tells its own segments from those of another."""

    @staticmethod
    def open(store: Store, campaign: str) -> tuple[Ledger, State]:
        """Take the next epoch, and the state the ledger tells. Raises NotFound without the
        campaign, CorruptLedger naming the segment that cannot be read."""
        spec = Spec.model_validate_json(store.get(campaign_uri(campaign, "spec.json")))
        ledger = Ledger(store, campaign, take_epoch(store, campaign))
        state, done = _kept(store, campaign, State(spec=spec))
        valid, overtaken = _ranked(store, campaign, from_seq=max(1, done))
        left = _fetched(store, campaign, overtaken)
        orphans = {entry.heard.id: entry.heard for segment in left for entry in segment.entries}
        for segment in _fetched(store, campaign, valid):
            for entry in segment.entries:
                orphans.pop(entry.heard.id, None)
            if segment.seq > done:
                state = replay(state, segment)
                ledger.unkept += len(segment.entries)
            ledger.seq, ledger.last = segment.seq, segment
        ledger.orphans = tuple(orphans.values())
        return ledger, state

    def append(self, entries: Sequence[LedgerEntry]) -> Segment:
        """Write the next segment; durable on return. Raises `Fenced` when a newer coordinator
        has taken over; after a `StoreError`, `recover` tells what was written."""
        self.check()
        segment = Segment(self.seq + 1, self.epoch, self.nonce, tuple(entries))
        key = _segment_uri(self.campaign, segment.seq, self.epoch)
        data = segment.dumps()
        if not self.store.create(key, data):
            found = self.store.get(key)
            if found != data and _nonce(found) != self.nonce:
                raise Fenced(f"{key} was written by another process")
            if found != data:
                raise StoreError(f"{key}: an earlier write of ours has arrived late")
        self._is_written(segment)
        return segment

    def recover(self, state: State) -> State:
        """After a failed `append`: `state` with the segment if it was written after all."""
        key = _segment_uri(self.campaign, self.seq + 1, self.epoch)
        if not self.store.exists(key):
            return state
        segment = _decoded(key, self.store.get(key))
        self._is_written(segment)
        return replay(state, segment)

    def _is_written(self, segment: Segment) -> None:
        self.seq, self.last = segment.seq, segment
        self.unkept += len(segment.entries)

    def check(self) -> None:
        """Raises `Fenced` when a newer coordinator has taken over."""
        if self.store.exists(_epoch_uri(self.campaign, self.epoch + 1)):
            raise Fenced(f"{self.campaign}: taken over by a newer coordinator")

    def snapshot(self, state: State) -> None:
        """Now and then, keep the state, so that opening the ledger stays quick."""
        if snapshots.is_due(state, self.unkept):
            name = _name(self.seq, self.epoch)
            snapshots.keep(self.store, self.campaign, name, self.seq, state)
            self.unkept = 0


def _nonce(data: bytes) -> object:
    try:
        return Segment.loads(data).nonce
    except ValueError:
        return None


def replay(state: State, segment: Segment) -> State:
    """The state after a segment: facts are applied, nothing is decided again."""
    for entry in segment.entries:
        if not entry.unprocessable:
            state = apply(state, entry.heard)
        for message in entry.decided:
            state = apply(state, message)
    return state


def read_segments(store: Store, campaign: str, after: int = 0) -> Iterator[Segment]:
    """Segments with numbers above `after` in order, the highest epoch's for each number; only a
    few of them are in memory at a time. Raises CorruptLedger."""
    valid, _ = _ranked(store, campaign, from_seq=max(1, after))
    yield from _fetched(store, campaign, [number for number in valid if number[0] > after])


def _ranked(store: Store, campaign: str, from_seq: int = 1) -> tuple[list[Number], list[Number]]:
    """Numbers of the segments that count, in order, and of the overtaken ones. Raises
    CorruptLedger when one is missing."""
    by_seq: dict[int, list[int]] = {}
    folder = campaign_uri(campaign, "ledger", "")
    for key in store.list(folder, after=f"{folder}{from_seq:08d}"):
        seq, epoch = _numbers(key)
        by_seq.setdefault(seq, []).append(epoch)
    valid: list[Number] = []
    overtaken: list[Number] = []
    for seq in sorted(by_seq):
        *lower, highest = sorted(by_seq[seq])
        # A late write of an overtaken writer may stand alone at the end: its epoch gives it away.
        stale = bool(valid) and highest < valid[-1][1]
        overtaken += [(seq, epoch) for epoch in (*lower, *([highest] if stale else []))]
        valid += [] if stale else [(seq, highest)]
    for number, (seq, _) in enumerate(valid, start=from_seq):
        if seq != number:
            raise CorruptLedger(f"{campaign}: segment {number} of the ledger is missing")
    return valid, overtaken


def _fetched(store: Store, campaign: str, numbers: Iterable[Number]) -> Iterator[Segment]:
    """In order, the next few on their way meanwhile: a store may be far away."""
    with ThreadPoolExecutor(AHEAD) as pool, _no_full_collections():
        coming: deque[tuple[str, Future[bytes]]] = deque()
        for number in numbers:
            key = _segment_uri(campaign, *number)
            coming.append((key, pool.submit(store.get, key)))
            if len(coming) > AHEAD:
                yield _arrived(*coming.popleft())
        while coming:
            yield _arrived(*coming.popleft())


@contextmanager
def _no_full_collections() -> Iterator[None]:
    """Messages and states hold no cycles, and they are kept: to search all of them for garbage
    again and again takes longer than to fold them. What is young is searched as ever."""
    gc.set_threshold(*_COLLECTED[:2], 1_000_000_000)
    try:
        yield
    finally:
        gc.set_threshold(*_COLLECTED)


def _arrived(key: str, data: Future[bytes]) -> Segment:
    return _decoded(key, data.result())


def _decoded(key: str, data: bytes) -> Segment:
    try:
        return Segment.loads(data)
    except ValidationError as error:
        raise CorruptLedger(f"{key}: not a segment of a ledger: {first_of(error)}") from error


@dataclass
class LedgerReader:
    """A ledger followed from outside while its coordinator writes it: `state` is what it told when
    it was last looked at, `seq` the last segment folded."""

    store: Store
    campaign: str
    state: State
    seq: int = 0

    @staticmethod
    def begin(store: Store, campaign: str) -> LedgerReader:
        """Before the first segment (NotFound without the campaign)."""
        spec = Spec.model_validate_json(store.get(campaign_uri(campaign, "spec.json")))
        return LedgerReader(store, campaign, State(spec=spec))

    @staticmethod
    def open(store: Store, campaign: str) -> LedgerReader:
        """At the last segment, by way of the newest snapshot."""
        reading = LedgerReader.begin(store, campaign)
        reading.state, reading.seq = _kept(store, campaign, reading.state)
        reading.look()
        return reading

    def look(self) -> None:
        """Fold the segments written since."""
        for _ in self.news():
            pass

    def news(self) -> Iterator[Segment]:
        """The segments written since, each folded before it is handed out."""
        for segment in read_segments(self.store, self.campaign, after=self.seq):
            self.state, self.seq = replay(self.state, segment), segment.seq
            yield segment


def load_state(store: Store, campaign: str) -> State:
    """The state a ledger tells, read only (NotFound without the campaign)."""
    return LedgerReader.open(store, campaign).state


def messages_of(segments: Iterable[Segment]) -> Iterator[Message]:
    """Every message, in order."""
    for segment in segments:
        for entry in segment.entries:
            yield entry.heard
            yield from entry.decided


def heard_and_decided(store: Store, campaign: str) -> Iterator[Message]:
    """Every message of a campaign's ledger, in order: for reports and questions."""
    return messages_of(read_segments(store, campaign))


def campaigns(store: Store) -> list[str]:
    """Names of all campaigns in a store."""
    return sorted(begun_and_ended(store)[0])


def begun_and_ended(store: Store) -> tuple[set[str], set[str]]:
    """Names of the campaigns in a store, and of those that have ended, as far as a look at the
    keys can tell."""
    begun, ended = set[str](), set[str]()
    for key in store.list("campaigns/"):
        _, name, *rest = key.split("/")
        if rest == ["spec.json"]:
            begun.add(name)
        elif rest == ["finished.json"]:
            ended.add(name)
    return begun, ended


def verdict(store: Store, campaign: str) -> CampaignFinished | None:
    """A campaign's last word, without reading its ledger; None while it goes on."""
    try:
        return CampaignFinished.model_validate_json(store.get(finished_uri(campaign)))
    except NotFound:
        return None


def take_epoch(store: Store, campaign: str) -> int:
    """The first epoch nobody has taken, now ours."""
    taken = [
        int(key.rsplit("/", 1)[1]) for key in store.list(campaign_uri(campaign, "epoch") + "/")
    ]
    epoch = max(taken, default=0) + 1
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
    """Of a segment, and of the snapshot after it."""
    return f"{seq:08d}-{epoch:06d}"


def _numbers(key: str) -> Number:
    """Number and epoch that the key of a segment or a snapshot begins with."""
    try:
        seq, epoch = key.rsplit("/", 1)[1].partition(".")[0].split("-")
        return int(seq), int(epoch)
    except ValueError as error:
        raise CorruptLedger(f"{key}: not the name of a segment") from error


def _kept(store: Store, campaign: str, empty: State) -> tuple[State, int]:
    """The state of the newest snapshot after a segment that counts, and that segment's number."""

    def counts(key: str) -> bool:
        number = _numbers(key)
        return number in _ranked(store, campaign, from_seq=max(1, number[0] - 1))[0]

    found = snapshots.newest(store, campaign, counts)
    return (empty, 0) if found is None else (found.state, found.seq)
