"""The fields that every event begins with by which the coordinator itself speaks of an attempt."""

from __future__ import annotations

from typing import Any

from shared import messages as m
from shared.values import stable_id


def envelope(of: m.Command | m.TaskCancelled, what: str, now: float) -> dict[str, Any]:
    """`Event(**envelope(…), …)`: `what` became of it. Said once more it has the same id."""
    return {
        "id": stable_id(what, of.task, of.attempt),
        "campaign": of.campaign,
        "time": now,
        "cause": of.id,
        "task": of.task,
        "attempt": of.attempt,
    }
