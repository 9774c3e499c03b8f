"""Turns deliveries from the queues into events.

A body that cannot be decoded, is not what its topic says, or is about an attempt that another
worker has claimed, is stored under `deadletters/` for inspection and dropped, so that it never
blocks the queue. A command from the dead-letter queue,
which the broker moved there after many redeliveries, becomes a failure of its attempt. A submission
arrives without its lists, which are read from the store.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from dpstream.services.coordinator.claims import Claims
from dpstream.services.coordinator.ledger.ledger import verdict
from dpstream.services.coordinator.open_campaign import header
from dpstream.services.coordinator.parked import ParkedEvents
from dpstream.services.coordinator.untrusted import completed
from dpstream.shared import messages as m
from dpstream.shared.bus.topology import OFFERED
from dpstream.shared.codec import (
    decode,
    decode_leniently,
    encode,
    is_newer,
    is_published_under,
    kind_of,
)
from dpstream.shared.errors import DigestMismatch, NotFound
from dpstream.shared.logs import logger
from dpstream.shared.ports import Delivery, Store
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.store.dead_letters import DeadLetter, DeadLetters
from dpstream.shared.values import ANONYMOUS, campaign_uri, is_key

log = logger()


@dataclass
class Inbox:
    store: Store
    clock: Callable[[], float]
    parked: ParkedEvents
    given_up: int = 0
    """Commands that the broker moved to the dead letters."""
    users: bool = False
    """Whether the broker states who has published a message."""
    _rejected: list[DeadLetter] = field(default_factory=list)
    """Dead letters that are not stored yet."""

    def __post_init__(self) -> None:
        self.dead_letters = DeadLetters(self.store)
        self.claims = Claims(self.store, self.users)

    def read_all(self, deliveries: Sequence[Delivery]) -> list[tuple[Delivery, m.Message | None]]:
        """Each delivery with its event, or None; stores the dead letters among them. Raises
        StoreError."""
        self._rejected = []
        read = [(delivery, self.read(delivery)) for delivery in deliveries]
        self.dead_letters.bury(self._rejected)
        return read

    def read(self, delivery: Delivery) -> m.Message | None:
        """The event in a delivery; None if there is none, if its publisher may not publish it, or
        if it is of a newer version and was kept."""
        message: m.Message | None = decode_leniently(delivery.body)
        newer = self._newer(delivery) if message is None else None
        reason = None if newer else _objection(message, delivery.topic)
        reason = reason or self.claims.objection(newer or message, delivery)
        if reason is not None:
            self._rejected.append(DeadLetter(delivery.body, reason, delivery.topic, delivery.user))
            return None
        if newer is not None:
            self.parked.keep_body(newer.campaign, delivery.body)
            return None
        if isinstance(message, m.CampaignSubmitted):  # published without its lists
            return self._in_full(message)
        if isinstance(message, m.CampaignAmended):  # likewise
            return self._amendment(message, delivery)
        if isinstance(message, m.StructuresProposed):  # limits use this clock and this user
            user = delivery.user or ANONYMOUS if self.users else None
            return message.model_copy(update={"time": self.clock(), "user": user})
        if isinstance(message, m.Command):
            return self._undelivered(message, delivery.dropped)
        return message

    def _newer(self, delivery: Delivery) -> m.Event | None:
        """What this version knows of an event of a newer one: its campaign and its attempt, if it
        is about one. None if the body is something else."""
        campaign, _, kind = (delivery.topic or "").partition(".")
        known = is_key(campaign) and self.store.exists(campaign_uri(campaign, "spec.json"))
        if not (known and is_newer(delivery.body, campaign, kind)) or kind in OFFERED:
            return None  # a generator proposes again
        if verdict(self.store, campaign) is not None:
            return None
        document = json.loads(delivery.body)
        fields = {"id": "newer", "campaign": campaign, "time": 0.0}
        if "task" not in document:
            return m.Event(**fields)
        try:
            return m.TaskEvent(**fields, task=document["task"], attempt=document.get("attempt"))
        except ValidationError:
            return None

    def _in_full(self, announced: m.CampaignSubmitted) -> m.Message | None:
        try:
            return self.submission(announced.campaign) or announced
        except (ValueError, DigestMismatch) as error:
            log.error(
                "submitted.json cannot be read; submission ignored",
                campaign=announced.campaign,
                reason=str(error),
            )
            return None

    def _amendment(self, announced: m.CampaignAmended, delivery: Delivery) -> m.Message | None:
        """The complete amendment, by the user who has published it; a dead letter if the object
        that it names is not the one that was stored for it."""
        author = (delivery.user if self.users else None) or announced.author
        try:
            full = completed(self.store, announced)
        except (ValueError, NotFound, DigestMismatch) as error:
            reason = f"names no amendment: {error}"
            self._rejected.append(DeadLetter(delivery.body, reason, delivery.topic, delivery.user))
            return None
        return full.model_copy(update={"author": author})

    def submission(self, campaign: str) -> m.Message | None:
        """The complete event that begins a campaign; None if the store has none."""
        try:
            event: m.Message = decode(self.store.get(campaign_uri(campaign, "submitted.json")))
        except NotFound:
            return None
        return event

    def _undelivered(self, command: m.Command, dropped: bool) -> m.Message | None:
        if not dropped:
            return self._given_up(command)
        log.warning(
            "the broker dropped a task; it is published again when it is due",
            campaign=command.campaign,
            task=command.task,
        )
        return None

    def _given_up(self, command: m.Command) -> m.Message | None:
        """Turns a command that the broker gave up into a failure of its attempt, unless a worker
        has claimed it."""
        if not self.store.exists(campaign_uri(command.campaign, "spec.json")):
            return None
        failed = m.TaskFailed(
            **header(command, "given up", self.clock()),
            permanent=False,
            reason="no worker claimed this task (each that received it died or returned it), so "
            "the broker gave it up",
        )
        key = claim_uri(command.campaign, command.task, command.attempt)
        if self.store.create(key, encode(failed)):
            self.given_up += 1
            log.warning(failed.reason, campaign=command.campaign, task=command.task)
            return failed
        ours = failed.id.encode() in self.store.get(key)  # written before a crash or a lost reply
        return failed if ours else None


def _objection(message: m.Message | None, topic: str | None) -> str | None:
    """Why a message of any publisher is not taken in, or None."""
    if message is None:
        return "cannot be decoded"
    if topic is not None and not is_published_under(message, topic):
        return f"was published under {topic!r} and is a {kind_of(message)} of {message.campaign}"
    if isinstance(message, m.Event) and message.PUBLISHERS == m.LEDGER_ONLY:
        return f"is a {kind_of(message)}, which only the coordinator itself writes"
    return None
