"""Names what most probably keeps a stage from converging, from the frames of its last round."""

from __future__ import annotations

from dpstream.services.coordinator.state import State
from dpstream.shared.messages import RoundJudged
from dpstream.shared.spec import AutoTrust
from dpstream.shared.values import Counts

MOSTLY = 0.9
"""Share of frames that decides."""


def likely_cause(state: State, last: RoundJudged) -> str | None:
    """What to look at first when the stage ends without convergence after its `last` round; None
    if the frames suggest nothing."""
    spec, stage = state.spec, state.exploration.stage
    found = sum(last.counts.values(), Counts())
    if not found.total or stage.rejected > MOSTLY * max(1, stage.answered):
        return None
    if found.failed >= MOSTLY * found.total:
        return (
            "nearly all frames failed: check md.timestep, train on more initial data, begin with a "
            "cooler stage, or raise trust.high"
        )
    calibrated = isinstance(spec.stages[stage.index].trust or spec.trust, AutoTrust)
    if found.candidate >= MOSTLY * found.total and not calibrated:
        return (
            "nearly all frames are candidates: trust.low may be below what the training reaches; "
            "raise it, lengthen the training, or label more per round"
        )
    if last.outcome == "stuck" and found.candidate:
        return "candidates were found and none was chosen: check the limits of selection"
    if found.candidate:
        return "candidates remain: raise budget.rounds or budget.labels"
    too_few = found.accurate < spec.convergence.accurate_ratio * found.total
    if too_few and not calibrated:
        return "no frame lies between the trust levels: lower trust.low or raise trust.high"
    return None
