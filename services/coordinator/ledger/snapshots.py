"""The state kept now and then, so that opening a ledger costs what the state is large, and not what
its history is long."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from functools import cache
from importlib.metadata import version as package_version

from pydantic import TypeAdapter

from dpstream.services.coordinator.state import Known, State
from dpstream.shared.errors import NotFound
from dpstream.shared.ports import Store
from dpstream.shared.values import campaign_uri

SNAPSHOT_EVERY, ENTRIES_PER_EVENT = 1000, 2
"""Events between two snapshots: so many, or in a large campaign one for so many of its tasks and
frames. Then what snapshots cost per event stays the same, and so does what a restart costs for each
of them: reading it, and folding half an event again."""
QUICKLY = 1
"""Level of compression: it costs less time than it saves the store."""


class Snapshot(Known):
    """The state after segment `seq`, by this version of the code."""

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
        SNAPSHOT_EVERY, (len(state.tasks) + len(state.frames)) // ENTRIES_PER_EVENT
    )


def keep(store: Store, campaign: str, name: str, seq: int, state: State) -> None:
    snapshot = Snapshot(seq=seq, code=code_version(), state=state)
    data = gzip.compress(_SNAPSHOT.dump_json(snapshot), QUICKLY, mtime=0)
    store.create(f"{_folder(campaign)}{name}.json.gz", data)


def newest(store: Store, campaign: str, counts: Callable[[str], bool]) -> Snapshot | None:
    """The newest one made by this code that `counts`, by its name. One that cannot be read is
    passed over: it saves time, and the segments tell the same."""
    for key in sorted(store.list(_folder(campaign)), reverse=True):
        if counts(key):
            try:
                snapshot = _SNAPSHOT.validate_json(gzip.decompress(store.get(key)))
            except (NotFound, ValueError, OSError, EOFError, zlib.error):
                continue
            if snapshot.code == code_version():
                return snapshot
    return None


def _folder(campaign: str) -> str:
    return campaign_uri(campaign, "snapshots", "")
