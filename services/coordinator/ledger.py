"""One campaign's append-only ledger in the store: what was heard, and what was decided.

A segment is `campaigns/<c>/ledger/<seq>-<epoch>.json`, created once and never changed. Rebuilding
folds segments through `evolve` and never calls `decide`, so an upgrade does not rewrite history.
Whoever opens a ledger for writing takes the next epoch; an older writer finds out before its next
segment and stops.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version as package_version

from pydantic import ValidationError

from services.coordinator.evolve import evolve
from services.coordinator.state import State
from shared.codec import ADAPTER
from shared.errors import CorruptLedger, Fenced, NotFound, StoreError
from shared.messages import CampaignFinished, CampaignPaused, Message
from shared.ports import Store
from shared.spec import Spec
from shared.values import campaign_uri

SNAPSHOT_EVERY, TASKS_PER_SEGMENT = 100, 10
"""Segments between two snapshots: so many, or more in a large campaign, by its number of tasks, so
that what snapshots cost per segment stays the same."""


@dataclass(frozen=True)
class Entry:
    """One event heard and the decisions it led to."""

    heard: Message
    decided: tuple[Message, ...] = ()

    @property
    def unprocessable(self) -> bool:
        """Whether `decide` raised on the event: it left no trace in the state but the pause."""
        return any(isinstance(fact, CampaignPaused) and fact.trace for fact in self.decided)


@dataclass(frozen=True)
class Segment:
    seq: int
    epoch: int
    nonce: str
    entries: tuple[Entry, ...]

    def dumps(self) -> bytes:
        document = {
            "seq": self.seq,
            "epoch": self.epoch,
            "nonce": self.nonce,
            "code": code_version(),
            "entries": [
                {
                    "heard": entry.heard.model_dump(mode="json"),
                    "decided": [message.model_dump(mode="json") for message in entry.decided],
                }
                for entry in self.entries
            ],
        }
        return json.dumps(document, separators=(",", ":")).encode()

    @staticmethod
    def loads(data: bytes) -> Segment:
        """Raises ValueError or KeyError for what `dumps` has not written."""
        document = json.loads(data)
        entries = tuple(
            Entry(
                ADAPTER.validate_python(entry["heard"]),
                tuple(ADAPTER.validate_python(message) for message in entry["decided"]),
            )
            for entry in document["entries"]
        )
        return Segment(document["seq"], document["epoch"], document["nonce"], entries)


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
    snapshotted: int = 0
    """The last segment in a snapshot."""
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Of this writer: tells its own segments from those of another."""

    @staticmethod
    def open(store: Store, campaign: str) -> tuple[Ledger, State]:
        """Take the next epoch, and the state the ledger tells. Raises NotFound without the
        campaign, CorruptLedger naming the segment that cannot be read."""
        spec = Spec.model_validate_json(store.get(campaign_uri(campaign, "spec.json")))
        ledger = Ledger(store, campaign, take_epoch(store, campaign))
        state, done = _newest_snapshot(store, campaign, State(spec=spec))
        ledger.snapshotted = done
        segments, ledger.orphans = read_segments(store, campaign, after=done - 1)
        for segment in segments:
            if segment.seq > done:
                state = replay(state, segment)
        if segments:
            ledger.seq, ledger.last = segments[-1].seq, segments[-1]
        return ledger, state

    def append(self, entries: Sequence[Entry]) -> Segment:
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
        self.seq, self.last = segment.seq, segment
        return segment

    def recover(self, state: State) -> State:
        """After a failed `append`: `state` with the segment if it was written after all."""
        key = _segment_uri(self.campaign, self.seq + 1, self.epoch)
        if not self.store.exists(key):
            return state
        self.last = _read(self.store, self.campaign, self.seq + 1, self.epoch)
        self.seq = self.last.seq
        return replay(state, self.last)

    def check(self) -> None:
        """Raises `Fenced` when a newer coordinator has taken over."""
        if self.store.exists(_epoch_uri(self.campaign, self.epoch + 1)):
            raise Fenced(f"{self.campaign}: taken over by a newer coordinator")

    def snapshot(self, state: State) -> None:
        """Now and then, keep the state, so that opening the ledger stays quick."""
        rest = max(SNAPSHOT_EVERY, len(state.tasks) // TASKS_PER_SEGMENT)
        if self.seq - self.snapshotted >= rest:
            document = {
                "seq": self.seq,
                "code": code_version(),
                "state": state.model_dump(mode="json"),
            }
            key = campaign_uri(self.campaign, "snapshots", f"{self.seq:08d}-{self.epoch:06d}.json")
            self.store.create(key, json.dumps(document).encode())
            self.snapshotted = self.seq


def _nonce(data: bytes) -> object:
    try:
        return Segment.loads(data).nonce
    except (ValueError, KeyError, TypeError):
        return None


def replay(state: State, segment: Segment) -> State:
    """The state after a segment: facts are applied, nothing is decided again."""
    for entry in segment.entries:
        if not entry.unprocessable:
            state = evolve(state, entry.heard)
        for message in entry.decided:
            state = evolve(state, message)
    return state


def read_segments(
    store: Store, campaign: str, after: int = -1
) -> tuple[list[Segment], tuple[Message, ...]]:
    """Segments with numbers above `after` in order, the highest epoch's for each number; and the
    events that only overtaken siblings hold."""
    valid_keys, overtaken_keys = _ranked(store, campaign)
    valid = [_read(store, campaign, *key) for key in valid_keys if key[0] > after]
    overtaken = [_read(store, campaign, *key) for key in overtaken_keys if key[0] > after]
    known = {entry.heard.id for segment in valid for entry in segment.entries}
    orphans = [e.heard for s in overtaken for e in s.entries if e.heard.id not in known]
    return valid, tuple(orphans)


def _ranked(store: Store, campaign: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Number and epoch of the segments that count, in order, and of the overtaken ones. Raises
    CorruptLedger when one is missing."""
    by_seq: dict[int, list[int]] = {}
    for key in store.list(campaign_uri(campaign, "ledger") + "/"):
        seq, epoch = _numbers(key)
        by_seq.setdefault(seq, []).append(epoch)
    valid: list[tuple[int, int]] = []
    overtaken: list[tuple[int, int]] = []
    for seq in sorted(by_seq):
        *lower, highest = sorted(by_seq[seq])
        # A late write of an overtaken writer may stand alone at the end: its epoch gives it away.
        stale = bool(valid) and highest < valid[-1][1]
        overtaken += [(seq, epoch) for epoch in (*lower, *([highest] if stale else []))]
        valid += [] if stale else [(seq, highest)]
    for number, (seq, _) in enumerate(valid, start=1):
        if seq != number:
            raise CorruptLedger(f"{campaign}: segment {number} of the ledger is missing")
    return valid, overtaken


def _read(store: Store, campaign: str, seq: int, epoch: int) -> Segment:
    key = _segment_uri(campaign, seq, epoch)
    try:
        return Segment.loads(store.get(key))
    except (ValueError, KeyError, TypeError) as error:
        what = f"{error.error_count()} errors" if isinstance(error, ValidationError) else error
        raise CorruptLedger(f"{key}: not a segment of a ledger: {what}") from error


@dataclass
class Reading:
    """A ledger followed from outside while its coordinator writes it: `state` is what it told when
    it was last looked at, `seq` the last segment folded."""

    store: Store
    campaign: str
    state: State
    seq: int = 0

    @staticmethod
    def begin(store: Store, campaign: str) -> Reading:
        """Before the first segment (NotFound without the campaign)."""
        spec = Spec.model_validate_json(store.get(campaign_uri(campaign, "spec.json")))
        return Reading(store, campaign, State(spec=spec))

    @staticmethod
    def open(store: Store, campaign: str) -> Reading:
        """At the last segment, by way of the newest snapshot."""
        reading = Reading.begin(store, campaign)
        reading.state, reading.seq = _newest_snapshot(store, campaign, reading.state)
        reading.look()
        return reading

    def look(self) -> list[Segment]:
        """Fold the segments written since, and return them."""
        segments = read_segments(self.store, self.campaign, after=self.seq)[0]
        for segment in segments:
            self.state, self.seq = replay(self.state, segment), segment.seq
        return segments


def load_state(store: Store, campaign: str) -> State:
    """The state a ledger tells, read only (NotFound without the campaign)."""
    return Reading.open(store, campaign).state


def messages_of(segments: Iterable[Segment]) -> Iterator[Message]:
    """Every message, in order."""
    for segment in segments:
        for entry in segment.entries:
            yield entry.heard
            yield from entry.decided


def heard_and_decided(store: Store, campaign: str) -> Iterator[Message]:
    """Every message of a campaign's ledger, in order: for reports and questions."""
    return messages_of(read_segments(store, campaign)[0])


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


@cache
def code_version() -> str:
    return package_version("dpstream")


def finished_uri(campaign: str) -> str:
    return campaign_uri(campaign, "finished.json")


def _epoch_uri(campaign: str, epoch: int) -> str:
    return campaign_uri(campaign, "epoch", f"{epoch:06d}")


def _segment_uri(campaign: str, seq: int, epoch: int) -> str:
    return campaign_uri(campaign, "ledger", f"{seq:08d}-{epoch:06d}.json")


def _numbers(key: str) -> tuple[int, int]:
    """Number and epoch that the key of a segment or a snapshot begins with."""
    try:
        seq, epoch = key.rsplit("/", 1)[1].removesuffix(".json").split("-")
        return int(seq), int(epoch)
    except ValueError as error:
        raise CorruptLedger(f"{key}: not the name of a segment") from error


def _newest_snapshot(store: Store, campaign: str, empty: State) -> tuple[State, int]:
    """The newest snapshot that this code has made of segments that count."""
    valid = set(_ranked(store, campaign)[0])
    for key in sorted(store.list(campaign_uri(campaign, "snapshots") + "/"), reverse=True):
        if _numbers(key) not in valid:
            continue
        try:
            document = json.loads(store.get(key))
            if document["code"] == code_version():
                return State.model_validate(document["state"]), document["seq"]
        except (
            NotFound,
            ValueError,
            KeyError,
            TypeError,
        ):  # it saves time; the segments tell the same
            continue
    return empty, 0
