"""Snapshots of the state: opening a ledger costs what the state is large, and not what its history
is long."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version as package_version
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter

from dpstream.services.coordinator.state import State
from dpstream.shared.errors import NotFound
from dpstream.shared.ports import Store
from dpstream.shared.values import campaign_uri

FORMAT = 2
"""Of the state in a snapshot. It is raised when a field of the state is added, renamed or removed;
release 0.1.0 wrote none."""
SNAPSHOT_EVERY, ENTRIES_PER_EVENT = 1000, 2
"""Events between two snapshots: so many, or in a large campaign one for so many of its tasks and
frames. Then what snapshots cost per event stays the same, and so does what a restart costs for each
of them: reading it, and folding half an event again."""
QUICKLY = 1
"""Level of compression: it costs less time than it saves the store."""


@dataclass(frozen=True)
class Snapshot:
    """The state after segment `seq`; `code` is the version of the package that folded it."""

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
    """Whether the state is to be kept, `events` after the last time."""
    return events >= max(
        SNAPSHOT_EVERY, (len(state.tasks) + len(state.labels.frames)) // ENTRIES_PER_EVENT
    )


def keep(store: Store, campaign: str, name: str, seq: int, state: State) -> None:
    snapshot = Snapshot(FORMAT, seq, code_version(), state)
    data = gzip.compress(_SNAPSHOT.dump_json(snapshot), QUICKLY, mtime=0)
    store.create(f"{_folder(campaign)}{name}.json.gz", data)


def newest(store: Store, campaign: str, counts: Callable[[str], bool]) -> Snapshot | None:
    """The newest one made by this code that `counts`, by its name. One that cannot be read is
    passed over: snapshots only save time, the segments lead to the same state."""
    for key in sorted(store.list(_folder(campaign)), reverse=True):
        if counts(key):
            try:
                snapshot = _SNAPSHOT.validate_json(gzip.decompress(store.get(key)))
            except (NotFound, ValueError, OSError, EOFError, zlib.error):
                continue
            if (snapshot.format, snapshot.code) == (FORMAT, code_version()):
                return snapshot
    return None


def _folder(campaign: str) -> str:
    return campaign_uri(campaign, "snapshots", "")
