"""The RabbitMQ adapter of the bus, through pika.

One connection serves publishing and consuming. Its I/O thread keeps heartbeats going however busy
the callers are. The first call opens the connection; after a loss the next call opens a new one,
after a growing, jittered pause. The adapter uses only AMQP 0-9-1, publisher confirms and queue
arguments.
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
from functools import partial
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
from dpstream.shared.bus.rabbit_subscription import SECRET, RabbitSubscription
from dpstream.shared.bus.topology import DEADLETTERS, EVENTS, OFFERS, TASKS, declared, exchange_of
from dpstream.shared.codec import MAX_BODY
from dpstream.shared.errors import BusError, Refused, Unroutable
from dpstream.shared.logs import logger
from dpstream.shared.ports import Outgoing

__all__ = ["RabbitBus", "RabbitSettings"]

log = logger()
# Errors of a lost connection reach the caller as BusError; pika's own log lines would repeat them.
logging.getLogger("pika").setLevel(logging.CRITICAL)

SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between attempts to connect: a random part of a limit that doubles with every failure."""
GOODBYE_SECONDS = 5.0
"""Time for the closing handshake."""


def connection_error(error: BaseException) -> BusError:
    """The innermost cause of pika's nested exceptions of a failed connection, as a BusError."""
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
    """pika's connection parameters. Raises OSError for unusable certificate files."""
    found = pika.URLParameters(settings.url.get_secret_value())
    found.virtual_host = settings.virtual_host
    found.heartbeat = settings.heartbeat
    found.socket_timeout, found.stack_timeout = 10, 20
    found.client_properties = {"connection_name": f"dpstream {socket.gethostname()} {os.getpid()}"}
    tls = settings.tls()
    found.ssl_options = tls and pika.SSLOptions(tls, settings.parts.hostname)
    return found


def properties(message_id: str, secret: str | None, user: str | None) -> Any:
    """Properties of a message that survives a restart of the broker. RabbitMQ refuses a message
    whose `user_id` is not the user of its connection."""
    return pika.BasicProperties(
        content_type="application/json",
        delivery_mode=2,
        message_id=message_id,
        user_id=user,
        headers=None if secret is None else {SECRET: secret},
    )


