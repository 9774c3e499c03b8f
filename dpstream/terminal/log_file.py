"""What the services log while a campaign runs here: kept in a file, the worst remembered."""

from __future__ import annotations

import threading
from collections.abc import MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog

from dpstream.shared.errors import SpecError

WORTH_SAYING = ("warning", "error", "critical")


class LogFile:
    """Log lines appended to a file; `worst` is the newest warning, in one line."""

    def __init__(self, path: Path) -> None:
        """Raises `SpecError` where the file cannot be written."""
        try:
            self._file = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise SpecError(f"{path}: cannot be written: {error.strerror}") from error
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        structlog.configure(**self._before)
        self._file.close()

    def _remember(
        self, logger: Any, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        if method in WORTH_SAYING or event["level"] in WORTH_SAYING:
            reason = " ".join(str(event.get("reason", "")).split())
            self.worst = f"{event['event']}{f': {reason}' if reason else ''}; see {self.path}"
        return event

    def _write(self, logger: Any, method: str, line: Any) -> str:
        """The last processor: the line goes to the file, and nowhere else."""
        with self._lock:
            if not self._file.closed:
                self._file.write(f"{line}\n")
        raise structlog.DropEvent
