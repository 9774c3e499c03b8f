"""Limits after which the workers of a process exit by themselves, as jobs of a batch system
should."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from dpstream.shared.messages import Message

MOST_DECLINED = 3
"""Tasks declined since one was last worked on, one of them twice, after which a process that leaves
when idle need not wait for others: what waited behind the first one has been here, too."""
MOST_KNOWN = 1000
"""Declined tasks that are remembered."""
STAGGER = 0.1
"""Largest part by which a lifetime is shortened at random, so that workers that were launched
together do not all leave at once."""


@dataclass
class ExitLimits:
    """Limits shared by all workers of a process; None: no limit."""

    max_tasks: int | None = None
    idle_exit: float | None = None
    """Seconds during which no worker of the process had a task."""
    lifetime: float | None = None
    """Seconds in which the process should end its work; shortened by up to `STAGGER`."""
    _started: float = field(default_factory=time.monotonic)
    _part: float = field(default_factory=lambda: random.uniform(1 - STAGGER, 1))
    _closed: bool = False
    """Whether the process ends: it was idle for long, or the time that is left was too short for a
    task."""
    _usual: dict[type[Message], float] = field(default_factory=dict)
    """Usual seconds of a task, by command: an average that favours the latest."""
    _taken: int = 0
    _working: int = 0
    _declined: Counter[str] = field(default_factory=Counter)
    """How often each task was declined since one was last worked on."""
    _declined_why: str = ""
    _has_worked: bool = False
    _idle_since: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def over(self) -> bool:
        with self._lock:
            # Once one worker leaves, none takes another task: the process would go on with fewer.
            self._closed = self._closed or self._is_idle_for_long() or self._is_of_no_use()
            return self._is_full() or not self._has_time(0.0)

    def begin(self) -> None:
        """The process is connected: it is idle from now on."""
        with self._lock:
            self._idle_since = time.monotonic()

    def admit(self, kind: type[Message] | None = None) -> bool:
        """Reserve a place for one more task, a command of this kind, until `release`; False if a
        limit is reached."""
        with self._lock:
            usual = 0.0 if kind is None else self._usual.get(kind, 0.0)
            if self._is_full() or not self._has_time(usual):
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
                self._has_worked = True
                self._declined.clear()
            else:
                self._taken -= 1

    def decline(self, task: str, reason: str) -> bool:
        """Takes in that a worker of the process cannot serve a task; whether it was declined
        before. As long as it was not, there may be others behind it that a worker can serve."""
        with self._lock:
            if len(self._declined) == MOST_KNOWN and task not in self._declined:
                self._declined.clear()
            self._declined[task] += 1
            self._declined_why = reason
            again = self._declined[task] > 1
            self._idle_since = self._idle_since if again else time.monotonic()
            return again

    @property
    def declined_all(self) -> str | None:
        """Why the last task was declined, if every task was; None if one was worked on, or none
        came."""
        return self._declined_why if self._declined_why and not self._has_worked else None

    def learn(self, kind: type[Message], seconds: float) -> None:
        """Takes in how long a task took at any worker of the process."""
        with self._lock:
            self._usual[kind] = (self._usual.get(kind, seconds) + seconds) / 2

    def _has_time(self, usual: float) -> bool:
        """Whether a task can end within the lifetime. Once one cannot, no other is taken: it would
        be returned to the queue and delivered here again and again."""
        if self.lifetime is not None:
            end = self._started + self.lifetime * self._part
            self._closed = self._closed or time.monotonic() + usual >= end
        return not self._closed

    def _is_full(self) -> bool:
        return self.max_tasks is not None and self._taken >= self.max_tasks

    def _is_idle_for_long(self) -> bool:
        if self.idle_exit is None or self._working:
            return False
        return time.monotonic() - self._idle_since >= self.idle_exit

    def _is_of_no_use(self) -> bool:
        is_to_leave = self.idle_exit is not None and not self._working
        times = self._declined.values()
        return is_to_leave and sum(times) >= MOST_DECLINED and max(times) > 1
