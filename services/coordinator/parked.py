"""Events that cannot be handled now: those of a damaged campaign, and messages of a newer version.

They are stored, acknowledged, and handled once their campaign can be opened and their kind is
known. Like every event, they may come twice and in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dpstream.services.coordinator.untrusted import OMITTED, completed, read_message
from dpstream.shared import messages as m
from dpstream.shared.codec import encode
from dpstream.shared.errors import DigestMismatch, NotFound
from dpstream.shared.logs import logger
from dpstream.shared.ports import Store
from dpstream.shared.values import Ref, campaign_uri

log = logger()

MOST = 10_000
"""Events kept for one campaign."""
OF_THE_MOMENT = (m.TaskClaimed, m.TaskHeartbeat)
"""Events that say nothing later."""


@dataclass
class ParkedEvents:
    store: Store
    _numbers: dict[str, int] = field(default_factory=dict)
    """How many are kept, by campaign."""

    def keep(self, campaign: str, events: Iterable[m.Message]) -> None:
        for event in events:
            if not isinstance(event, OF_THE_MOMENT):
                self._keep(campaign, event)

    def _keep(self, campaign: str, event: m.Message) -> None:
        if isinstance(event, m.CampaignAmended) and event.complete is not None:
            event = event.model_copy(update=OMITTED)  # the object has no limit
        try:
            body = encode(event)
        except ValueError as error:  # longer than the body that arrived: its numbers were shorter
            log.error("event lost: cannot be kept", campaign=campaign, reason=str(error))
        else:
            self.keep_body(campaign, body)

    def keep_body(self, campaign: str, body: bytes) -> None:
        folder = _folder(campaign)
        if campaign not in self._numbers:
            self._numbers[campaign] = sum(1 for _ in self.store.list(folder))
        if self._numbers[campaign] >= MOST:
            log.error(f"event lost: {MOST} are kept already", campaign=campaign, kept=folder)
        else:
            key = f"{folder}{Ref.to('body', body).sha256}.json"
            self._numbers[campaign] += self.store.create(key, body)

    def of(self, campaign: str) -> dict[str, m.Message]:
        """The events that this version knows, by key."""
        found = {key: self._read(key) for key in self.store.list(_folder(campaign))}
        return {key: event for key, event in found.items() if event is not None}

    def _read(self, key: str) -> m.Message | None:
        event = read_message(self.store, key)
        if not isinstance(event, m.CampaignAmended) or event.complete is None:
            return event
        try:
            return completed(self.store, event)
        except (ValueError, NotFound, DigestMismatch) as error:
            log.error("amendment ignored: cannot be completed", kept=key, reason=str(error))
            return None

    def forget(self, campaign: str, keys: Sequence[str]) -> None:
        """Deletes events that are in the ledger now."""
        for key in keys:
            self.store.delete(key)
        self._numbers.pop(campaign, None)


def _folder(campaign: str) -> str:
    return campaign_uri(campaign, "parked", "")
