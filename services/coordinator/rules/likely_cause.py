"""Names what most probably keeps a stage from converging, from the trajectories and frames of its
last round."""

from __future__ import annotations

from collections import Counter

from dpstream.services.coordinator.state import Round, State
from dpstream.shared.messages import RoundJudged
from dpstream.shared.spec import AutoTrust
from dpstream.shared.values import Counts

MOSTLY = 0.9
"""Share of trajectories or frames that decides."""


def failed_trajectories(current: Round) -> str | None:
    """How many trajectories of the round were abandoned, with the most frequent reason; None unless
    nearly all were."""
    tallies = current.tallies.values()
    reasons = Counter(" ".join(tally.failure.split()) for tally in tallies if tally.failure)
    if not reasons or reasons.total() < MOSTLY * len(tallies):
        return None
    reason = min(reasons, key=lambda why: (-reasons[why], why))
    return f"{reasons.total()} of {len(tallies)} trajectories failed: {reason}"


def likely_cause(state: State, last: RoundJudged) -> str | None:
    """What to look at first when the stage ends without convergence after its `last` round; None
    if the frames suggest nothing, or if the verdict on the round names the cause."""
    spec, stage = state.spec, state.exploration.stage
    found = sum(last.counts.values(), Counts())
    if (
        last.trajectories_failed
        or not found.total
        or stage.rejected > MOSTLY * max(1, stage.answered)
    ):
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
