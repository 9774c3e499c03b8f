"""A consumer of one RabbitMQ queue.

Deliveries arrive on the I/O thread; callers take and settle them on any other thread. An idle
subscription is renewed every `SILENCE` seconds.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dpstream.shared.bus.rabbit_channel import Channel, fulfil, nothing
from dpstream.shared.errors import BusError
from dpstream.shared.logs import logger

log = logger()

SECRET = "dpstream-secret"
"""The header with the secret of a message."""
DEATH, DROPPED = "x-first-death-reason", ("expired", "maxlen")
"""The header of a dead letter, and its values that no consumer is to blame for."""
SILENCE = 30.0
"""Seconds without a delivery after which the consumer subscribes again, in case the broker lost
it."""


@dataclass(frozen=True, eq=False)
class RabbitDelivery:
    """A message delivered by a subscription. Settling it twice, or after its channel was lost, has
    no effect."""

    body: bytes
    redelivered: bool
    topic: str | None
    user: str | None
    secret: str | None = field(repr=False)
    dropped: bool
    tag: int
    subscription: RabbitSubscription

    def ack(self) -> None:
        self.subscription.settle(self.tag, put_back=False)

    def reject(self) -> None:
        self.subscription.settle(self.tag, put_back=True)


class RabbitSubscription:
    """One consumer on its own channel, which it keeps until all its deliveries are settled.

    A quorum queue that is deleted and declared again at once keeps its consumers, but RabbitMQ
    (3.10.8) silently loses the deliveries to them. An idle consumer therefore subscribes again on a
    new channel every `SILENCE` seconds.
    """

    def __init__(
        self,
        channel: Channel,
        queue: str,
        prefetch: int,
        limit: int,
        cut: bool,
        events: Collection[str],
        users: bool,
        release: Callable[[Channel], None],
        left: Callable[[], None],
        another: Callable[[], Channel] | None,
    ) -> None:
        """`limit`: bytes; a longer body becomes a dead letter, or is `cut` to one byte more, so
        that it cannot fill the memory. `events`: full names of the exchanges of events. `users`:
        whether the broker checks the `user_id` of messages. `release` returns the channel to the
        pool (I/O thread); `left` is called after `cancel`; `another` opens a channel to subscribe
        again, None for a queue that is deleted with its consumer."""
        self.queue, self._prefetch, self._events = queue, prefetch, events
        self._limit, self._cut, self._users = limit, cut, users
        self._release, self._left, self._another = release, left, another
        self._changed = threading.Condition()
        self._waiting: deque[RabbitDelivery] = deque()
        self._unsettled: set[int] = set()  # delivery tags, including those waiting
        self._open = True
        self._consuming = True  # as seen by the I/O thread
        self._tag = ""
        self._subscribe(channel)

    def _subscribe(self, channel: Channel) -> None:
        self._channel, self._last_delivery = channel, time.monotonic()
        channel.on_lost, channel.on_cancelled = self._lost, self._ended
        channel.ask(self._begin)

    def _begin(self, consuming: Future[Any]) -> None:
        self._channel.raw.basic_qos(prefetch_count=self._prefetch)
        self._tag = self._channel.raw.basic_consume(
            self.queue, self._arrived, callback=lambda frame: fulfil(consuming, frame)
        )

    @property
    def open(self) -> bool:
        return self._open

    def next(self, timeout: float | None = None) -> RabbitDelivery | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._open, timeout)
            if self._open and self._waiting:
                self._last_delivery = time.monotonic()
                return self._waiting.popleft()
        if self._another is not None and time.monotonic() - self._last_delivery > SILENCE:
            self._renew(self._another)
        return None

    def settle(self, tag: int, put_back: bool) -> None:
        with self._changed:
            if tag not in self._unsettled:
                return
            self._unsettled.discard(tag)
        self._channel.connection.post(lambda: self._settle(tag, put_back))

    def cancel(self) -> None:
        with self._changed:
            if not self._open:
                return
            self._open = False
            full = len(self._unsettled) >= self._prefetch and not self._waiting
            self._changed.notify_all()
        if full:  # nothing more can arrive: the cancellation reaches the broker before any settling
            self._channel.connection.post(lambda: self._cancel(Future()))
        else:
            with suppress(BusError):  # lost: the broker has put everything back
                self._channel.ask(self._cancel)
        self._left()

    def close(self) -> None:
        """Close the consumer and its channel: the broker requeues unsettled deliveries."""
        with suppress(BusError):  # closed already
            self._channel.ask(self._close_channel)

    def _renew(self, another: Callable[[], Channel]) -> None:
        self._last_delivery = time.monotonic()
        try:
            if self._open and self._channel.ask(self._leave):
                self._subscribe(another())
        except BusError:
            self._close()

    # ------------------------------------------------------------------- on the I/O thread

    def _arrived(self, _: object, method: Any, properties: Any, body: bytes) -> None:
        if len(body) > self._limit and not self._cut:
            log.warning(
                "message too large; moved to the broker's dead-letter queue",
                queue=self.queue,
                size=len(body),
            )
            self._channel.raw.basic_reject(method.delivery_tag, requeue=False)
            return
        topic = method.routing_key if method.exchange in self._events else None
        user = properties.user_id if self._users else None
        headers = properties.headers or {}
        secret = headers.get(SECRET)
        delivery = RabbitDelivery(
            body[: self._limit + 1],
            method.redelivered,
            topic,
            user,
            secret if isinstance(secret, str) else None,
            headers.get(DEATH) in DROPPED,
            method.delivery_tag,
            self,
        )
        with self._changed:
            self._unsettled.add(delivery.tag)
            self._waiting.append(delivery)
            self._changed.notify()

    def _settle(self, tag: int, put_back: bool) -> None:
        raw = self._channel.raw
        if not raw.is_open:
            return
        if put_back:
            raw.basic_reject(tag, requeue=True)
        else:
            raw.basic_ack(tag)
        self._release_if_done()

    def _cancel(self, done: Future[Any]) -> None:
        raw = self._channel.raw
        if self._has_channel and raw.is_open and self._tag in raw.consumer_tags:
            raw.basic_cancel(self._tag, callback=lambda _: self._give_back(done))
        else:  # cancelled by the broker meanwhile
            fulfil(done, None)

    def _give_back(self, done: Future[Any]) -> None:
        """Requeue the deliveries not taken; fulfils `done` once the broker has them, so that the
        next consumer receives them in order."""
        self._put_back()
        self._channel.raw.basic_qos(callback=lambda _: fulfil(done, None))
        self._release_if_done()

    def _put_back(self) -> None:
        self._consuming = False
        with self._changed:
            tags = [delivery.tag for delivery in self._waiting]
            self._waiting.clear()
            self._unsettled.difference_update(tags)
        for tag in tags:
            self._channel.raw.basic_reject(tag, requeue=True)

    def _leave(self, left: Future[bool]) -> None:
        """Give up the channel unless a delivery has arrived."""
        with self._changed:
            idle = not self._unsettled
        if idle:
            self._channel.on_lost = self._channel.on_cancelled = nothing
        fulfil(left, idle)
        if idle:
            self._drop_channel()

    def _close_channel(self, done: Future[Any]) -> None:
        if self._has_channel:
            self._drop_channel()
        else:
            fulfil(done, None)

    def _drop_channel(self) -> None:
        # pika would cancel the consumer first, and the broker would then requeue deliveries in
        # transit before those that arrived; closing the channel with its consumer keeps the order.
        getattr(self._channel.raw, "_consumers", {}).clear()
        self._channel.raw.close()

    def _ended(self) -> None:
        """Called when the broker cancelled the consumer: its queue was deleted or lost its
        leader."""
        self._close()
        self._put_back()
        self._release_if_done()

    def _lost(self) -> None:
        with self._changed:
            self._waiting.clear()
            self._unsettled.clear()
        self._close()

    def _close(self) -> None:
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def _release_if_done(self) -> None:
        """Return the channel to the pool once nothing is unsettled."""
        with self._changed:
            done = not self._consuming and not self._unsettled
        if done and self._has_channel:
            self._release(self._channel)

    @property
    def _has_channel(self) -> bool:
        """Whether the channel still belongs to this subscription, not to the pool."""
        return self._channel.on_lost == self._lost
