"""Dead letters: messages that cannot be decoded, or that are not what their topic says.

They are removed from their queue, so that they block nothing, and stored where an operator can
inspect them: those of one batch as one object of JSON lines. A flood of them costs the coordinator
few writes, and the store a bounded number of bytes.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from dpstream.shared.logs import logger
from dpstream.shared.ports import Store
from dpstream.shared.values import DEADLETTER_PREFIX

log = logger()

MOST_OBJECTS = 1_000
"""Objects in the store beyond which the coordinator stores no more; it counts and logs only."""
MOST_BYTES = 16 * 1024
"""Bytes of a body that are stored."""

NUMBER = re.compile(r"\.(\d+)\.jsonl$")


@dataclass(frozen=True)
class DeadLetter:
    """A message's body, and why it is not used. `user`: the publisher, where the broker says so."""

    body: bytes
    reason: str = "cannot be decoded"
    topic: str | None = None
    user: str | None = None

    def line(self) -> str:
        """One line of JSON, with as much of the body as is stored, in base64."""
        return json.dumps(
            {
                "reason": self.reason,
                "topic": self.topic,
                "user": self.user,
                "bytes": len(self.body),
                "sha256": sha256(self.body).hexdigest(),
                "body": base64.b64encode(self.body[:MOST_BYTES]).decode(),
            }
        )


class DeadLetters:
    """The dead letters of a deployment, as its coordinator counts and stores them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._objects = 0
        self.count = 0

    def take_over(self) -> None:
        """Counts what earlier coordinators stored."""
        keys = list(self._store.list(DEADLETTER_PREFIX))
        self._objects, self.count = len(keys), sum(map(_letters_in, keys))

    def bury(self, letters: Sequence[DeadLetter]) -> None:
        """Stores and counts the dead letters of one batch. Raises StoreError."""
        if self._objects >= MOST_OBJECTS:
            self.count += len(letters)
            _report(letters, f"not stored: {DEADLETTER_PREFIX} holds {self._objects} objects")
        elif letters and bury(self._store, letters):
            self._objects += 1
            self.count += len(letters)


def bury(store: Store, letters: Sequence[DeadLetter]) -> bool:
    """Store the dead letters of one batch as one object. False if it is stored already. Raises
    StoreError."""
    data = "".join(f"{letter.line()}\n" for letter in letters).encode()
    key = f"{DEADLETTER_PREFIX}{sha256(data).hexdigest()}.{len(letters)}.jsonl"
    is_new = store.create(key, data)
    _report(letters, f"stored as {key}")
    return is_new


def count_buried(store: Store) -> int:
    """Number of dead letters in the store."""
    return sum(map(_letters_in, store.list(DEADLETTER_PREFIX)))


def _report(letters: Sequence[DeadLetter], where: str) -> None:
    """Log one line for each kind of dead letter and each publisher."""
    for (reason, user), number in Counter((each.reason, each.user) for each in letters).items():
        log.warning(f"message {reason}; {where}", user=user, messages=number)


def _letters_in(key: str) -> int:
    """Number of dead letters in an object. Earlier releases stored each as one."""
    match = NUMBER.search(key)
    return 1 if match is None else int(match[1])
