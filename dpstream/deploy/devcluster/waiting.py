"""Waits for a condition, such as a server that becomes ready."""

from __future__ import annotations

from collections.abc import Callable

from tenacity import Retrying, retry_if_not_result, stop_after_delay, wait_fixed


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Poll `holds` until it is true. Returns whether that happened within `seconds`."""
    retrying = Retrying(
        retry=retry_if_not_result(bool),
        wait=wait_fixed(0.05),
        stop=stop_after_delay(seconds),
        retry_error_callback=lambda state: False,
    )
    return retrying(holds)
