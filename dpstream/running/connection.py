"""A deployment as seen from outside: its store, from which everything is read, and its broker,
through which everything is said."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import ValidationError

from dpstream.services.coordinator.inbox import take
from dpstream.services.coordinator.ledger.ledger import LedgerReader
from dpstream.services.coordinator.state import State
from dpstream.services.coordinator.views.overview import is_over
from dpstream.shared.codec import decode, encode, topic_of
from dpstream.shared.connect import connect_bus, connect_store
from dpstream.shared.errors import BusError, SpecError
from dpstream.shared.messages import Message, TaskHeartbeat
from dpstream.shared.ports import Bus, Delivery, Outgoing, Store, Subscription
from dpstream.shared.settings import BrokerSettings, StoreSettings, bucket_and_prefix, read_settings

Word = TypeVar("Word", bound=Message)

REACHED = 15.0
"""Seconds within which a broker or a store has to answer."""
HEARD = 15.0
"""Seconds within which a coordinator that is there has written down what it heard."""
LOOK = 0.5
"""Seconds between two looks."""
LONG = 10.0
"""Seconds after which a ledger is looked at though nobody said anything."""


def is_folder(where: str) -> bool:
    """Whether a store is a folder. Raises `SpecError` for what is no store at all."""
    try:
        return bucket_and_prefix(where) is None
    except ValueError as error:
        raise SpecError(f"--store: {where!r}: {error}") from error


def open_store(where: str) -> Store:
    settings = read_settings(StoreSettings, store=where)
    with _soon() as stopping:
        return connect_store(settings, stopping)


def open_bus(broker: str | None) -> Bus:
    """Raises `SpecError` without a URL."""
    if broker is None:
        raise SpecError(
            "--broker: missing; give amqp://user:password@host:port, or set DPSTREAM_BROKER"
        )
    settings = read_settings(BrokerSettings, broker=broker)
    with _soon() as stopping:
        return connect_bus(settings, stopping)


@contextmanager
def _soon() -> Iterator[threading.Event]:
    """Set when it has taken too long."""
    stopping = threading.Event()
    timer = threading.Timer(REACHED, stopping.set)
    timer.daemon = True
    timer.start()
    try:
        yield stopping
    finally:
        timer.cancel()


# ------------------------------------------------------------------------------ what people say


def word(kind: type[Word], campaign: str, **fields: object) -> Word:
    """What a person says of a campaign, now."""
    envelope = {"id": str(uuid.uuid4()), "campaign": campaign, "time": time.time()}
    return kind.model_validate({**envelope, **fields})


def say_it(bus: Bus, message: Message) -> None:
    bus.publish([Outgoing(encode(message), topic=topic_of(message))])


def heard(
    store: Store, message: Message, wait: float, meanwhile: Callable[[], None] = lambda: None
) -> State | None:
    """The state once the ledger holds `message`, or the campaign is over; None if that has not
    come about within `wait` seconds. `meanwhile` is called between looks."""
    reading, until = LedgerReader.open(store, message.campaign), time.monotonic() + wait
    while not _is_known(reading.state, message):
        if time.monotonic() > until:
            return None
        time.sleep(LOOK)
        meanwhile()
        reading.look()
    return reading.state


def _is_known(state: State, message: Message) -> bool:
    if state.finished is not None or message.id in state.handled:
        return True
    return state.submitted is not None and state.submitted.id == message.id


# ------------------------------------------------------------------------------ what goes on


@dataclass
class FollowedCampaign:
    """A campaign while others work on it: facts from its ledger, read again when something was
    said on the bus, or now and then where there is none; progress from heartbeats."""

    reading: LedgerReader
    bus: Bus | None
    progress: dict[str, str] = field(default_factory=dict)
    _subscription: Subscription | None = None
    _looked: float = 0.0
    _news: bool = True

    @property
    def state(self) -> State:
        return self.reading.state

    def goes_on(self) -> bool:
        """Wait for news and take them in; False when nothing more happens by itself."""
        if is_over(self.state):
            return False
        self._listen()
        since = time.monotonic() - self._looked
        if since > (LOOK if self._news else LONG):
            self._news, self._looked = self.bus is None, time.monotonic()
            self.reading.look()
        return True

    def _listen(self) -> None:
        if self.bus is None:
            time.sleep(LOOK)
            return
        try:
            for delivery in take(self._subscribed(self.bus), 100, LOOK):
                self._hear(delivery)
        except BusError:
            self._subscription = None
            time.sleep(LOOK)

    def _subscribed(self, bus: Bus) -> Subscription:
        if self._subscription is None:
            queue = f"watch-{uuid.uuid4()}"
            bus.bind(queue, f"{self.reading.campaign}.*")
            self._subscription = bus.consume(queue, prefetch=100)
        return self._subscription

    def _hear(self, delivery: Delivery) -> None:
        with suppress(ValidationError):  # not ours to judge
            message = decode(delivery.body)
            if isinstance(message, TaskHeartbeat):
                self.progress[message.task] = message.progress
            else:
                self._news = True
        delivery.ack()
