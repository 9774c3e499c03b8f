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

from dpstream.shared.errors import BusError, DigestMismatch, NotFound, StoreError
from dpstream.shared.logs import logger
from dpstream.shared.runtime.telemetry import NoTelemetry, Telemetry

log = logger()

T = TypeVar("T")


def retry_outages(
    call: Callable[[], T],
    stopping: threading.Event,
    patience: float = float("inf"),
    telemetry: Telemetry | None = None,
) -> T:
    """The result of `call`, retried at growing intervals (up to 30 s) while bus or store fail. The
    error propagates once `stopping` is set or after `patience` seconds; permanent errors
    (`NotFound`, `DigestMismatch`) propagate at once."""
    listener = telemetry or NoTelemetry()
    retrying = Retrying(
        retry=retry_if_exception(is_outage),
        wait=wait_random_exponential(multiplier=0.1, max=30),
        stop=stop_any(stop_when_event_set(stopping), stop_after_delay(patience)),
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
