"""Examines a whole ledger. A reader stops at the first damage; an examination finds all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from pydantic import BaseModel

from dpstream.services.coordinator.ledger import archive as archive_segments
from dpstream.services.coordinator.ledger import snapshots
from dpstream.services.coordinator.ledger.archive import Known
from dpstream.services.coordinator.ledger.chain import Link, check_link, heads, segment_uri
from dpstream.services.coordinator.ledger.ledger import (
    AHEAD,
    LedgerReader,
    Number,
    messages_of,
    number_in,
    numbers_of,
    read_segment,
)
from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.state import EndedTask, SettledFrame
from dpstream.shared.errors import CorruptLedger
from dpstream.shared.messages import CampaignSubmitted, ManifestFrozen
from dpstream.shared.ports import Store
from dpstream.shared.values import Ref

Step = Callable[[str], object]
"""Called after each step of a long piece of work, with a few words about it."""


@dataclass(frozen=True)
class Damage:
    """An object that is missing, cannot be read, or differs from what was written."""

    key: str
    why: str
    sha256: str = ""
    """Of what was written; empty: not known."""

    def __str__(self) -> str:
        return f"{self.key}: {self.why}"


class Frozen(NamedTuple):
    """A manifest in the ledger."""

    seq: int
    body: bytes


@dataclass(frozen=True)
class _Read:
    """What is kept of a segment that was read."""

    link: Link
    follows: Link | None
    refs: dict[str, Ref]
    manifests: dict[str, bytes]
    submitted: CampaignSubmitted | None


@dataclass
class Examination:
    """A ledger, as far as it could be read. Numbers are those of segments."""

    valid: list[Number] = field(default_factory=list)
    """The chain, oldest first, also where segments are damaged or missing."""
    overtaken: list[Number] = field(default_factory=list)
    damage: dict[Number, Damage] = field(default_factory=dict)
    chained_from: int = 1
    """The first segment that the next one names, with all after it."""
    refs: dict[str, Ref] = field(default_factory=dict)
    """Every object that the valid segments refer to, by key."""
    manifests: dict[str, Frozen] = field(default_factory=dict)
    """Objects whose content the ledger holds, by key."""
    submitted: CampaignSubmitted | None = None

    @property
    def chain(self) -> str:
        length = f"{len(self.valid)} segments"
        if 1 < self.chained_from == len(self.valid):
            return f"{length}, not chained: release 0.1.0 wrote the last one"
        return f"{length}, chained from segment {self.chained_from} on"


def examine(store: Store, campaign: str, step: Step = lambda words: None) -> Examination:
    """Examines the ledger, and calls `step` after every segment. Raises CorruptLedger for an object
    among segments or heads whose name is that of none."""
    written: dict[Number, set[str]] = {}
    for head in heads(store, campaign):  # before the segments, of which a coordinator may add more
        written.setdefault((head.seq, head.epoch), set()).add(head.sha256)
    numbers = numbers_of(store, campaign)
    found, read = Examination(), dict[Number, _Read]()
    for number, segment in _read_all(store, campaign, numbers):
        if isinstance(segment, Damage):
            found.damage[number] = segment
        else:
            read[number] = segment
        step(f"segment {number[0]}")
    known = {*numbers, *written}
    number = max(known, key=lambda number: (number[1], number[0]), default=(0, 0))
    highest = dict(sorted(known))
    while number[0]:
        _judge(found, campaign, number, read.get(number), written)
        found.valid.append(number)
        sound = None if number in found.damage else read[number]
        number = _before(number, sound, highest)
    found.valid.reverse()
    found.overtaken = sorted(known - set(found.valid))
    for number in reversed(found.overtaken):
        _judge(found, campaign, number, read.get(number), written)
    for number in found.valid:
        if number not in found.damage:
            found.refs |= read[number].refs
            bodies = read[number].manifests.items()
            found.manifests |= {uri: Frozen(number[0], body) for uri, body in bodies}
            found.submitted = found.submitted or read[number].submitted
            if read[number].follows is None:
                found.chained_from = number[0]
    return found


def _read_all(
    store: Store, campaign: str, numbers: Iterable[Number]
) -> Iterator[tuple[Number, _Read | Damage]]:
    remaining = iter(numbers)
    with ThreadPoolExecutor(AHEAD) as pool:
        while some := list(islice(remaining, 8 * AHEAD)):
            yield from zip(some, pool.map(partial(_read, store, campaign), some), strict=True)


def _read(store: Store, campaign: str, number: Number) -> _Read | Damage:
    try:
        segment, link = read_segment(store, campaign, number)
        check_link(segment.follows, None, segment.seq, segment.code)
    except CorruptLedger as error:
        key = segment_uri(campaign, *number)
        return Damage(key, str(error).removeprefix(f"{key}: "))
    messages = list(messages_of([segment]))
    frozen = [each for each in messages if isinstance(each, ManifestFrozen)]
    return _Read(
        link,
        segment.follows,
        {ref.uri: ref for message in messages for ref in refs_in(message)},
        {each.manifest.uri: each.body.encode() for each in frozen},
        next((each for each in messages if isinstance(each, CampaignSubmitted)), None),
    )


def _judge(
    found: Examination,
    campaign: str,
    number: Number,
    segment: _Read | None,
    written: dict[Number, set[str]],
) -> None:
    """Compares a segment with what was written, and takes in which one it follows."""
    digests = written.get(number, set())
    known = next(iter(digests), "")
    key = segment_uri(campaign, *number)
    if number in found.damage:
        found.damage[number] = Damage(key, found.damage[number].why, known)
    elif segment is None:
        found.damage[number] = Damage(key, "missing", known)
    elif digests and segment.link.sha256 not in digests:
        found.damage[number] = Damage(key, "the content differs from what was written", known)
    elif segment.follows is not None:
        follows = (segment.follows.seq, segment.follows.epoch)
        written.setdefault(follows, set()).add(segment.follows.sha256)


def _before(number: Number, segment: _Read | None, highest: dict[int, int]) -> Number:
    """The number of the segment before; where the link to it is lost, that with the highest
    epoch."""
    if segment is not None and segment.follows is not None:
        return segment.follows.seq, segment.follows.epoch
    seq = number[0] - 1
    return seq, highest.get(seq, number[1])


def refs_in(value: Any) -> Iterator[Ref]:
    """Every reference in a message."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, BaseModel):
        for _, inner in value:
            yield from refs_in(inner)
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from refs_in(inner)
    elif isinstance(value, dict):
        yield from refs_in(tuple(value.values()))


