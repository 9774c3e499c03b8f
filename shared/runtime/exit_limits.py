"""Limits after which the workers of a process exit by themselves, as jobs of a batch system
should."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field


@dataclass
class ExitLimits:
    """Limits shared by all workers of a process; None: no limit."""

    max_tasks: int | None = None
    idle_exit: float | None = None
    """Seconds during which no worker of the process had a task."""
    _taken: int = 0
    _working: int = 0
    _idle_since: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def over(self) -> bool:
        with self._lock:
            return self._is_full() or self._is_idle_for_long()

    def admit(self) -> bool:
        """Reserve a place for one more task, until `release`; False if the limit is reached."""
        with self._lock:
            if self._is_full():
                return False
            self._taken += 1
            self._working += 1
            return True

    def release(self, worked: bool) -> None:
        """Release the place of a task; one that was not `worked` on does not count."""
        with self._lock:
            self._working -= 1
            if worked:
                self._idle_since = time.monotonic()
            else:
                self._taken -= 1

    def _is_full(self) -> bool:
        return self.max_tasks is not None and self._taken >= self.max_tasks

    def _is_idle_for_long(self) -> bool:
        if self.idle_exit is None or self._working:
            return False
        return time.monotonic() - self._idle_since >= self.idle_exit
