"""Snapshots of the state, so that opening a ledger does not apply all of its segments.

A snapshot holds the state without the archive, and names the segments of the archive, which follow
one another: what ended before the snapshot before is not written again.

A snapshot is an optional shortcut. One that is missing, damaged or of another format or version of
the package is skipped, and the segments of the ledger are applied instead; so is one that names a
missing or damaged segment of the archive.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version as package_version
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter
from pydantic_core import from_json

from dpstream.services.coordinator.ledger import archive as archive_segments
from dpstream.services.coordinator.ledger.archive import COMPRESSION_LEVEL, Known
from dpstream.services.coordinator.ledger.chain import Link, segment_name
from dpstream.services.coordinator.records import NO_KEYS, replace
from dpstream.services.coordinator.state import Archive, State
from dpstream.shared.ports import Store
from dpstream.shared.values import campaign_uri

FORMAT = 12
"""Format of the state in a snapshot. Increase it whenever a field of the state is added, renamed or
removed."""
SNAPSHOT_EVERY, ENTRIES_PER_EVENT, ARCHIVED_PER_EVENT = 1000, 2, 128
"""Events between two snapshots: `SNAPSHOT_EVERY`; where the state is large, one per
`ENTRIES_PER_EVENT` tasks and frames in it, so that the cost of snapshots per event stays constant;
in a long campaign, one per `ARCHIVED_PER_EVENT` in the archive, so that it has few segments.
Whichever is most."""
SNAPSHOT_SEGMENTS = 1000
"""Segments of the ledger after which the length of the campaign no longer delays a snapshot: a
start reads each of them."""


@dataclass(frozen=True)
class Snapshot:
    """The state after segment `seq` by `epoch`; `code` is the version of the package that computed
    it, `overtaken` names the segments of overtaken writers by number and epoch."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(ser_json_inf_nan="strings")

    format: int
    seq: int
    epoch: int
    code: str
    state: State
    overtaken: tuple[tuple[int, int], ...]


_SNAPSHOT = TypeAdapter(Snapshot)


@cache
def code_version() -> str:
    return package_version("dpstream")


def is_due(state: State, events: int, segments: int) -> bool:
    """Whether a snapshot is due, so many events and segments after the last one."""
    entries = (len(state.tasks) + len(state.labels.frames)) // ENTRIES_PER_EVENT
    archived = len(state.archive) // ARCHIVED_PER_EVENT if segments < SNAPSHOT_SEGMENTS else 0
    return events >= max(SNAPSHOT_EVERY, entries, archived)


def write(
    store: Store,
    campaign: str,
    after: Link,
    epoch: int,
    state: State,
    overtaken: Sequence[tuple[int, int]] = (),
) -> Archive:
    """Writes a snapshot of the state `after` a segment, and the records of its archive as a segment
    of that under the `epoch` of the writer; returns the archive with their ids alone."""
    name = segment_name(after.seq, epoch)
    archive = archive_segments.write(store, campaign, name, state.archive)
    named = replace(archive, tasks=NO_KEYS, frames=NO_KEYS)
    kept = replace(state, archive=named)
    snapshot = Snapshot(FORMAT, after.seq, after.epoch, code_version(), kept, tuple(overtaken))
    data = gzip.compress(_SNAPSHOT.dump_json(snapshot), COMPRESSION_LEVEL, mtime=0)
    store.create(f"{_folder(campaign)}{segment_name(after.seq, after.epoch)}.json.gz", data)
    return archive


def newest(store: Store, campaign: str, is_valid: Callable[[str], bool]) -> Snapshot | None:
    """The newest readable snapshot of this version of the package whose key `is_valid`; None if
    there is none."""
    known = Known()
    for key in reversed(listed(store, campaign)):
        if is_valid(key) and (snapshot := read(store, key, known)) is not None:
            return snapshot
    return None


def listed(store: Store, campaign: str) -> list[str]:
    """The keys of all snapshots, oldest first."""
    archive = archive_segments.folder(campaign)
    return sorted(key for key in store.list(_folder(campaign)) if not key.startswith(archive))


def read(store: Store, key: str, known: Known) -> Snapshot | None:
    """A snapshot; None if it cannot be read or is not of this version of the package. `known`: ids
    in segments of the archive that were read before; those that are read now are added."""
    try:
        return check(store, key, known)
    except ValueError:
        return None


def check(store: Store, key: str, known: Known) -> Snapshot | None:
    """A snapshot; None if it is not of this version of the package. Raises ValueError if it is
    damaged, of whatever version it is, or if a segment of its archive is. `known`: as in `read`."""
    data = archive_segments.unpacked(partial(store.get, key))
    document = from_json(data)
    if (document.get("format"), document.get("code")) != (FORMAT, code_version()):
        return None
    snapshot = _SNAPSHOT.validate_json(data)
    archive = archive_segments.with_ids(store, snapshot.state.archive, known)
    return replace(snapshot, state=replace(snapshot.state, archive=archive))


def _folder(campaign: str) -> str:
    return campaign_uri(campaign, "snapshots", "")
