"""Reads messages that are stored as objects. Workers write claims, and damage happens, so that
nothing in them may be relied upon."""

from __future__ import annotations

from dpstream.shared.codec import MAX_BODY, decode_leniently
from dpstream.shared.errors import DigestMismatch, NotFound
from dpstream.shared.messages import Message
from dpstream.shared.ports import Store


def read_message(store: Store, key: str) -> Message | None:
    """The message under `key`: of a claim a worker's task-claimed, or an event of the coordinator,
    which then owns the attempt. None if there is none or if it cannot be read."""
    try:
        message: Message | None = decode_leniently(store.get(key, most=MAX_BODY))
    except (NotFound, DigestMismatch):
        return None
    return message
