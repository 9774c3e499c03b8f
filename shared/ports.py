"""The two ports every service is built on. Each has an embedded twin and a real adapter; one
conformance suite (`tests/contract`) is passed by all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Outgoing:
    """One message on its way: a command goes to the work queue `queue`, an event to the topic
    exchange under `topic`. Exactly one of the two is set."""

    body: bytes
    queue: str | None = None
    topic: str | None = None


class Delivery(Protocol):
    """One message received and not yet settled. Unsettled deliveries of a cancelled or lost
    subscription are delivered again."""

    @property
    def body(self) -> bytes: ...

    @property
    def redelivered(self) -> bool: ...

    def ack(self) -> None:
        """Settle for good. Allowed after the subscription was cancelled. Settling twice has no
        effect; nor has settling after the connection was lost: the message is delivered again."""

    def reject(self) -> None:
        """Put the message back for another consumer, marked redelivered."""


class Subscription(Protocol):
    @property
    def open(self) -> bool:
        """Whether anything may still come: not when cancelled, closed or ended by the broker."""

    def next(self, timeout: float | None = None) -> Delivery | None:
        """The next delivery; None after `timeout` seconds without one, or at once when cancelled
        or when the bus was closed."""

    def cancel(self) -> None:
        """Receive nothing more. Deliveries already handed out stay the consumer's to settle;
        prefetched ones go back."""


class Bus(Protocol):
    """At-least-once transport. Order is kept within a queue while nothing is redelivered, and
    nowhere else."""

    def publish(self, messages: Sequence[Outgoing]) -> None:
        """Return once every message is confirmed stored.

        Raises `Unroutable` when a message has nowhere to go, `BusError` when it is not confirmed.
        """

    def consume(self, queue: str, prefetch: int = 1) -> Subscription:
        """At most `prefetch` messages are held unsettled by this subscription. Raises `BusError`
        for a queue that neither the topology nor `bind` declares."""

    def bind(self, queue: str, pattern: str) -> None:
        """Declare a temporary queue for public events whose topic matches `pattern` (`*` one word,
        `#` any number). It goes with its last subscription. Raises `BusError` for a taken name."""

    def depth(self, queue: str) -> int:
        """Messages ready in `queue`: a hint, nothing more."""

    def close(self) -> None:
        """End this connection: its consumers wake, and what they have not settled goes back.
        Everything else then raises `BusError`."""


class Store(Protocol):
    """Objects under slash-separated keys (`values.Key`): relative, without `..`, printable ASCII.
    Every method raises `StoreError` for what is no key and for what the store refuses."""

    def get(self, key: str, most: int | None = None) -> bytes:
        """Raises `NotFound`; and `DigestMismatch`, unread, for more than `most` bytes."""

    def put(self, key: str, data: bytes) -> None:
        """Atomic and durable; replaces what was there."""

    def create(self, key: str, data: bytes) -> bool:
        """Atomic create-if-absent: True if this call made the object, False if it was there."""

    def exists(self, key: str) -> bool: ...

    def list(self, prefix: str, after: str = "") -> Iterable[str]:
        """Keys that start with `prefix`, sorted; only those that come after `after`, which need
        not be a key."""

    def delete(self, key: str) -> None:
        """No error when absent."""

    def upload(self, key: str, path: Path) -> None:
        """Like `put`, from a file."""

    def download(self, key: str, path: Path) -> None:
        """Like `get`, into a file. Raises `NotFound`."""
