"""How much of the workers is used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Use:
    """How much of the workers of one service is used, in slot-seconds: all the time, and while
    tasks wait for them."""

    present: int = 0
    busy: int = 0
    waits: bool = False
    """Whether tasks wait, as of the coordinator's last pass."""
    present_seconds: float = 0.0
    busy_seconds: float = 0.0
    present_waiting: float = 0.0
    busy_waiting: float = 0.0
    _counted: float = 0.0

    def count(self, now: float) -> None:
        """Counts the time since the last change; call it before each."""
        passed, self._counted = now - self._counted, now
        self.present_seconds += passed * self.present
        self.busy_seconds += passed * self.busy
        if self.waits:
            self.present_waiting += passed * self.present
            self.busy_waiting += passed * self.busy