def damaged_snapshots(store: Store, campaign: str) -> Iterator[Damage]:
    """Snapshots that cannot be read, or that name a segment of the archive that cannot. Those of
    other formats and versions are none of them."""
    known = Known()
    for key in snapshots.listed(store, campaign):
        try:
            snapshots.check(store, key, known)
        except ValueError as error:
            yield Damage(key, f"cannot be read: {error}")


def differing_snapshots(store: Store, campaign: str) -> Iterator[Damage]:
    """Snapshots of this version whose state, or a segment of whose archive, is not that to which
    the segments of the ledger lead. Raises CorruptLedger if the ledger is damaged."""
    keys = {number_in(key): key for key in snapshots.listed(store, campaign)}
    reader, known, compared = LedgerReader.begin(store, campaign), Known(), set[str]()
    tasks, frames = dict[str, EndedTask](), dict[str, SettledFrame]()
    for segment in reader.new_segments():
        key = keys.get((segment.seq, segment.epoch))
        snapshot = None if key is None else snapshots.read(store, key, known)
        if key is None or snapshot is None:
            continue
        archive = reader.state.archive
        tasks |= archive.ended
        frames |= archive.settled
        reader.state = replace(reader.state, archive=archive.ids)
        if snapshot.state.dumps() != reader.state.dumps():
            yield Damage(key, "differs from the state that the segments lead to")
        for each in snapshot.state.archive.segments:
            if each.stored.uri not in compared:
                compared.add(each.stored.uri)
                records = archive_segments.read(store, each)
                if not _is_part(records.tasks, tasks) or not _is_part(records.frames, frames):
                    yield Damage(key, f"{each.stored.uri} differs from what the segments lead to")


def _is_part(some: Mapping[str, object], all_of_them: Mapping[str, object]) -> bool:
    return all(all_of_them.get(key) == value for key, value in some.items())
