"""Writes the log of the services to a file while a campaign runs on this machine, and keeps the
newest warning for the live view."""

from __future__ import annotations

import threading
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import structlog

from dpstream.shared.errors import write_errors
from dpstream.terminal.verbosity import Verbosity, print_log_line

SHOWN_LEVELS = ("warning", "error", "critical")


class LogFile:
    """Appends log lines to a file. `worst`: the newest warning, as one line."""

    def __init__(self, path: Path) -> None:
        """Raises `SpecError` if the file cannot be written."""
        with write_errors(path):
            self._file = path.open("a", encoding="utf-8", buffering=1)
        self.path, self.worst = path, ""
        self._lock = threading.Lock()

    def __enter__(self) -> LogFile:
        self._before = structlog.get_config()
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger("info"),
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                self._remember,
                structlog.processors.TimeStamper(fmt="iso"),
                structlog.processors.format_exc_info,
                structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
                self._write,
            ],
        )
        return self

    def __exit__(self, *error: object) -> None:
        structlog.configure(**self._before)
        self._file.close()

    def _remember(
        self, logger: Any, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        if method in SHOWN_LEVELS or event["level"] in SHOWN_LEVELS:
            reason = " ".join(str(event.get("reason", "")).split())
            self.worst = f"{event['event']}{f': {reason}' if reason else ''}; see {self.path}"
        return event

    def _write(self, logger: Any, method: str, line: Any) -> str:
        """The last processor: writes the line to the file and drops the event."""
        if Verbosity.logs:
            print_log_line(line)
        with self._lock:
            if not self._file.closed:
                self._file.write(f"{line}\n")
        raise structlog.DropEvent
