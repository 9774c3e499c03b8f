"""Channels of a RabbitMQ connection, for callers on any thread.

pika's objects may only be used on the I/O thread of their connection. A caller posts a function to
that thread and waits for a future; when the channel or the connection is lost, all waiting callers
get the same `BusError`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as Unanswered
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from dpstream.shared.errors import BusError, QueueFull, Refused

ANSWER_SECONDS = 30.0
"""Time limit for one answer of the broker, or for all confirms of one publish."""

SPARE_CHANNELS = 8
"""Idle channels kept for reuse: workers subscribe again for every task."""


class Missing(BusError):
    """A queue or an exchange that does not exist."""


def closed_error(reason: BaseException) -> BusError:
    """The BusError for a broker's reason for closing a channel or a connection."""
    code = getattr(reason, "reply_code", 0)
    text = getattr(reason, "reply_text", "") or str(reason) or type(reason).__name__
    kinds: dict[int, type[BusError]] = {403: Refused, 404: Missing, 530: Refused}
    return kinds.get(code, BusError)(text)


def fulfil(future: Future[Any], answer: Any) -> None:
    with suppress(InvalidStateError):  # the caller has given up
        future.set_result(answer)


def fail(future: Future[Any], error: BaseException) -> None:
    with suppress(InvalidStateError):
        future.set_exception(error)


class Answers:
    """Futures that callers wait for. Once `error` is set, all present and future ones fail with
    it."""

    def __init__(self) -> None:
        self.error: BusError | None = None
        self._awaited: dict[Future[Any], None] = {}
        self._lock = threading.RLock()

    def expect(self) -> Future[Any]:
        with self._lock:
            if self.error is not None:
                raise type(self.error)(*self.error.args)
            future: Future[Any] = Future()
            self._awaited[future] = None
        future.add_done_callback(self._done)
        return future

    def fail(self, error: BusError) -> None:
        with self._lock:
            self.error = self.error or error
            awaited = list(self._awaited)
        for future in awaited:
            fail(future, type(error)(*error.args))

    def _done(self, future: Future[Any]) -> None:
        with self._lock:
            self._awaited.pop(future, None)


class IoThread(Protocol):
    """The I/O thread of a connection, as channels use it."""

    def post(self, work: Callable[[], object]) -> None:
        """Run `work` on the I/O thread, in the order of posting; dropped after a loss."""

    def drop(self, error: BusError) -> None:
        """Give up the connection: all waiting callers get `error`."""


def ask(connection: IoThread, answers: Answers, begin: Callable[[Future[Any]], object]) -> Any:
    """The answer to the request that `begin` starts on the I/O thread. Without an answer in time,
    drops the connection and raises BusError."""
    future = answers.expect()

    def guarded() -> None:
        try:
            begin(future)
        except Exception as error:
            fail(future, closed_error(error))

    connection.post(guarded)
    try:
        return future.result(ANSWER_SECONDS)
    except Unanswered:
        error = BusError(f"the broker has not answered for {ANSWER_SECONDS:g} s")
        connection.drop(error)
        raise error from None


def nothing(*_: object) -> None:
    """Default callback: does nothing."""


class Channel:
    """One channel of pika (`raw`). Its user may set callbacks for its loss and cancellation."""

    def __init__(self, connection: IoThread, raw: Any) -> None:
        self.connection, self.raw = connection, raw
        self.answers = Answers()
        self.on_lost: Callable[[], None] = nothing
        self.on_cancelled: Callable[[], None] = nothing
        raw.add_on_close_callback(lambda _, reason: self.lose(closed_error(reason)))
        raw.add_on_cancel_callback(lambda _: self.on_cancelled())

    def ask(self, begin: Callable[[Future[Any]], object]) -> Any:
        return ask(self.connection, self.answers, begin)

    def call(self, method: str, **arguments: Any) -> Any:
        """The broker's answer to one synchronous method. Raises `Missing`, `Refused` or `BusError`,
        after which the channel is closed."""

        def begin(future: Future[Any]) -> None:
            getattr(self.raw, method)(**arguments, callback=lambda frame: fulfil(future, frame))

        return self.ask(begin)

    def lose(self, error: BusError) -> None:
        """Called when the channel was closed for this reason (I/O thread)."""
        self.answers.fail(error)
        self.on_lost()


