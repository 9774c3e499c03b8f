"""How long the rounds of a campaign take: by the ledger, and as a live view sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from dpstream.services.coordinator.views.overview import CampaignOverview
from dpstream.services.coordinator.views.projection import Changes, Projection
from dpstream.shared.messages import RoundJudged


@dataclass
class Pace(Projection):
    """`seconds`: from each round to the next, oldest first."""

    seconds: list[float] = field(default_factory=list)
    _judged: float | None = None
    """When the last round was judged, s since the epoch."""
    _seen: tuple[int, int] | None = None
    """Stages that are over, and the round, when a live view last looked."""
    _began: float | None = None
    """When that round began, on the clock of the view; None: before it looked."""

    def observe(self, now: CampaignOverview, time: float) -> None:
        """Where the campaign stands at `time`, s."""
        current = (now.stages_over, now.round)
        if current == self._seen:
            return
        if self._began is not None:
            self.seconds.append(time - self._began)
        self._began = None if self._seen is None else time
        self._seen = current

    def _round_judged(self, decision: RoundJudged) -> None:
        if self._judged is not None:
            self.seconds.append(decision.time - self._judged)
        self._judged = decision.time

    CHANGES: ClassVar[Changes] = {RoundJudged: _round_judged}
