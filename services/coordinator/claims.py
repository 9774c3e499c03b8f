"""Whether an event about an attempt comes from the worker that has the attempt.

A claim is an object that only one worker can create. It names the user of that worker at the broker
and the proof of a secret that accompanies the worker's events. Claims of earlier releases name
neither; their attempts' events count without both. A claim is read once: what happens to its object
later has no effect while the coordinator runs.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from dpstream.services.coordinator.untrusted import read_message
from dpstream.shared import messages as m
from dpstream.shared.ports import Delivery, Store
from dpstream.shared.proof import digest, proves
from dpstream.shared.runtime.worker import claim_uri

REMEMBERED = 10_000
"""Claims in memory."""


@dataclass
class Claims:
    store: Store
    users: bool
    """Whether the broker states who has published a message."""
    _read: OrderedDict[str, m.TaskClaimed] = field(default_factory=OrderedDict)
    """By key, the claim used last at the end."""

    def objection(self, event: m.Message | None, delivery: Delivery) -> str | None:
        """Why an event about an attempt does not come from the worker that has it, or None. A claim
        itself may come from anyone who has read it: a worker that loses a claim repeats the
        winner's. Who declines a task has no claim."""
        if not isinstance(event, m.TaskEvent) or isinstance(event, m.TaskDeclined):
            return None
        key = claim_uri(event.campaign, event.task, event.attempt)
        claim = self._claim(key)
        if isinstance(event, m.TaskClaimed):
            return None if event == claim else "is not the claim of its attempt"
        if claim is None:
            lost = _is_lost(event) and self.store.exists(key)
            return None if lost else "is about an attempt that no worker has claimed"
        if self.users and claim.user is not None and delivery.user != claim.user:
            return f"is about an attempt that user {claim.user} has claimed"
        if not proves(digest(delivery.secret or ""), claim):
            return "lacks the secret of its attempt"
        return None

    def _claim(self, key: str) -> m.TaskClaimed | None:
        """A worker's claim; None if there is none, if the coordinator has it, or if it is
        damaged."""
        claim = self._read.get(key) or read_message(self.store, key)
        if not isinstance(claim, m.TaskClaimed):
            return None
        self._read[key] = claim
        self._read.move_to_end(key)
        if len(self._read) > REMEMBERED:
            self._read.popitem(last=False)
        return claim


def _is_lost(event: m.TaskEvent) -> bool:
    """Whether the event may report that a claim cannot be read: a failure that another attempt may
    follow."""
    return isinstance(event, m.TaskFailed) and not event.permanent
