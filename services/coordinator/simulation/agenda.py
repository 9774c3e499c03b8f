"""Virtual time: what is due when. Nothing waits, and nothing runs beside anything else."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count

Due = tuple[float, int, Callable[[], object]]


@dataclass
class Agenda:
    """Actions that are due at the same time run in the order in which they were scheduled."""

    now: float = 0.0
    """Seconds since the simulation began."""
    _due: list[Due] = field(default_factory=list)
    _number: count[int] = field(default_factory=count)

    def after(self, seconds: float, action: Callable[..., object], *arguments: object) -> None:
        """Schedules `action(*arguments)`."""
        entry: Due = (self.now + seconds, next(self._number), partial(action, *arguments))
        heapq.heappush(self._due, entry)

    def step(self) -> bool:
        """Runs the next action; False if there is none."""
        if not self._due:
            return False
        self.now, _, action = heapq.heappop(self._due)
        action()
        return True
