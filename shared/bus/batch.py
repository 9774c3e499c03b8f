"""Reads a subscription in batches.

Writing a segment of the ledger costs the same for one event as for a hundred, and so does a look
at the screen: a reader takes all deliveries that are there, and may wait a moment for more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from dpstream.shared import messages as m
from dpstream.shared.codec import decode_or_none
from dpstream.shared.ports import Delivery, Subscription

LINGER = 0.1
"""Seconds for which more deliveries are collected."""
ENOUGH = 20
"""Deliveries that wait for no more."""


def take(
    subscription: Subscription,
    most: int,
    wait: float,
    can_wait: Callable[[m.Message], bool] = lambda message: False,
) -> list[Delivery]:
    """Up to `most` deliveries that are there, or that arrive first within `wait` seconds. As long
    as all of them can wait, more are collected for `LINGER` seconds or until there are `ENOUGH`.
    The caller acknowledges them."""
    first = subscription.next(timeout=wait)
    taken: list[Delivery] = []
    deadline = time.monotonic() + LINGER
    while first is not None:
        arrived = [first, *waiting(subscription, most - len(taken) - 1)]
        taken += arrived
        left = deadline - time.monotonic()
        if len(taken) >= min(most, ENOUGH) or left <= 0 or _is_urgent(arrived, can_wait):
            break
        first = subscription.next(timeout=left)
    return taken


def _is_urgent(arrived: Sequence[Delivery], can_wait: Callable[[m.Message], bool]) -> bool:
    messages = (decode_or_none(delivery.body) for delivery in arrived)
    return not all(message is not None and can_wait(message) for message in messages)


def waiting(subscription: Subscription, most: int) -> list[Delivery]:
    """Up to `most` deliveries that are there already."""
    taken: list[Delivery] = []
    while len(taken) < most:
        delivery = subscription.next(timeout=0.0)
        if delivery is None:
            break
        taken.append(delivery)
    return taken