class Connection:
    """One connection and its I/O thread. A lost connection is replaced, never reopened."""

    def __init__(self, settings: RabbitSettings) -> None:
        """Raises `BusError`, or `Refused` if another attempt would not help."""
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
        self._user = settings.user
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
        self.post(self._begin_close)
        self.answers.fail(error)

    def close(self) -> None:
        """Close the connection; unsettled deliveries return to their queues."""
        self.drop(BusError("the connection to the broker is closed"))
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
            publisher = Publisher(self.take_channel(), partial(properties, user=self._user))
            with self._lock:
                self._publisher = publisher
        return publisher

    # ------------------------------------------------------------------- on the I/O thread

    def _run(self, found: Any, opened: Future[Any]) -> None:
        error = BusError("the connection to the broker ended")

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
        except Exception as unforeseen:  # fail all waiting callers
            log.exception("connection to the broker failed")
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

    def _begin_close(self) -> None:
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
        self._connection: Connection | None = None
        self._declared: DeclaredQueues | None = None
        self._failures = 0
        self._temporary: dict[str, str] = {}  # patterns by queue
        self._subscriptions: WeakSet[RabbitSubscription] = WeakSet()

    @property
    def user(self) -> str | None:
        return self.settings.user

    @property
    def connected(self) -> bool:
        """Whether a connection is open; the next call opens one if not."""
        connection = self._connection
        return connection is not None and connection.alive

    def publish(self, messages: Sequence[Outgoing]) -> None:
        connection, queues = self._connect()
        unsent = [self._route(message, queues) for message in messages]
        for declared_again in (False, True):
            if unsent and declared_again:
                queues.declare_again()
            unsent = self._send(connection, unsent)
        if unsent:
            raise Unroutable(f"no queue receives {unsent[0].key!r} from {unsent[0].exchange}")

    def consume(self, queue: str, prefetch: int = 1) -> RabbitSubscription:
        connection, queues = self._connect()
        if declared(queue) is None:
            self._bind(queue, queues)
        else:
            queues.ensure_bound(queue)
        try:
            return self._subscribe(connection, queue, prefetch)
        except Missing:  # deleted while we were connected
            queues.declare_again()
            return self._subscribe(connection, queue, prefetch)

    def bind(self, queue: str, pattern: str) -> None:
        _, queues = self._connect()
        if declared(queue) is not None or queue in self._temporary:
            raise BusError(f"the queue name {queue!r} is taken")
        queues.bind(queue, pattern)
        self._temporary[queue] = pattern

    def depth(self, queue: str) -> int:
        connection, queues = self._connect()
        if declared(queue) is None:
            self._bind(queue, queues)
        else:
            queues.ensure(queue)
        with connection.channel() as channel:
            frame = channel.call("queue_declare", queue=self.settings.name(queue), passive=True)
        return int(frame.method.message_count)

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            if self._connection is not None:
                for subscription in list(self._subscriptions):
                    subscription.close()
                self._connection.close()

    def _connect(self) -> tuple[Connection, DeclaredQueues]:
        """The open connection; opens one if necessary."""
        with self._lock:
            known, queues = self._connection, self._declared
            if known is not None and queues is not None and known.alive:
                return known, queues
            if known is not None:
                self._failures = max(self._failures, 1)
            self._closed.wait(self._pause())
            if self._closed.is_set():
                raise BusError("the connection to the broker is closed")
            self._failures += 1
            self._connection, self._declared = self._open()
            self._failures = 0
            log.info("connected to the broker", broker=self.settings.address)
            return self._connection, self._declared

    def _pause(self) -> float:
        if not self._failures:
            return 0.0
        return random.uniform(0, min(LONGEST_PAUSE, SHORTEST_PAUSE * 2.0**self._failures))

    def _open(self) -> tuple[Connection, DeclaredQueues]:
        connection = None
        try:
            connection = Connection(self.settings)
            return connection, DeclaredQueues(connection, self.settings)
        except (BusError, OSError) as error:
            if connection is not None:
                connection.close()
            kind = type(error) if isinstance(error, BusError) else BusError
            raise kind(f"{self.settings.address}: {error}") from error

    def _route(self, message: Outgoing, queues: DeclaredQueues) -> Routed:
        if (message.queue is None) == (message.topic is None):
            raise BusError("a message goes either to a queue or to a topic")
        if message.queue is None:
            topic = message.topic or ""
            exchange = self.settings.name(exchange_of(topic))
            return Routed(message.body, exchange, topic, message.secret)
        if declared(message.queue) is None:
            raise Unroutable(f"there is no work queue {message.queue!r}")
        queues.ensure(message.queue)
        return Routed(message.body, self.settings.name(TASKS), message.queue)

    def _send(self, connection: Connection, messages: Sequence[Routed]) -> list[Routed]:
        """Send messages; returns those that no queue received."""
        if not messages:
            return []
        try:
            return [messages[index] for index in connection.publisher().send(messages)]
        except Missing:  # the exchange was deleted while we were connected
            return list(messages)

    def _subscribe(self, connection: Connection, queue: str, prefetch: int) -> RabbitSubscription:
        subscription = RabbitSubscription(
            connection.take_channel(),
            self.settings.name(queue),
            prefetch,
            MAX_BODY,
            queue == DEADLETTERS,
            {self.settings.name(exchange) for exchange in (EVENTS, OFFERS)},
            self.settings.users,
            connection.give_channel,
            lambda: self._forget(queue),
            None if declared(queue) is None else connection.take_channel,
        )
        self._subscriptions.add(subscription)
        return subscription

    def _bind(self, queue: str, queues: DeclaredQueues) -> None:
        """Bind a temporary queue again: it was deleted if the connection was lost."""
        if queue not in self._temporary:
            raise BusError(f"there is no queue {queue!r}")
        queues.bind(queue, self._temporary[queue])

    def _forget(self, queue: str) -> None:
        name = self.settings.name(queue)
        if not any(other.open and other.queue == name for other in list(self._subscriptions)):
            self._temporary.pop(queue, None)
