"""The connection of the command line to a deployment: everything is read from its store, and every
request goes over its broker."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import ValidationError

from dpstream.services.coordinator.ledger.ledger import LedgerReader, read_messages
from dpstream.services.coordinator.views.campaign import Status
from dpstream.services.coordinator.views.committees import Committees
from dpstream.services.coordinator.views.overview import (
    CampaignOverview,
    has_taken_in,
    is_over,
    overview,
)
from dpstream.services.coordinator.views.pace import Pace
from dpstream.shared.bus.batch import take
from dpstream.shared.codec import decode, encode, topic_of
from dpstream.shared.connect import connect_bus, connect_store
from dpstream.shared.errors import BusError, SpecError, errors_at
from dpstream.shared.messages import Message, TaskHeartbeat
from dpstream.shared.ports import Bus, Delivery, Outgoing, Store, Subscription
from dpstream.shared.settings import BrokerSettings, StoreSettings, bucket_and_prefix, read_settings

R = TypeVar("R", bound=Message)

CONNECT_SECONDS = 15.0
"""Seconds within which a broker or a store has to answer."""
ANSWER_SECONDS = 15.0
"""Seconds within which a coordinator writes down what it has received."""
UPDATE_SECONDS = 0.5
"""Seconds between two updates."""
REREAD_SECONDS = 10.0
"""Seconds after which a ledger is read again without an event on the bus."""


def is_folder(where: str) -> bool:
    """Whether a store is a folder. Raises `SpecError` where the name is that of no store."""
    with errors_at(f"--store: {where!r}", ValueError):
        return bucket_and_prefix(where) is None


def open_store(where: str) -> Store:
    settings = read_settings(StoreSettings, store=where)
    with _within_limit() as stopping:
        return connect_store(settings, stopping)


def open_bus(broker: str | None) -> Bus:
    """Raises `SpecError` without a URL."""
    if broker is None:
        raise SpecError(
            "--broker: missing; give amqp://user:password@host:port, or set DPSTREAM_BROKER"
        )
    settings = read_settings(BrokerSettings, broker=broker)
    with _within_limit() as stopping:
        return connect_bus(settings, stopping)


@contextmanager
def _within_limit() -> Iterator[threading.Event]:
    """An event that is set after `CONNECT_SECONDS`."""
    stopping = threading.Event()
    timer = threading.Timer(CONNECT_SECONDS, stopping.set)
    timer.daemon = True
    timer.start()
    try:
        yield stopping
    finally:
        timer.cancel()


# -------------------------------------------------------------------------------- requests


def request(kind: type[R], campaign: str, **fields: object) -> R:
    """A person's request about a campaign."""
    envelope = {"id": str(uuid.uuid4()), "campaign": campaign, "time": time.time()}
    return kind.model_validate({**envelope, **fields})


def publish(bus: Bus, message: Message) -> None:
    bus.publish([Outgoing(encode(message), topic=topic_of(message))])


def once_taken_in(
    store: Store, message: Message, wait: float, meanwhile: Callable[[], None] = lambda: None
) -> CampaignOverview | None:
    """Where the campaign stands once the ledger holds `message`, or once it is finished; None if
    neither happens within `wait` seconds. `meanwhile` is called between two updates."""
    reading, until = LedgerReader.open(store, message.campaign), time.monotonic() + wait
    while not has_taken_in(reading.state, message):
        if time.monotonic() > until:
            return None
        time.sleep(UPDATE_SECONDS)
        meanwhile()
        reading.update()
    return overview(reading.state)


# -------------------------------------------------------------------------------- following


@dataclass
class FollowedCampaign:
    """A campaign that others work on. Its state comes from the ledger, which is read again after
    an event on the bus, or at intervals without a bus; the progress comes from heartbeats."""

    reading: LedgerReader
    committees: Committees
    bus: Bus | None
    pace: Pace = field(default_factory=Pace)
    progress: dict[str, str] = field(default_factory=dict)
    _subscription: Subscription | None = None
    _looked: float = 0.0
    _news: bool = True

    @staticmethod
    def open(store: Store, campaign: str, bus: Bus | None) -> FollowedCampaign:
        """At the end of its ledger (NotFound without the campaign)."""
        committees, pace = Committees(), Pace()
        for message in read_messages(store, campaign):
            committees.add(message)
            pace.add(message)
        return FollowedCampaign(LedgerReader.open(store, campaign), committees, bus, pace)

    @property
    def status(self) -> Status:
        return Status.of(self.reading.state, self.committees, self.progress)

    def goes_on(self) -> bool:
        """Wait for news and take them in; False when nothing more happens by itself."""
        if is_over(self.reading.state):
            return False
        self._listen()
        since = time.monotonic() - self._looked
        if since > (UPDATE_SECONDS if self._news else REREAD_SECONDS):
            self._news, self._looked = self.bus is None, time.monotonic()
            self.reading.update()
        return True

    def _listen(self) -> None:
        if self.bus is None:
            time.sleep(UPDATE_SECONDS)
            return
        try:
            for delivery in take(self._subscribed(self.bus), 100, UPDATE_SECONDS):
                self._receive(delivery)
        except BusError:
            self._subscription = None
            time.sleep(UPDATE_SECONDS)

    def _subscribed(self, bus: Bus) -> Subscription:
        if self._subscription is None:
            queue = f"watch-{uuid.uuid4()}"
            bus.bind(queue, f"{self.reading.campaign}.*")
            self._subscription = bus.consume(queue, prefetch=100)
        return self._subscription

    def _receive(self, delivery: Delivery) -> None:
        with suppress(ValidationError):  # the coordinator's to keep
            message = decode(delivery.body)
            if isinstance(message, TaskHeartbeat):
                self.progress[message.task] = message.progress
            else:
                self._news = True
        delivery.ack()
