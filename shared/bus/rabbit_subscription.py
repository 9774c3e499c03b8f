"""Consuming from one RabbitMQ queue: deliveries come in on the I/O thread, are taken and settled
on any other."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dpstream.shared.bus.rabbit_channel import Channel, fulfil, nothing
from dpstream.shared.errors import BusError
from dpstream.shared.logs import logger

log = logger()

SILENCE = 30.0
"""Seconds without a delivery after which we subscribe anew, in case the broker has forgotten us."""


@dataclass(frozen=True, eq=False)
class RabbitDelivery:
    """A message handed out by a subscription. Settling it twice, or after its channel was lost,
    has no effect."""

    body: bytes
    redelivered: bool
    tag: int
    subscription: RabbitSubscription

    def ack(self) -> None:
        self.subscription.settle(self.tag, put_back=False)

    def reject(self) -> None:
        self.subscription.settle(self.tag, put_back=True)


class RabbitSubscription:
    """One consumer, on a channel of its own, which it keeps until all it received is settled.

    A quorum queue that is deleted and at once declared again takes its consumers over, and what it
    then delivers to them gets lost in RabbitMQ, without a word to either side (3.10.8, every time).
    Hence nobody listens on one channel for ever where nothing comes.
    """

    def __init__(
        self,
        channel: Channel,
        queue: str,
        prefetch: int,
        limit: int | None,
        release: Callable[[Channel], None],
        left: Callable[[], None],
        another: Callable[[], Channel] | None,
    ) -> None:
        """`limit`: bytes; a longer body goes to the dead letters. `release` takes the channel back
        (I/O thread); `left` is called when the consumer was cancelled by us; `another` opens a
        channel to subscribe anew, None where the queue would not outlive the old one."""
        self.queue, self._limit, self._prefetch = queue, limit, prefetch
        self._release, self._left, self._another = release, left, another
        self._changed = threading.Condition()
        self._waiting: deque[RabbitDelivery] = deque()
        self._unsettled: set[int] = set()  # delivery tags, those waiting among them
        self._open = True
        self._consuming = True  # as the I/O thread knows it
        self._tag = ""
        self._listen(channel)

    def _listen(self, channel: Channel) -> None:
        self._channel, self._heard = channel, time.monotonic()
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
                self._heard = time.monotonic()
                return self._waiting.popleft()
        if self._another is not None and time.monotonic() - self._heard > SILENCE:
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
        if full:  # nothing else can be on its way: the broker hears of it before the next settling
            self._channel.connection.post(lambda: self._cancel(Future()))
        else:
            with suppress(BusError):  # lost: the broker has put everything back
                self._channel.ask(self._cancel)
        self._left()

    def close(self) -> None:
        """The consumer goes, and its channel: the broker puts back what is not settled."""
        with suppress(BusError):  # closed, which is what is asked for
            self._channel.ask(self._close_channel)

    def _renew(self, another: Callable[[], Channel]) -> None:
        self._heard = time.monotonic()
        try:
            if self._open and self._channel.ask(self._leave):
                self._listen(another())
        except BusError:
            self._close()

    # ------------------------------------------------------------------- on the I/O thread

    def _arrived(self, _: object, method: Any, __: object, body: bytes) -> None:
        if self._limit is not None and len(body) > self._limit:
            log.warning("oversized message set aside", queue=self.queue, size=len(body))
            self._channel.raw.basic_reject(method.delivery_tag, requeue=False)
            return
        delivery = RabbitDelivery(body, method.redelivered, method.delivery_tag, self)
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
        else:  # by the broker, just now
            fulfil(done, None)

    def _give_back(self, done: Future[Any]) -> None:
        """What nobody has taken; `done` once the broker has it, so that the next consumer finds
        the order kept."""
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
        """Give the channel up, unless something has come."""
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
        # pika would cancel the consumer first, and the broker then put back what is under way
        # before what has arrived: a consumer that goes with its channel keeps the order.
        getattr(self._channel.raw, "_consumers", {}).clear()
        self._channel.raw.close()

    def _ended(self) -> None:
        """The broker cancelled the consumer: its queue was deleted, or has lost its leader."""
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
        """Once; a channel in the pool no longer reports to us."""
        with self._changed:
            done = not self._consuming and not self._unsettled
        if done and self._has_channel:
            self._release(self._channel)

    @property
    def _has_channel(self) -> bool:
        """Back in the pool, a channel reports to somebody else."""
        return self._channel.on_lost == self._lost
