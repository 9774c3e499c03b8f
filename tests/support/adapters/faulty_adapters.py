"""Buses and stores that fail within their contract, around any real one.

`FaultyBus` doubles, reorders and drops-then-redelivers; `FlakyStore` and `FlakyBus` have outages.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dpstream.shared.errors import BusError, StoreError
from dpstream.shared.ports import Bus, Delivery, Outgoing, Store, Subscription


class FaultyBus:
    """A bus at its worst: at-least-once, and no more. Reproducible by `seed` on one thread.

    double: chance that a message is published twice; drop: chance that a delivery is put back
    instead of handed out; window: how many deliveries may overtake one another.
    """

    def __init__(
        self, bus: Bus, seed: int, double: float = 0.2, drop: float = 0.2, window: int = 4
    ) -> None:
        self.bus, self.random = bus, random.Random(seed)
        self.double, self.drop, self.window = double, drop, window

    @property
    def user(self) -> str | None:
        return self.bus.user

    def publish(self, messages: Sequence[Outgoing]) -> None:
        sent = [m for m in messages for _ in range(1 + (self.random.random() < self.double))]
        self.random.shuffle(sent)
        self.bus.publish(sent)

    def consume(self, queue: str, prefetch: int = 1) -> Subscription:
        return FaultySubscription(self, self.bus.consume(queue, prefetch + self.window - 1))

    def bind(self, queue: str, pattern: str) -> None:
        self.bus.bind(queue, pattern)

    def depth(self, queue: str) -> int:
        return self.bus.depth(queue)

    def close(self) -> None:
        self.bus.close()


class FaultySubscription:
    def __init__(self, faults: FaultyBus, subscription: Subscription) -> None:
        self._faults, self._subscription = faults, subscription
        self._held: list[Delivery] = []

    @property
    def open(self) -> bool:
        return self._subscription.open

    def next(self, timeout: float | None = None) -> Delivery | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._fill(left)
            if not self._held:
                return None
            chance = self._faults.random
            delivery = self._held.pop(chance.randrange(len(self._held)))
            if delivery.redelivered or chance.random() >= self._faults.drop:
                return delivery
            delivery.reject()

    def _fill(self, timeout: float | None) -> None:
        while len(self._held) < self._faults.window:
            delivery = self._subscription.next(0.0 if self._held else timeout)
            if delivery is None:
                return
            self._held.append(delivery)

    def cancel(self) -> None:
        self._subscription.cancel()
        for delivery in self._held:
            delivery.reject()
        self._held.clear()


class FlakyBus:
    """Fails where `fails(operation)` says so: before the work ("publish") or after it, with the
    confirmation lost ("published")."""

    def __init__(self, bus: Bus, fails: Callable[[str], bool]) -> None:
        self.bus, self._fails = bus, fails

    def _perhaps_fail(self, operation: str) -> None:
        if self._fails(operation):
            raise BusError(f"outage at {operation}")

    @property
    def user(self) -> str | None:
        return self.bus.user

    def publish(self, messages: Sequence[Outgoing]) -> None:
        self._perhaps_fail("publish")
        self.bus.publish(messages)
        self._perhaps_fail("published")

    def consume(self, queue: str, prefetch: int = 1) -> Subscription:
        self._perhaps_fail("consume")
        return self.bus.consume(queue, prefetch)

    def bind(self, queue: str, pattern: str) -> None:
        self.bus.bind(queue, pattern)

    def depth(self, queue: str) -> int:
        return self.bus.depth(queue)

    def close(self) -> None:
        self.bus.close()


class FlakyStore:
    """Fails where `fails(operation)` says so: before the work ("create", "get", …) or after it,
    with the answer lost ("created", "stored")."""

    def __init__(self, store: Store, fails: Callable[[str], bool]) -> None:
        self.store, self._fails = store, fails

    def _perhaps_fail(self, operation: str) -> None:
        if self._fails(operation):
            raise StoreError(f"outage at {operation}")

    def get(self, key: str, most: int | None = None) -> bytes:
        self._perhaps_fail("get")
        return self.store.get(key, most)

    def put(self, key: str, data: bytes) -> None:
        self._perhaps_fail("put")
        self.store.put(key, data)
        self._perhaps_fail("stored")

    def create(self, key: str, data: bytes) -> bool:
        self._perhaps_fail("create")
        made = self.store.create(key, data)
        self._perhaps_fail("created")
        return made

    def exists(self, key: str) -> bool:
        self._perhaps_fail("exists")
        return self.store.exists(key)

    def list(self, prefix: str, after: str = "") -> Iterable[str]:
        self._perhaps_fail("list")
        return self.store.list(prefix, after)

    def entries(self, folder: str) -> Iterable[str]:
        self._perhaps_fail("list")
        return self.store.entries(folder)

    def delete(self, key: str) -> None:
        self._perhaps_fail("delete")
        self.store.delete(key)

    def upload(self, key: str, path: Path) -> None:
        self._perhaps_fail("upload")
        self.store.upload(key, path)
        self._perhaps_fail("stored")

    def download(self, key: str, path: Path) -> None:
        self._perhaps_fail("download")
        self.store.download(key, path)


def first(count: int, *operations: str) -> Callable[[str], bool]:
    """Fails the first `count` calls of each of `operations`."""
    left = dict.fromkeys(operations, count)

    def fails(operation: str) -> bool:
        left[operation] = left.get(operation, 0) - 1
        return left[operation] >= 0

    return fails
