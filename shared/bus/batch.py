"""Reads a subscription in batches.

A segment of the ledger costs the same for one event as for a hundred, and so does an update of the
screen. A reader therefore takes all deliveries that are ready, and may wait a moment for more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from dpstream.shared import messages as m
from dpstream.shared.codec import decode_or_none
from dpstream.shared.ports import Delivery, Subscription

BATCH_SECONDS = 0.1
"""How long deliveries that can wait are collected, s."""
BATCH_ENOUGH = 20
"""Number of deliveries that ends the wait."""


def take(
    subscription: Subscription,
    most: int,
    wait: float,
    can_wait: Callable[[m.Message], bool] = lambda message: False,
) -> list[Delivery]:
    """Takes up to `most` deliveries that are ready, or that arrive first within `wait` seconds. As
    long as all of them can wait, more are collected for `BATCH_SECONDS` or until there are
    `BATCH_ENOUGH`. The caller acknowledges them."""
    first = subscription.next(timeout=wait)
    taken: list[Delivery] = []
    deadline = time.monotonic() + BATCH_SECONDS
    while first is not None:
        arrived = [first, *take_ready(subscription, most - len(taken) - 1)]
        taken += arrived
        left = deadline - time.monotonic()
        if len(taken) >= min(most, BATCH_ENOUGH) or left <= 0 or _is_urgent(arrived, can_wait):
            break
        first = subscription.next(timeout=left)
    return taken


def _is_urgent(arrived: Sequence[Delivery], can_wait: Callable[[m.Message], bool]) -> bool:
    messages = (decode_or_none(delivery.body) for delivery in arrived)
    return not all(message is not None and can_wait(message) for message in messages)


def take_ready(subscription: Subscription, most: int) -> list[Delivery]:
    """Takes up to `most` deliveries that are ready, without waiting."""
    taken: list[Delivery] = []
    while len(taken) < most:
        delivery = subscription.next(timeout=0.0)
        if delivery is None:
            break
        taken.append(delivery)
    return taken
