"""Maps the exception that ended a handler to the event that reports it."""

from __future__ import annotations

import traceback

from dpstream.shared.errors import Permanent, Stopped, Temporary, is_machines_fault
from dpstream.shared.logs import redacted
from dpstream.shared.messages import Message, TaskFailed, TaskReleased
from dpstream.shared.runtime.context import Context
from dpstream.shared.runtime.retry import is_outage
from dpstream.shared.runtime.telemetry import Outcome

FULL_SECONDS = 60.0
"""Delay before the next attempt when this machine lacks disk space or file handles."""


def ending_of(error: Exception, context: Context) -> TaskReleased | TaskFailed:
    """The event for a handler's exception. An unexpected exception counts as a failed attempt."""
    if isinstance(error, Stopped):
        return _released(context, str(error))
    if isinstance(error, Temporary) or is_outage(error):
        return _released(context, str(error), getattr(error, "delay", 5.0))
    if is_machines_fault(error):
        return _released(context, f"this worker's machine: {error.strerror}", FULL_SECONDS)
    trace = getattr(error, "trace", "") or "".join(traceback.format_exception(error))
    return TaskFailed(
        **context.envelope(),
        permanent=isinstance(error, Permanent),
        reason=_text(f"{type(error).__name__}: {error}"),
        trace=_text(redacted(trace)[-4000:], 4000),
    )


def outcome_of(event: Message, context: Context) -> Outcome:
    if isinstance(event, TaskFailed):
        return "failed-for-good" if event.permanent else "failed"
    if not isinstance(event, TaskReleased):
        return "done"
    if context.is_cancelled:
        return "cancelled"
    return "preempted" if event.preempted else "released"


def _released(context: Context, reason: str, delay: float = 0.0) -> TaskReleased:
    return TaskReleased(
        **context.envelope(),
        reason=_text(reason),
        delay=delay,
        preempted=context.is_preempted,
        seconds=context.unsaved,
        restart=context.restart,
    )


def _text(text: str, limit: int = 2000) -> str:
    """`text` made fit for a message: truncated, without lone surrogates and passwords of URLs."""
    return redacted(text)[:limit].encode(errors="replace").decode()
