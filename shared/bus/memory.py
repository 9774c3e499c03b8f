"""The in-process bus: a broker's delivery semantics within one process.

Used by `dpstream run` and by tests. Messages do not survive the process; the coordinator publishes
commands again from the ledger.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from dpstream.shared.bus.topology import EVENTS, TOPOLOGY, declared, exchange_of, matches
from dpstream.shared.errors import BusError, QueueFull, Unroutable
from dpstream.shared.ports import Outgoing


@dataclass(eq=False)
class _Message:
    body: bytes
    topic: str | None = None
    secret: str | None = field(default=None, repr=False)
    redelivered: bool = False


@dataclass(eq=False)
class _Queue:
    name: str
    patterns: tuple[str, ...] = ()
    exchange: str = EVENTS
    most: int | None = None
    temporary: bool = False
    ready: deque[_Message] = field(default_factory=deque)
    consumers: deque[InProcessSubscription] = field(default_factory=deque)

    def dispatch(self) -> None:
        """Hand ready messages to consumers in turn, as far as their prefetch allows."""
        while self.ready:
            for _ in range(len(self.consumers)):
                consumer = self.consumers[0]
                self.consumers.rotate(-1)
                if consumer.has_room():
                    consumer.offer(self.ready.popleft())
                    break
            else:
                return

    def receives(self, topic: str) -> bool:
        bound = any(matches(pattern, topic) for pattern in self.patterns)
        return bound and self.exchange == exchange_of(topic)

    def put_back(self, messages: Sequence[_Message]) -> None:
        """Return messages to the head of the queue in their order, marked redelivered."""
        for message in reversed(messages):
            message.redelivered = True
            self.ready.appendleft(message)
        self.dispatch()


class Broker:
    """Queues and bindings in memory, shared by all connections (`InProcessBus`) of one broker."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.queues: dict[str, _Queue] = {}
        for row in TOPOLOGY:
            if not row.name.endswith("*"):
                self.queues[row.name] = _Queue(row.name, row.patterns, row.exchange, row.most)

    def queue(self, name: str) -> _Queue | None:
        """The queue, declared on demand if the topology allows it; None if there is no such
        queue."""
        if name not in self.queues and declared(name) is not None:
            self.queues[name] = _Queue(name)
        return self.queues.get(name)

    def bind(self, name: str, pattern: str) -> None:
        if declared(name) is not None or name in self.queues:
            raise BusError(f"the queue name {name!r} is taken")
        self.queues[name] = _Queue(name, (pattern,), temporary=True)

    def route(self, message: Outgoing) -> list[_Queue]:
        if (message.queue is None) == (message.topic is None):
            raise BusError("a message goes either to a queue or to a topic")
        if message.queue is not None:
            queue = self.queue(message.queue)
            targets = [] if queue is None else [queue]
        else:
            topic = message.topic or ""
            targets = [queue for queue in self.queues.values() if queue.receives(topic)]
        if not targets:
            raise Unroutable(f"nothing receives {message.queue or message.topic}")
        return targets

    def forget(self, subscription: InProcessSubscription) -> None:
        queue = subscription.queue
        queue.consumers.remove(subscription)
        if queue.temporary and not queue.consumers:
            self.queues.pop(queue.name, None)


class InProcessDelivery:
    """A message delivered by a subscription. Settling it twice, or after its bus was closed, has no
    effect."""

    user, dropped = None, False

    def __init__(self, message: _Message, subscription: InProcessSubscription) -> None:
        self._message, self._subscription = message, subscription
        self.body, self.redelivered = message.body, message.redelivered
        self.topic, self.secret = message.topic, message.secret

    def ack(self) -> None:
        self._subscription.settle(self._message, put_back=False)

    def reject(self) -> None:
        self._subscription.settle(self._message, put_back=True)


