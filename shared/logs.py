"""Structured logging on standard error: JSON for machines, readable lines on a terminal.

Every line of a thread carries the values bound with `structlog.contextvars` (service, worker,
campaign, task, attempt). Passwords of URLs and all secret settings are masked.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, MutableMapping
from typing import Any, Literal, TextIO

import structlog

USERINFO = re.compile(r"(\b[a-z][a-z0-9+.-]{0,19}://)[^\s/@]*(?:/[^\s/@]*)?@", re.IGNORECASE)
"""`scheme://user:password@`; also matches passwords with an unencoded slash."""
HIDDEN = "***"

Event = MutableMapping[str, Any]


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` with user and password of every URL, and each of `secrets`, masked."""
    text = USERINFO.sub(rf"\1{HIDDEN}@", text)
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


def logger() -> Any:
    """The structlog logger of a module. Until `configure` or the host program configures structlog,
    warnings and errors go to standard error with plain tracebacks: structlog's default tracebacks
    would show local variables."""
    if not structlog.is_configured():
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger("warning"),
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.dev.set_exc_info,
                structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
                structlog.dev.ConsoleRenderer(
                    colors=False, exception_formatter=structlog.dev.plain_traceback
                ),
            ],
            logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        )
    return structlog.get_logger()


def configure(
    level: str = "info",
    form: Literal["auto", "json", "console"] = "auto",
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
    **common: str,
) -> None:
    """Send the log lines of all modules to `stream` (default: standard error), each with `common`.
    Lines below `level` are dropped. Libraries that use `logging` are included from warnings on."""
    out = stream or sys.stderr
    console = form == "console" or (form == "auto" and out.isatty())
    hidden = tuple(secret for secret in secrets if secret)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        processors=[
            lambda _, __, event: {**common, **event},
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            lambda _, __, event: _clean(event, hidden),
            _renderer(console, out),
        ],
        logger_factory=structlog.WriteLoggerFactory(out),
    )
    _adopt_libraries()


def _renderer(console: bool, out: TextIO) -> Any:
    if console:
        return structlog.dev.ConsoleRenderer(colors=out.isatty(), pad_event_to=0)
    return structlog.processors.JSONRenderer(default=str)


def _clean(event: Event, secrets: tuple[str, ...]) -> Event:
    return {key: _cleaned(value, secrets) for key, value in event.items()}


def _cleaned(value: Any, secrets: tuple[str, ...]) -> Any:
    """Numbers unchanged, lists item by item, everything else as redacted text."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [_cleaned(item, secrets) for item in value]
    return redacted(str(value), secrets)


class _Forward(logging.Handler):
    """Sends the log lines of libraries through the same processors."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            record.levelno, record.getMessage(), library=record.name, exc_info=record.exc_info
        )


def _adopt_libraries() -> None:
    logging.basicConfig(level=logging.WARNING, handlers=[_Forward()], force=True)
