"""Dead letters: messages that cannot be decoded, or that are not what their topic says.

They are stored as objects, where an operator can inspect them, and removed from their queue, so
that they block nothing.
"""

from __future__ import annotations

from dpstream.shared.logs import logger
from dpstream.shared.ports import Store
from dpstream.shared.values import DEADLETTER_PREFIX, Ref

log = logger()


def bury(
    store: Store, body: bytes, reason: str = "cannot be decoded", user: str | None = None
) -> bool:
    """Store `body` under its digest; the log names the publisher's `user` where it is known. False
    if it is stored already."""
    ref = Ref.to("body", body)
    is_new = store.create(f"{DEADLETTER_PREFIX}{ref.sha256}", body)
    log.warning(
        f"message {reason}; stored under {DEADLETTER_PREFIX}",
        user=user,
        sha256=ref.sha256,
        bytes=len(body),
    )
    return is_new


def count_buried(store: Store) -> int:
    """Number of dead letters in the store."""
    return sum(1 for _ in store.list(DEADLETTER_PREFIX))