class InProcessSubscription:
    """One consumer of one queue. `close` acts as a broker does when a consumer disappears."""

    def __init__(self, broker: Broker, queue: _Queue, prefetch: int) -> None:
        self.queue, self._broker, self._prefetch = queue, broker, prefetch
        self._arrived = threading.Condition(broker.lock)
        self._waiting: deque[_Message] = deque()
        self._unsettled: dict[_Message, None] = {}  # in the order of delivery
        self._open = True

    @property
    def open(self) -> bool:
        return self._open

    @property
    def alive(self) -> bool:
        """Whether it is open or has unsettled deliveries."""
        return self._open or bool(self._unsettled)

    def has_room(self) -> bool:
        return len(self._waiting) + len(self._unsettled) < self._prefetch

    def offer(self, message: _Message) -> None:
        self._waiting.append(message)
        self._arrived.notify()

    def next(self, timeout: float | None = None) -> InProcessDelivery | None:
        with self._arrived:
            self._arrived.wait_for(lambda: self._waiting or not self._open, timeout)
            if not self._waiting:
                return None
            message = self._waiting.popleft()
            self._unsettled[message] = None
            return InProcessDelivery(message, self)

    def settle(self, message: _Message, put_back: bool) -> None:
        with self._broker.lock:
            if message not in self._unsettled:
                return
            del self._unsettled[message]
            if put_back:
                self.queue.put_back([message])
            self.queue.dispatch()

    def cancel(self) -> None:
        with self._broker.lock:
            if not self._open:
                return
            self._open = False
            self._broker.forget(self)
            self.queue.put_back(list(self._waiting))
            self._waiting.clear()
            self._arrived.notify_all()

    def close(self) -> None:
        """Close the consumer and return everything that it has not settled to the queue."""
        with self._broker.lock:
            self.cancel()
            unsettled = list(self._unsettled)
            self._unsettled.clear()
            self.queue.put_back(unsettled)


class InProcessBus:
    """One connection to a broker in memory (`ports.Bus`). One process has no users."""

    user = None

    def __init__(self, broker: Broker | None = None) -> None:
        self.broker = broker or Broker()
        self._subscriptions: list[InProcessSubscription] = []
        self._open = True

    def publish(self, messages: Sequence[Outgoing]) -> None:
        """As the port; `Unroutable` is raised before anything is stored."""
        with self._connected():
            routed = [(message, self.broker.route(message)) for message in messages]
            for message, queues in routed:
                for queue in queues:
                    if queue.most is not None and len(queue.ready) >= queue.most:
                        raise QueueFull(f"the queue {queue.name} is full")
                    queue.ready.append(_Message(message.body, message.topic, message.secret))
                    queue.dispatch()

    def consume(self, queue: str, prefetch: int = 1) -> InProcessSubscription:
        with self._connected():
            found = self._queue(queue)
            subscription = InProcessSubscription(self.broker, found, prefetch)
            self._subscriptions = [s for s in self._subscriptions if s.alive] + [subscription]
            found.consumers.append(subscription)
            found.dispatch()
            return subscription

    def bind(self, queue: str, pattern: str) -> None:
        """Declare a temporary queue for public events whose topic matches `pattern`; it is deleted
        with its last subscription. Raises BusError if the name is taken."""
        with self._connected():
            self.broker.bind(queue, pattern)

    def depth(self, queue: str) -> int:
        with self._connected():
            return len(self._queue(queue).ready)

    def close(self) -> None:
        """Close this connection: waiting consumers return, unsettled deliveries are requeued."""
        with self.broker.lock:
            self._open = False
            for subscription in self._subscriptions:
                subscription.close()
            self._subscriptions.clear()

    def _queue(self, name: str) -> _Queue:
        found = self.broker.queue(name)
        if found is None:
            raise BusError(f"there is no queue {name!r}")
        return found

    @contextmanager
    def _connected(self) -> Iterator[None]:
        with self.broker.lock:
            if not self._open:
                raise BusError("the connection to the broker is closed")
            yield
