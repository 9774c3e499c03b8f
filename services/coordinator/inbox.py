"""What comes off the queues, as events. What cannot be read is kept where people can look at it,
and never blocks; what the broker gave up becomes a failure of its task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dpstream.services.coordinator.open_campaign import envelope
from dpstream.shared import messages as m
from dpstream.shared.codec import decode, decode_or_none, encode
from dpstream.shared.errors import NotFound
from dpstream.shared.logs import logger
from dpstream.shared.ports import Delivery, Store
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.store.dead_letters import bury, count_buried
from dpstream.shared.values import campaign_uri

log = logger()


@dataclass
class Inbox:
    store: Store
    clock: Callable[[], float]
    buried: int = 0
    """Bodies kept because they could not be decoded."""
    given_up: int = 0
    """Commands that no worker survived taking."""

    def count(self) -> None:
        """Take earlier coordinators' dead letters into account."""
        self.buried = count_buried(self.store)

    def read(self, delivery: Delivery) -> m.Message | None:
        """The event in a delivery, if there is one."""
        message = decode_or_none(delivery.body)
        if message is None:
            self.buried += bury(self.store, delivery.body)
        if isinstance(message, m.CampaignSubmitted):  # the bus brings it without its lists
            return self._in_full(message)
        if isinstance(message, m.StructuresProposed):  # rates go by a clock that is nobody's else
            return message.model_copy(update={"time": self.clock()})
        return self._given_up(message) if isinstance(message, m.Command) else message

    def _in_full(self, announced: m.CampaignSubmitted) -> m.Message | None:
        try:
            return self.submission(announced.campaign) or announced
        except ValueError as error:
            log.error("unreadable submission", campaign=announced.campaign, reason=str(error))
            return None

    def submission(self, campaign: str) -> m.Message | None:
        """The event that begins a campaign, in full; None where the store has none."""
        try:
            found: m.Message = decode(self.store.get(campaign_uri(campaign, "submitted.json")))
        except NotFound:
            return None
        return found

    def _given_up(self, command: m.Command) -> m.Message | None:
        """A command that the broker took back from one dying worker after the other: a failure of
        that attempt, unless somebody has claimed it after all."""
        if not self.store.exists(campaign_uri(command.campaign, "spec.json")):
            return None
        failed = m.TaskFailed(
            **envelope(command, "given up", self.clock()),
            permanent=False,
            reason="no worker survived taking it: the broker gave it up",
        )
        key = claim_uri(command.campaign, command.task, command.attempt)
        if self.store.create(key, encode(failed)):
            self.given_up += 1
            log.warning(failed.reason, campaign=command.campaign, task=command.task)
            return failed
        ours = failed.id.encode() in self.store.get(key)  # before a crash, or a lost reply
        return failed if ours else None
