"""The ports that the services are built on: `Bus` and `Store`, and `Fleet`, which starts workers.

`Bus` and `Store` have an in-process adapter, used by `dpstream run`, and adapters for deployments
(RabbitMQ, S3). All adapters of a port pass the same conformance suite (`tests/contract`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Outgoing:
    """A message to publish: a command to the work queue `queue`, or an event to the topic exchange
    under `topic`. Exactly one of the two is set. `secret` proves the right to publish it. It is a
    header and no part of the body, which is stored and logged."""

    body: bytes
    queue: str | None = None
    topic: str | None = None
    secret: str | None = field(default=None, repr=False)


class Delivery(Protocol):
    """A received message that is not settled yet. Unsettled deliveries of a lost subscription are
    delivered again."""

    @property
    def body(self) -> bytes: ...

    @property
    def redelivered(self) -> bool: ...

    @property
    def topic(self) -> str | None:
        """The topic under which an event was published; None if it came by a work queue or as a
        dead letter."""

    @property
    def user(self) -> str | None:
        """The publisher's user, which the broker has checked; None if the message has none."""

    @property
    def secret(self) -> str | None:
        """That of `Outgoing`."""

    @property
    def dropped(self) -> bool:
        """Whether the message is a dead letter because it was too old or its queue too long."""

    def ack(self) -> None:
        """Settle the delivery; allowed after the subscription was cancelled. Settling twice, or
        after the connection was lost, has no effect; in the latter case the message is delivered
        again."""

    def reject(self) -> None:
        """Put the message back for another consumer, marked redelivered."""


class Subscription(Protocol):
    @property
    def open(self) -> bool:
        """Whether deliveries may still arrive: false once cancelled, closed or ended by the
        broker."""

    def next(self, timeout: float | None = None) -> Delivery | None:
        """The next delivery; None after `timeout` seconds without one, or at once after the
        subscription was cancelled or the bus was closed."""

    def cancel(self) -> None:
        """Receive nothing more. The consumer still settles deliveries it has taken; prefetched ones
        return to the queue."""


class Bus(Protocol):
    """At-least-once transport. Order is preserved only within a queue and only as long as nothing
    is redelivered."""

    @property
    def user(self) -> str | None:
        """The user of this connection, which the broker states with every message that it delivers;
        None for a broker that does not."""

    def publish(self, messages: Sequence[Outgoing]) -> None:
        """Return once the broker has confirmed every message.

        Raises `Unroutable` if no queue receives a message, `Rejected` if a queue is full, and
        `BusError` if one is not confirmed.
        """

    def consume(self, queue: str, prefetch: int = 1) -> Subscription:
        """Subscribe with at most `prefetch` unsettled messages. Raises `BusError` for a queue that
        neither the topology nor `bind` declares."""

    def bind(self, queue: str, pattern: str) -> None:
        """Declare a temporary queue for public events whose topic matches `pattern` (`*` one word,
        `#` any number). It is deleted with its last subscription. Raises `BusError` if the name is
        taken."""

    def depth(self, queue: str) -> int:
        """Approximate number of messages ready in `queue`."""

    def close(self) -> None:
        """Close this connection. Waiting consumers return, unsettled deliveries return to their
        queues, and all other calls raise `BusError` afterwards."""


class Store(Protocol):
    """Objects under slash-separated keys (`values.Key`): relative, without `..`, printable ASCII.
    Every method raises `StoreError` for an invalid key or a request that the store refuses."""

    def get(self, key: str, most: int | None = None) -> bytes:
        """Raises `NotFound`, and `DigestMismatch` without reading an object above `most` bytes."""

    def put(self, key: str, data: bytes) -> None:
        """Write an object atomically and durably; replaces an existing one."""

    def create(self, key: str, data: bytes) -> bool:
        """Atomic create-if-absent: True if this call created the object, False if it existed."""

    def exists(self, key: str) -> bool: ...

    def list(self, prefix: str, after: str = "") -> Iterable[str]:
        """Keys that start with `prefix`, sorted; only those after `after`, which need not be a
        key itself."""

    def entries(self, folder: str) -> Iterable[str]:
        """Keys directly in `folder`, which is empty or ends in a slash, and the folders in it,
        which end in a slash; sorted. Takes no longer if there is much in those folders. A folder
        from which everything was deleted may still be among them."""

    def delete(self, key: str) -> None:
        """Delete an object; no error if it does not exist."""

    def upload(self, key: str, path: Path) -> None:
        """Like `put`, from a file."""

    def download(self, key: str, path: Path) -> None:
        """Like `get`, into a file. Raises `NotFound`."""


@dataclass(frozen=True)
class Launch:
    """One object of a fleet engine, such as a Slurm array: workers of one pool that were launched
    together under `name`.

    waiting: processes that the engine has not started; stuck: those of them that it tries to start
    and cannot, e.g. because their image does not exist; starting: those it is starting; running;
    ended: counts by exit status or, in the engine's words, by reason; up, gone: the running and the
    ended processes by their `DPSTREAM_PROCESS`, as far as they are known; since: when it was
    launched, seconds since the epoch; waits_since: since when one of its processes has waited, 0:
    since the launch; reason: why it waits, in the engine's words; listed: False if the engine has
    accepted it and does not list it yet.
    """

    name: str
    pool: str
    waiting: int = 0
    stuck: int = 0
    starting: int = 0
    running: int = 0
    ended: Mapping[str, int] = field(default_factory=dict)
    up: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    since: float = 0.0
    waits_since: float = 0.0
    reason: str = ""
    listed: bool = True

    @property
    def started(self) -> int:
        """Processes that the engine has started, or is about to."""
        return self.starting + self.running

    @property
    def alive(self) -> int:
        return self.waiting + self.started


class Fleet(Protocol):
    """An engine that runs workers: child processes, Slurm, Kubernetes. It places them on machines;
    workers leave by themselves when their queue is empty.

    Every method raises `FleetError` if the engine cannot be asked, and then nothing is known.
    """

    def running(self) -> Sequence[Launch]:
        """Every launch of this deployment that has not ended, and those that ended recently; also
        of pools that exist no more."""

    def launch(self, pool: str, count: int, name: str, *, warm: bool = False) -> None:
        """Launch `count` workers as one object. Has no effect if `name` exists, so that a lost
        reply may be followed by the same call. Warm workers do not leave when they are idle. Raises
        `FleetLimit` if a quota forbids it."""

    def retire(self, launch: Launch, most: int) -> int:
        """Take back up to `most` processes that have not started; returns how many."""

    def end(self, launch: Launch) -> None:
        """Ask every process of the launch to stop (SIGTERM), and take back what waits."""
