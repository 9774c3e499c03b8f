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
        """Settle for good. Allowed after the subscription was cancelled."""

    def reject(self) -> None:
        """Put the message back for another consumer."""


class Subscription(Protocol):
    def next(self, timeout: float | None = None) -> Delivery | None:
        """The next delivery; None after `timeout` seconds without one, or when cancelled."""

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

    def consume(self, queue: str, prefetch: int = 1) -> Subscription: ...

    def depth(self, queue: str) -> int:
        """Messages ready in `queue`: a hint, nothing more."""

    def close(self) -> None: ...


class Store(Protocol):
    """Objects under slash-separated keys. Keys are relative, without `..`, of printable ASCII."""

    def get(self, key: str) -> bytes:
        """Raises `NotFound`."""

    def put(self, key: str, data: bytes) -> None:
        """Atomic and durable; replaces what was there."""

    def create(self, key: str, data: bytes) -> bool:
        """Atomic create-if-absent: True if this call made the object, False if it was there."""

    def exists(self, key: str) -> bool: ...

    def list(self, prefix: str) -> Iterable[str]:
        """Keys that start with `prefix`, sorted."""

    def delete(self, key: str) -> None:
        """No error when absent."""

    def upload(self, key: str, path: Path) -> None:
        """Like `put`, from a file."""

    def download(self, key: str, path: Path) -> None:
        """Like `get`, into a file. Raises `NotFound`."""
