"""Retries of calls to bus and store during outages, such as a restart of the broker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_delay,
    stop_any,
    stop_when_event_set,
    wait_random_exponential,
)

from dpstream.shared.errors import BusError, DigestMismatch, NotFound, Refused, StoreError
from dpstream.shared.logs import logger
from dpstream.shared.runtime.telemetry import NoTelemetry, Telemetry

log = logger()

T = TypeVar("T")

REFUSALS = 8
"""Attempts that may be refused in a row, about a minute: new credentials and rights need time to
take effect, and a restarted broker may refuse them at first."""


def retry_outages(
    call: Callable[[], T],
    stopping: threading.Event,
    patience: float = float("inf"),
    telemetry: Telemetry | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> T:
    """The result of `call`, retried at growing intervals (up to 30 s) while bus or store fail. The
    error propagates once `stopping` is set, once `given_up()` is true, after `patience` seconds,
    and after `REFUSALS` refusals in a row; permanent errors (`NotFound`, `DigestMismatch`)
    propagate at once."""
    listener = telemetry or NoTelemetry()
    refusals = 0

    def is_refused_for_good(state: RetryCallState) -> bool:
        nonlocal refusals
        error = state.outcome and state.outcome.exception()
        refusals = refusals + 1 if isinstance(error, Refused) else 0
        return refusals >= REFUSALS

    ended = stop_any(stop_when_event_set(stopping), stop_after_delay(patience))
    retrying = Retrying(
        retry=retry_if_exception(is_outage),
        wait=wait_random_exponential(multiplier=0.1, max=30),
        stop=lambda state: is_refused_for_good(state) or ended(state) or given_up(),
        sleep=sleep_using_event(stopping),
        before_sleep=lambda state: _report(state, listener),
        reraise=True,
    )
    return retrying(call)


def is_outage(error: BaseException) -> bool:
    """Whether the same call may succeed later."""
    lasting = isinstance(error, (NotFound, DigestMismatch))
    return isinstance(error, (BusError, StoreError)) and not lasting


def _report(state: RetryCallState, telemetry: Telemetry) -> None:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert error is not None
    log.warning("broker or store failed, trying again", reason=str(error))
    telemetry.retried(error)
