"""Whether a program is at work: by the processor time of its processes and the growth of its files.

A single point, or the steps between two lines of a loss curve, may take hours without output. A
program without output may therefore be at work.
"""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 5.0
"""Interval between measurements."""
WORK_SECONDS = 1.0
"""Processor time that counts as work; launchers that wait use less in an hour."""
BATCH_LAUNCHERS = frozenset({"srun", "aprun", "jsrun"})
"""Programs of batch systems whose ranks run on other nodes, or as children of a daemon."""


@dataclass
class Activity:
    """Of a process with its descendants, and of the files in `folder`; `pid`: of the process, None
    before it starts. A launcher among the descendants counts as at work for as long as it runs:
    the processor time of its ranks is not visible here."""

    pid: Callable[[], int | None]
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
        pid = self.pid()
        tree = [] if pid is None else list(_tree(pid))
        used, size = sum(process.seconds for process in tree), self._bytes()
        # Processes that end without a parent that waits for them take their time with them.
        is_new = not self._used <= used < self._used + WORK_SECONDS or size != self._size
        if is_new:
            self._used, self._size = used, size
        return is_new or any(process.name in BATCH_LAUNCHERS for process in tree)

    def _bytes(self) -> int:
        """Size of all files. The program may remove files and folders meanwhile."""
        folders, total = [] if self.folder is None else [str(self.folder)], 0
        while folders:
            with suppress(OSError), os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        return total


@dataclass(frozen=True)
class _Process:
    """`seconds`: processor time, with that of ended children."""

    name: str
    seconds: float


def _tree(root: int) -> Iterator[_Process]:
    """A process and its descendants, in whatever sessions."""
    ticks = os.sysconf("SC_CLK_TCK")
    processes: dict[int, _Process] = {}
    children = defaultdict[int, list[int]](list)
    for number in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError, ValueError):
            stat = Path("/proc", number, "stat").read_text(errors="replace")
            # Fields from the third on follow the name in parentheses, which may contain any.
            start, _, fields = stat.rpartition(")")
            words = fields.split()
            seconds = sum(map(int, words[11:15])) / ticks
            processes[int(number)] = _Process(start.partition("(")[2], seconds)
            children[int(words[1])].append(int(number))
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        if pid in processes:
            yield processes.pop(pid)
            waiting += children[pid]
