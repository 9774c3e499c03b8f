"""The outcome of one arm of the benchmark."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """Times are seconds since the epoch. `ready`: when the committee trained on all labels was
    ready; `ended`: when the run ended. `busy`: intervals in which a slot worked; `processes`:
    number of started processes by kind; `polling`: time between the end of stages and its
    detection, s."""

    arm: str
    started: float
    ready: float
    ended: float
    labels: int
    models: tuple[str, ...]
    busy: tuple[tuple[float, float], ...]
    processes: dict[str, int]
    polling: float

    @property
    def wall(self) -> float:
        """Wall time to the committee trained on all labels, s; this is what is compared."""
        return self.ready - self.started
