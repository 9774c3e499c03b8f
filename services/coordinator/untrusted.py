"""Reads messages that are stored as objects. Workers write claims, and damage happens, so that
nothing in them may be relied upon."""

from __future__ import annotations

from typing import Any

from dpstream.shared import messages as m
from dpstream.shared.codec import MAX_BODY, decode, decode_leniently
from dpstream.shared.errors import DigestMismatch, NotFound
from dpstream.shared.messages import Message
from dpstream.shared.ports import Store
from dpstream.shared.runtime.context import fetch
from dpstream.shared.values import campaign_uri


def read_message(store: Store, key: str) -> Message | None:
    """The message under `key`: of a claim a worker's task-claimed, or an event of the coordinator,
    which then owns the attempt. None if there is none or if it cannot be read."""
    try:
        message: Message | None = decode_leniently(store.get(key, most=MAX_BODY))
    except (NotFound, DigestMismatch):
        return None
    return message


OMITTED: dict[str, Any] = {"spec": {}, "systems": {}, "atoms": {}, "frames": ()}
"""What an amendment on the bus omits."""


def completed(store: Store, announced: m.CampaignAmended) -> m.CampaignAmended:
    """The complete amendment that a published one names. Raises ValueError, NotFound or
    DigestMismatch if there is none."""
    ref, folder = announced.complete, campaign_uri(announced.campaign, "inputs", "")
    if ref is None or not ref.uri.startswith(folder):
        raise ValueError(f"the complete message must be an object under {folder}")
    full = decode(fetch(store, ref))
    if not isinstance(full, m.CampaignAmended):
        raise ValueError(f"{ref.uri} is another message")
    full = full.model_copy(update={"complete": ref, "author": announced.author})
    if full.model_copy(update=OMITTED) != announced:
        raise ValueError(f"{ref.uri} is another message")
    return full
