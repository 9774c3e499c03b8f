"""The segments of the archive: what views show of tasks that have ended and frames in a dataset.

A segment holds the records that came between two snapshots. It is created once, and the state names
it with its digest. Later snapshots name it as well, and need not hold its records.
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
from dpstream.shared.ports import Store
from dpstream.shared.runtime.context import fetch
from dpstream.shared.values import Ref, campaign_uri

COMPRESSION_LEVEL = 1
"""Of gzip: the fastest level, which takes less time than it saves in the transfer."""
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
    records = _RECORDS.dump_json(Records(archive.ended, archive.settled))
    data = gzip.compress(records, COMPRESSION_LEVEL, mtime=0)
    stored = Ref.to(f"{folder(campaign)}{name}.json.gz", data)
    store.create(stored.uri, data)
    counts = Counter(counted_as(task.kind, task.status) for task in archive.ended.values())
    segment = ArchiveSegment(stored, Map(counts), len(archive.settled))
    return replace(archive.ids, segments=(*archive.segments, segment))


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
