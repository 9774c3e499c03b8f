"""Log lines on standard error: JSON for machines, aligned words for a terminal.

What is bound with `structlog.contextvars` (service, worker, campaign, task, attempt) is on every
line of that thread. No line shows a secret.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, MutableMapping
from typing import Any, Literal, TextIO

import structlog

USERINFO = re.compile(r"(\b[a-z][a-z0-9+.-]{0,19}://)[^\s/@]*(?:/[^\s/@]*)?@", re.IGNORECASE)
"""`scheme://user:password@`; passwords that hold a slash, which none should, are caught too."""
HIDDEN = "***"

Event = MutableMapping[str, Any]


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without user and password of any URL, and without each of `secrets`."""
    text = USERINFO.sub(rf"\1{HIDDEN}@", text)
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


def logger() -> Any:
    """structlog's, for a module. Until somebody configures it (`configure`, or a program that we
    are a library of), warnings and worse go to standard error, with plain tracebacks: the usual
    ones show every variable on the way."""
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
    """Send what every module logs to `stream` (standard error), `common` on every line. Lines
    below `level` are dropped. Libraries that log through `logging` get in from warnings on."""
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
    """Numbers as they are, lists item by item; whatever else, as the text that would be logged."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [_cleaned(item, secrets) for item in value]
    return redacted(str(value), secrets)


class _Forward(logging.Handler):
    """Lines of libraries, through the same processors."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            record.levelno, record.getMessage(), library=record.name, exc_info=record.exc_info
        )


def _adopt_libraries() -> None:
    logging.basicConfig(level=logging.WARNING, handlers=[_Forward()], force=True)
