"""Snapshots of the state: the cost of opening a ledger depends on the size of the state, not on the
length of its history.

A snapshot is an optional shortcut. One that is missing, damaged or of another format or version of
the package is skipped, and the segments are applied instead.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version as package_version
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter

from dpstream.services.coordinator.state import State
from dpstream.shared.errors import DigestMismatch, NotFound
from dpstream.shared.ports import Store
from dpstream.shared.values import campaign_uri

FORMAT = 6
"""Format of the state in a snapshot. Increase it whenever a field of the state is added, renamed or
removed."""
SNAPSHOT_EVERY, ENTRIES_PER_EVENT = 1000, 2
"""Events between two snapshots: `SNAPSHOT_EVERY` or, in a large campaign, one per
`ENTRIES_PER_EVENT` tasks and frames, whichever is more. The cost of snapshots per event then stays
constant as the campaign grows."""
COMPRESSION_LEVEL = 1
"""Of gzip: the fastest level, which takes less time than it saves in the transfer."""


@dataclass(frozen=True)
class Snapshot:
    """The state after segment `seq`; `code` is the version of the package that computed it."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(ser_json_inf_nan="strings")

    format: int
    seq: int
    code: str
    state: State


_SNAPSHOT = TypeAdapter(Snapshot)


@cache
def code_version() -> str:
    return package_version("dpstream")


def is_due(state: State, events: int) -> bool:
    """Whether a snapshot is due, `events` after the last one."""
    entries = len(state.tasks) + len(state.labels.frames)
    return events >= max(SNAPSHOT_EVERY, entries // ENTRIES_PER_EVENT)


def write(store: Store, campaign: str, name: str, seq: int, state: State) -> None:
    snapshot = Snapshot(FORMAT, seq, code_version(), state)
    data = gzip.compress(_SNAPSHOT.dump_json(snapshot), COMPRESSION_LEVEL, mtime=0)
    store.create(f"{_folder(campaign)}{name}.json.gz", data)


def newest(store: Store, campaign: str, is_valid: Callable[[str], bool]) -> Snapshot | None:
    """The newest readable snapshot of this version of the package whose key `is_valid`; None if
    there is none."""
    for key in reversed(listed(store, campaign)):
        if is_valid(key) and (snapshot := read(store, key)) is not None:
            return snapshot
    return None


def listed(store: Store, campaign: str) -> list[str]:
    """The keys of all snapshots, oldest first."""
    return sorted(store.list(_folder(campaign)))


def read(store: Store, key: str) -> Snapshot | None:
    """A snapshot; None if it cannot be read or is not of this version of the package."""
    try:
        snapshot = _SNAPSHOT.validate_json(_unpacked(store, key))
    except ValueError:
        return None
    return snapshot if (snapshot.format, snapshot.code) == (FORMAT, code_version()) else None


def check(store: Store, key: str) -> None:
    """Raises ValueError for a snapshot that is damaged, of whatever version it is."""
    data = _unpacked(store, key)
    document = json.loads(data)
    if (document.get("format"), document.get("code")) == (FORMAT, code_version()):
        _SNAPSHOT.validate_json(data)


def _unpacked(store: Store, key: str) -> bytes:
    """Raises ValueError if there is no such archive."""
    try:
        return gzip.decompress(store.get(key))
    except (NotFound, DigestMismatch, OSError, EOFError, zlib.error) as error:
        raise ValueError(str(error)) from error


def _folder(campaign: str) -> str:
    return campaign_uri(campaign, "snapshots", "")
