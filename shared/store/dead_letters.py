"""Messages that cannot be decoded: kept where people can look at them, so that none blocks a
queue."""

from __future__ import annotations

from dpstream.shared.logs import logger
from dpstream.shared.ports import Store
from dpstream.shared.values import DEADLETTER_PREFIX, Ref

log = logger()


def bury(store: Store, body: bytes) -> bool:
    """Keep `body` in the store under its digest. False if it is there already."""
    ref = Ref.to("body", body)
    is_new = store.create(f"{DEADLETTER_PREFIX}{ref.sha256}", body)
    log.warning("undecodable message buried", sha256=ref.sha256, bytes=len(body))
    return is_new


def count_buried(store: Store) -> int:
    """Messages buried in the store so far."""
    return sum(1 for _ in store.list(DEADLETTER_PREFIX))
