"""The segments of the archive: what views show of tasks that have ended and frames in a dataset.

A segment holds the records that came between two snapshots. It is created once, and the state names
it with its digest. Later snapshots name it as well, and need not hold its records. After a while
segments are merged, so that a start, which reads all of them, reads few objects; earlier snapshots
still name the parts.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from immutables import Map
from pydantic import TypeAdapter
from pydantic_core import from_json

from dpstream.services.coordinator.records import KeySet, Table, replace
from dpstream.services.coordinator.state import (
    Archive,
    ArchiveSegment,
    EndedTask,
    SettledFrame,
    counted_as,
)
from dpstream.shared.errors import DigestMismatch, NotFound
from dpstream.shared.logs import logger
from dpstream.shared.ports import Store
from dpstream.shared.runtime.context import fetch
from dpstream.shared.values import Ref, campaign_uri

log = logger()
COMPRESSION_LEVEL = 1
"""Of gzip: the fastest level, which takes less time than it saves in the transfer."""
MERGED = 16
"""Segments that are merged to one."""
AT_ONCE = 8
"""Segments read at once."""
Known = dict[str, tuple[KeySet, KeySet] | ValueError]
"""Ids of tasks and frames in segments that were read, by the key of the segment; or why it cannot
be."""


@dataclass(frozen=True)
class Records:
    tasks: Table[EndedTask] = Map()
    frames: Table[SettledFrame] = Map()
    """By frame key."""


_RECORDS = TypeAdapter(Records)


def folder(campaign: str) -> str:
    return campaign_uri(campaign, "snapshots", "archive", "")


def write(store: Store, campaign: str, name: str, archive: Archive) -> Archive:
    """Writes a segment with the records of the archive, if it has any; returns the archive with
    their ids alone."""
    if not archive.ended and not archive.settled:
        return archive
    key = f"{folder(campaign)}{name}"
    segment = _write(store, f"{key}.json.gz", Records(archive.ended, archive.settled))
    segments = _merged(store, f"{key}-merged.json.gz", (*archive.segments, segment))
    return replace(archive.ids, segments=segments)


def _write(store: Store, key: str, records: Records) -> ArchiveSegment:
    data = gzip.compress(_RECORDS.dump_json(records), COMPRESSION_LEVEL, mtime=0)
    stored = Ref.to(key, data)
    store.create(stored.uri, data)
    counts = Counter(counted_as(task.kind, task.status) for task in records.tasks.values())
    return ArchiveSegment(stored, Map(counts), len(records.frames))


def _merged(
    store: Store, key: str, segments: tuple[ArchiveSegment, ...]
) -> tuple[ArchiveSegment, ...]:
    """The segments, of which those that are not merged yet are merged if they are enough and can be
    read."""
    first = sum(segment.is_merged for segment in segments)
    if len(segments) - first < MERGED:
        return segments
    try:
        some = [read(store, segment) for segment in segments[first:]]
    except ValueError as error:
        log.warning("segments of the archive not merged", key=key, reason=str(error))
        return segments
    tasks, frames = Map[str, EndedTask](), Map[str, SettledFrame]()
    for records in some:
        tasks, frames = tasks.update(records.tasks), frames.update(records.frames)
    merged = replace(_write(store, key, Records(tasks, frames)), is_merged=True)
    return (*segments[:first], merged)


def read(store: Store, segment: ArchiveSegment) -> Records:
    """The records of a segment. Raises ValueError if it is missing or not the one that was
    written."""
    return _RECORDS.validate_json(unpacked(partial(fetch, store, segment.stored)))


def with_ids(store: Store, archive: Archive, known: Known) -> Archive:
    """The archive of a snapshot, with the ids in its segments; those that are not `known` yet are
    read and added. Raises ValueError for a segment that is missing or not the one that was
    written."""
    new = [each for each in archive.segments if each.stored.uri not in known]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        known |= pool.map(partial(_ids, store), new)
    tasks, frames = list[KeySet](), list[KeySet]()
    for segment in archive.segments:
        ids = known[segment.stored.uri]
        if isinstance(ids, ValueError):
            raise ids
        tasks.append(ids[0])
        frames.append(ids[1])
    return replace(archive, tasks=KeySet.union(tasks), frames=KeySet.union(frames))


def _ids(store: Store, segment: ArchiveSegment) -> tuple[str, tuple[KeySet, KeySet] | ValueError]:
    try:
        records = from_json(unpacked(partial(fetch, store, segment.stored)))
    except ValueError as error:
        return segment.stored.uri, error
    return segment.stored.uri, (KeySet.of(records["tasks"]), KeySet.of(records["frames"]))


def unpacked(fetched: Callable[[], bytes]) -> bytes:
    """The content of a compressed object. Raises ValueError if it is missing or damaged."""
    try:
        return gzip.decompress(fetched())
    except (NotFound, DigestMismatch, OSError, EOFError, zlib.error) as error:
        raise ValueError(str(error)) from error
