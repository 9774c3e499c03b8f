"""The RabbitMQ adapter of the bus, through pika.

One connection serves publishing and consuming, driven by an I/O thread that keeps its heartbeats
alive however busy the callers are. It is made at the first call and made anew, after a growing and
jittered pause, by the next call after it was lost. Nothing is used but AMQP 0-9-1, publisher
confirms and arguments of queues.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import pika
from pika.adapters.select_connection import IOLoop

from dpstream.shared.bus.rabbit_channel import (
    Answers,
    Channel,
    ChannelPool,
    Missing,
    Publisher,
    Routed,
    closed_error,
    fulfil,
)
from dpstream.shared.bus.rabbit_queues import DeclaredQueues
from dpstream.shared.bus.rabbit_settings import RabbitSettings
from dpstream.shared.bus.rabbit_subscription import RabbitSubscription
from dpstream.shared.bus.topology import DEADLETTERS, EVENTS, TASKS, declared
from dpstream.shared.codec import MAX_BODY
from dpstream.shared.errors import BusError, Refused, Unroutable
from dpstream.shared.logs import logger
from dpstream.shared.ports import Outgoing

__all__ = ["RabbitBus", "RabbitSettings"]

log = logger()
# Whatever pika has to say about a lost connection reaches the caller as a BusError.
logging.getLogger("pika").setLevel(logging.CRITICAL)

SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between two tries to connect: doubled with every failure, each time a random part of."""
GOODBYE_SECONDS = 5.0
"""For the closing handshake."""


def connection_error(error: BaseException) -> BusError:
    """What pika's nested exceptions of a failed connection come to."""
    inner = [*error.args, getattr(error, "exception", None), *getattr(error, "exceptions", ())]
    causes = [cause for cause in inner if isinstance(cause, BaseException)]
    if causes:
        return connection_error(causes[-1])
    if isinstance(error, pika.exceptions.ProbableAuthenticationError):
        return Refused("user or password refused")
    if isinstance(error, pika.exceptions.ProbableAccessDeniedError):
        return Refused("the user has no access to this virtual host")
    return closed_error(error)


def parameters(settings: RabbitSettings) -> Any:
    """pika's own. OSError for unusable certificate files."""
    found = pika.URLParameters(settings.url.get_secret_value())
    found.virtual_host = settings.virtual_host
    found.heartbeat = settings.heartbeat
    found.socket_timeout, found.stack_timeout = 10, 20
    found.client_properties = {"connection_name": f"dpstream {socket.gethostname()} {os.getpid()}"}
    tls = settings.tls()
    found.ssl_options = tls and pika.SSLOptions(tls, settings.parts.hostname)
    return found


def properties(message_id: str) -> Any:
    """Of a message that survives a restart of the broker."""
    return pika.BasicProperties(
        content_type="application/json", delivery_mode=2, message_id=message_id
    )


class Connection:
    """One connection and its I/O thread, from open to lost; never used again after that."""

    def __init__(self, settings: RabbitSettings) -> None:
        """Raises `BusError`, `Refused` where waiting would not help."""
        self.answers = Answers()
        self._pool = ChannelPool(self, self.answers)
        self._publisher: Publisher | None = None
        self._lock = threading.Lock()
        self._loop: Any = IOLoop()
        self._turning = True
        self._posted: list[Callable[[], object]] = []
        self._connection: Any = None
        opened = self.answers.expect()
        work = (parameters(settings), opened)
        self._thread = threading.Thread(target=self._run, args=work, name="rabbit", daemon=True)
        self._thread.start()
        opened.result()

    @property
    def alive(self) -> bool:
        return self.answers.error is None

    def post(self, work: Callable[[], object]) -> None:
        with self._lock:
            if self._turning:
                self._posted.append(work)
                if len(self._posted) == 1:  # otherwise the loop is awake already
                    self._loop.add_callback_threadsafe(self._do_posted)

    def drop(self, error: BusError) -> None:
        self.post(self._hang_up)
        self.answers.fail(error)

    def close(self) -> None:
        """What was settled before is settled; the rest goes back."""
        self.drop(BusError("the bus is closed"))
        self._thread.join(2 * GOODBYE_SECONDS)

    @contextmanager
    def channel(self) -> Iterator[Channel]:
        """A channel for a few calls."""
        channel = self.take_channel()
        try:
            yield channel
        finally:
            self.post(lambda: self._pool.give(channel))

    def take_channel(self) -> Channel:
        return self._pool.take(lambda opened: self._connection.channel(on_open_callback=opened))

    def give_channel(self, channel: Channel) -> None:
        self._pool.give(channel)

    def publisher(self) -> Publisher:
        with self._lock:
            publisher = self._publisher
        if publisher is None or not publisher.open:
            publisher = Publisher(self.take_channel(), properties)
            with self._lock:
                self._publisher = publisher
        return publisher

    # ------------------------------------------------------------------- on the I/O thread

    def _run(self, found: Any, opened: Future[Any]) -> None:
        error = BusError("the connection ended")

        def ended(_: object, reason: BaseException) -> None:
            nonlocal error
            error = connection_error(reason)
            self._loop.stop()

        try:
            self._connection = pika.SelectConnection(
                found,
                on_open_callback=lambda _: fulfil(opened, None),
                on_open_error_callback=ended,
                on_close_callback=ended,
                custom_ioloop=self._loop,
            )
            self._loop.start()
        except Exception as unforeseen:  # nobody may be left waiting
            log.exception("the bus connection broke down")
            error = BusError(f"{type(unforeseen).__name__}: {unforeseen}")
        finally:
            self._end(error)

    def _do_posted(self) -> None:
        with self._lock:
            posted, self._posted = self._posted, []
        for work in posted:
            work()

    def _end(self, error: BusError) -> None:
        with self._lock:
            self._turning = False
        self.answers.fail(error)
        self._pool.lose(error)
        self._loop.close()

    def _hang_up(self) -> None:
        if not self._connection.is_open:
            self._loop.stop()
            return
        self._connection.close()
        self._loop.call_later(GOODBYE_SECONDS, self._loop.stop)


