"""Retries of calls to bus and store during outages, such as a restart of the broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
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

FIRST_REST, LONGEST_REST = 5.0, 600.0
"""Seconds for which a worker leaves a queue alone, first and at most."""
REFUSED_SECONDS = 60.0
"""How long an idle worker may be refused its rights: new ones need time to take effect, and a
restarted broker may refuse them at first."""


def retry_outages(
    call: Callable[[], T],
    stopping: threading.Event,
    patience: float = float("inf"),
    telemetry: Telemetry | None = None,
    given_up: Callable[[BaseException], bool] = lambda error: False,
) -> T:
    """The result of `call`, retried at growing intervals (up to 30 s) while bus or store fail. The
    error propagates once `stopping` is set, after `patience` seconds, and if `given_up(error)`;
    permanent errors (`NotFound`, `DigestMismatch`) propagate at once."""
    listener = telemetry or NoTelemetry()
    ended = stop_any(stop_when_event_set(stopping), stop_after_delay(patience))
    retrying = Retrying(
        retry=retry_if_exception(is_outage),
        wait=wait_random_exponential(multiplier=0.1, max=30),
        stop=lambda state: ended(state) or given_up(_error_of(state)),
        sleep=sleep_using_event(stopping),
        before_sleep=lambda state: _report(state, listener),
        reraise=True,
    )
    return retrying(call)


def is_outage(error: BaseException) -> bool:
    """Whether the same call may succeed later."""
    lasting = isinstance(error, (NotFound, DigestMismatch))
    return isinstance(error, (BusError, StoreError)) and not lasting


def refused_for_long() -> Callable[[BaseException], bool]:
    """For `retry_outages`: gives up after `REFUSED_SECONDS` in which every error was `Refused`."""
    since: float | None = None

    def given_up(error: BaseException) -> bool:
        nonlocal since
        since = (since or time.monotonic()) if isinstance(error, Refused) else None
        return since is not None and time.monotonic() - since >= REFUSED_SECONDS

    return given_up


@dataclass
class Rests:
    """The queues from which a worker takes nothing for a while, because it declined their last
    task: twice as long as the last time if that task was declined before, so that the tasks behind
    it need not wait."""

    _ends: dict[str, float] = field(default_factory=dict)
    _lengths: dict[str, float] = field(default_factory=dict)

    def begin(self, queue: str, longer: bool) -> float:
        """The seconds for which the queue rests from now on."""
        before = self._lengths.get(queue, FIRST_REST)
        length = min(2 * before, LONGEST_REST) if longer else before
        self._lengths[queue], self._ends[queue] = length, time.monotonic() + length
        return length

    def forget(self, queue: str) -> None:
        """The worker serves the queue."""
        self._lengths.pop(queue, None)

    def includes(self, queue: str) -> bool:
        return time.monotonic() < self._ends.get(queue, 0.0)


def _error_of(state: RetryCallState) -> BaseException:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert error is not None
    return error


def _report(state: RetryCallState, telemetry: Telemetry) -> None:
    error = _error_of(state)
    log.warning("broker or store failed, trying again", reason=str(error))
    telemetry.retried(error)
