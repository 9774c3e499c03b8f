"""Whether a program is at work: by the processor time of its processes and the growth of its files.

A single point or the steps between two lines of a loss curve may take hours without a word, so that
silence is no sign of a program that waits for ever.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 5.0
"""Interval between measurements."""
WORK_SECONDS = 1.0
"""Processor time that counts as work; launchers that wait use less in an hour."""


@dataclass
class Activity:
    """Of the processes of one session, and of the files in `folder`; `session`: the id of its first
    process, None before it starts. Ranks that a batch system starts elsewhere show by their
    output."""

    session: Callable[[], int | None]
    folder: Path | None = None
    _next: float = 0.0
    _used: float = 0.0
    _size: int = 0

    def watched(
        self, check: Callable[[], None], progressed: Callable[[], None]
    ) -> Callable[[], None]:
        """A `check` that also calls `progressed` if there has been work."""

        def check_and_look() -> None:
            check()
            if self.seen():
                progressed()

        return check_and_look

    def seen(self) -> bool:
        """Whether there has been work since the last time that there was. Always where the kernel
        has no `/proc`."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + SAMPLE_SECONDS
        if sys.platform != "linux":
            return True
        used, size = self._processor_seconds(), self._bytes()
        # Processes that end take their time with them.
        is_new = not self._used <= used < self._used + WORK_SECONDS or size != self._size
        if is_new:
            self._used, self._size = used, size
        return is_new

    def _processor_seconds(self) -> float:
        session = self.session()
        return 0.0 if session is None else sum(_times_in(session))

    def _bytes(self) -> int:
        if self.folder is None:
            return 0
        total = 0
        for path in self.folder.rglob("*"):
            with suppress(OSError):
                total += path.lstat().st_size
        return total


def _times_in(session: int) -> Iterator[float]:
    """Processor time in s of each process of a session and of its ended children."""
    ticks = os.sysconf("SC_CLK_TCK")
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            # Fields from the third on; the second, a name in parentheses, may contain spaces.
            words = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(words[3]) == session:
                yield sum(map(int, words[11:15])) / ticks