class RabbitBus:
    """One process's connection to a RabbitMQ broker (`ports.Bus`), for all its threads."""

    def __init__(self, settings: RabbitSettings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._line: Connection | None = None
        self._known: DeclaredQueues | None = None
        self._failures = 0
        self._temporary: dict[str, str] = {}  # patterns by queue
        self._subscriptions: WeakSet[RabbitSubscription] = WeakSet()

    @property
    def connected(self) -> bool:
        """Whether there is a connection now; the next call makes one where there is none."""
        line = self._line
        return line is not None and line.alive

    def publish(self, messages: Sequence[Outgoing]) -> None:
        line, known = self._connect()
        left = [self._route(message, known) for message in messages]
        for mended in (False, True):
            if left and mended:
                known.mend()
            left = self._send(line, left)
        if left:
            raise Unroutable(f"no queue receives {left[0].key!r} from {left[0].exchange}")

    def consume(self, queue: str, prefetch: int = 1) -> RabbitSubscription:
        line, known = self._connect()
        if declared(queue) is None:
            self._bind(queue, known)
        else:
            known.own(queue)
        try:
            return self._subscribe(line, queue, prefetch)
        except Missing:  # deleted while we were connected
            known.mend()
            return self._subscribe(line, queue, prefetch)

    def bind(self, queue: str, pattern: str) -> None:
        _, known = self._connect()
        if declared(queue) is not None or queue in self._temporary:
            raise BusError(f"the queue name {queue!r} is taken")
        known.bind(queue, pattern)
        self._temporary[queue] = pattern

    def depth(self, queue: str) -> int:
        line, known = self._connect()
        if declared(queue) is None:
            self._bind(queue, known)
        else:
            known.know(queue)
        with line.channel() as channel:
            frame = channel.call("queue_declare", queue=self.settings.name(queue), passive=True)
        return int(frame.method.message_count)

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            if self._line is not None:
                for subscription in list(self._subscriptions):
                    subscription.close()
                self._line.close()

    def _connect(self) -> tuple[Connection, DeclaredQueues]:
        """The connection, made now if need be."""
        with self._lock:
            if self._line is not None and self._known is not None and self._line.alive:
                return self._line, self._known
            if self._line is not None:
                self._failures = max(self._failures, 1)
            self._closed.wait(self._pause())
            if self._closed.is_set():
                raise BusError("the bus is closed")
            self._failures += 1
            self._line, self._known = self._open()
            self._failures = 0
            log.info("connected to the broker", broker=self.settings.address)
            return self._line, self._known

    def _pause(self) -> float:
        if not self._failures:
            return 0.0
        return random.uniform(0, min(LONGEST_PAUSE, SHORTEST_PAUSE * 2.0**self._failures))

    def _open(self) -> tuple[Connection, DeclaredQueues]:
        line = None
        try:
            line = Connection(self.settings)
            return line, DeclaredQueues(line, self.settings)
        except (BusError, OSError) as error:
            if line is not None:
                line.close()
            kind = type(error) if isinstance(error, BusError) else BusError
            raise kind(f"{self.settings.address}: {error}") from error

    def _route(self, message: Outgoing, known: DeclaredQueues) -> Routed:
        if (message.queue is None) == (message.topic is None):
            raise BusError("a message goes either to a queue or to a topic")
        if message.queue is None:
            return Routed(message.body, self.settings.name(EVENTS), message.topic or "")
        if declared(message.queue) is None:
            raise Unroutable(f"there is no work queue {message.queue!r}")
        known.know(message.queue)
        return Routed(message.body, self.settings.name(TASKS), message.queue)

    def _send(self, line: Connection, messages: Sequence[Routed]) -> list[Routed]:
        """What no queue received."""
        if not messages:
            return []
        try:
            return [messages[index] for index in line.publisher().send(messages)]
        except Missing:  # the exchange was deleted while we were connected
            return list(messages)

    def _subscribe(self, line: Connection, queue: str, prefetch: int) -> RabbitSubscription:
        subscription = RabbitSubscription(
            line.take_channel(),
            self.settings.name(queue),
            prefetch,
            None if queue == DEADLETTERS else MAX_BODY,
            line.give_channel,
            lambda: self._left(queue),
            None if declared(queue) is None else line.take_channel,
        )
        self._subscriptions.add(subscription)
        return subscription

    def _bind(self, queue: str, known: DeclaredQueues) -> None:
        """Once more, should the queue have gone with the connection."""
        if queue not in self._temporary:
            raise BusError(f"there is no queue {queue!r}")
        known.bind(queue, self._temporary[queue])

    def _left(self, queue: str) -> None:
        name = self.settings.name(queue)
        if not any(other.open and other.queue == name for other in list(self._subscriptions)):
            self._temporary.pop(queue, None)
