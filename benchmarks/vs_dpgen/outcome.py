"""What one arm of the benchmark gave."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """Times are seconds since the epoch. `ready`: the committee trained on all labels is there;
    `ended`: the whole run is over. `busy`: intervals during which a slot worked; `processes`:
    started, by kind; `polling`: s, between the end of a stage's last process and its noticing."""

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
        """s, to the committee on all labels: what is compared."""
        return self.ready - self.started