class ChannelPool:
    """Opens channels and keeps a few idle ones."""

    def __init__(self, connection: IoThread, answers: Answers) -> None:
        self._connection, self._answers = connection, answers
        self._spare: list[Channel] = []
        self.channels: set[Channel] = set()
        """All open channels (I/O thread)."""

    def take(self, open_raw: Callable[[Callable[[Any], None]], object]) -> Channel:
        """An idle channel, or a new one opened by `open_raw(callback)`."""
        with suppress(IndexError):
            return self._spare.pop()

        def begin(future: Future[Any]) -> None:
            open_raw(lambda raw: fulfil(future, self._opened(raw)))

        channel = ask(self._connection, self._answers, begin)
        assert isinstance(channel, Channel)
        return channel

    def give(self, channel: Channel) -> None:
        """Return a channel without unsettled deliveries (I/O thread)."""
        channel.on_lost = channel.on_cancelled = nothing
        if not channel.raw.is_open:
            return
        if len(self._spare) < SPARE_CHANNELS:
            self._spare.append(channel)
        else:
            channel.raw.close()

    def lose(self, error: BusError) -> None:
        """Called when the connection was lost, with all channels (I/O thread)."""
        for channel in list(self.channels):
            channel.lose(error)

    def _opened(self, raw: Any) -> Channel:
        channel = Channel(self._connection, raw)
        self.channels.add(channel)
        raw.add_on_close_callback(lambda *_: self._closed(channel))
        return channel

    def _closed(self, channel: Channel) -> None:
        self.channels.discard(channel)
        with suppress(ValueError):
            self._spare.remove(channel)


@dataclass(frozen=True)
class Routed:
    """A message with its exchange and routing key."""

    body: bytes
    exchange: str
    key: str
    secret: str | None = field(default=None, repr=False)


@dataclass(eq=False)
class _Batch:
    """Messages of one publish, by index, until the broker has answered for each of them."""

    answered: Future[Any]
    waiting: int
    returned: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)


class Publisher:
    """A channel in confirm mode: many messages in flight, all of them mandatory."""

    def __init__(self, channel: Channel, properties: Callable[[str, str | None], Any]) -> None:
        """`properties(id, secret)` returns those of a persistent message with this message id."""
        self._channel, self._properties = channel, properties
        self._tag = 0
        self._unconfirmed: dict[int, tuple[_Batch, int]] = {}  # by delivery tag, ascending
        channel.raw.add_on_return_callback(self._returned)
        channel.call("confirm_delivery", ack_nack_callback=self._confirmed)

    @property
    def open(self) -> bool:
        return self._channel.answers.error is None

    def send(self, messages: Sequence[Routed]) -> list[int]:
        """Return once the broker has answered for all, with the indices of those that no queue
        received. Raises QueueFull if one was not stored."""
        batch: _Batch = self._channel.ask(lambda future: self._begin(messages, future))
        if batch.refused:
            first = messages[batch.refused[0]]
            raise QueueFull(
                f"the broker refused {len(batch.refused)} of {len(messages)} messages, "
                f"the first to {first.key}"
            )
        return batch.returned

    def _begin(self, messages: Sequence[Routed], answered: Future[Any]) -> None:
        batch = _Batch(answered, len(messages))
        for index, message in enumerate(messages):
            tag = self._tag + 1
            self._channel.raw.basic_publish(
                message.exchange,
                message.key,
                message.body,
                self._properties(str(tag), message.secret),
                mandatory=True,
            )
            self._tag = tag  # the broker counts what was sent, not what pika refused to send
            self._unconfirmed[tag] = (batch, index)

    def _returned(self, _: object, __: object, properties: Any, ___: bytes) -> None:
        batch, index = self._unconfirmed[int(properties.message_id)]
        batch.returned.append(index)

    def _confirmed(self, frame: Any) -> None:
        stored = frame.method.NAME == "Basic.Ack"
        for tag in list(self._answered_by(frame.method)):
            batch, index = self._unconfirmed.pop(tag)
            if not stored:
                batch.refused.append(index)
            batch.waiting -= 1
            if not batch.waiting:
                fulfil(batch.answered, batch)

    def _answered_by(self, method: Any) -> Iterator[int]:
        if not method.multiple:
            yield method.delivery_tag
            return
        for tag in self._unconfirmed:
            if method.delivery_tag and tag > method.delivery_tag:
                return
            yield tag
