"""Draws the audit frames: a random sample of accurate and failed frames from the reservoirs.

Every drawn frame carries its inverse inclusion probability as weight, so that weighted means over
audit frames estimate means over all explored frames (W. G. Cochran, Sampling Techniques, 3rd
ed., ch. 10–11: multi-stage sampling).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dpstream.services.explorer.selection.choose import (
    OVER,
    Candidate,
    Refusals,
    Selected,
    Spacing,
    Taken,
    deal,
    distinct,
)

FAILED_SHARE = 0.25
"""Largest share of failed frames in an audit. They serve only to calibrate trust levels; the other
labels measure the error of frames judged accurate."""


@dataclass(frozen=True)
class AuditRules:
    """Number of audit frames, minimum number of trajectories, minimum separation (ps)."""

    audits: int
    seed: int
    min_trajectories: int = 5
    min_separation: float = 0.1

    @property
    def per_trajectory(self) -> int:
        """Maximum frames of one trajectory such that `min_trajectories` can be reached."""
        return max(1, self.audits // self.min_trajectories)


def draw_audit(
    reservoir: Iterable[Candidate],
    rules: AuditRules,
    taken: Taken | None = None,
    labels: Sequence[Candidate] = (),
) -> Selected:
    """A seeded draw of accurate and failed frames, spread over conditions and trajectories.

    `reservoir`: frames that passed the geometry filters, with their reservoir weight; `taken`:
    times of frames chosen earlier; `labels`: frames chosen for training by the same task, which the
    audit neither repeats nor approaches in time.
    """
    refusals = Refusals()
    trained = {c.key for c in labels}
    pool = [c for c in distinct(reservoir, refusals) if c.key not in trained]
    draw = _Draw(rules, taken or {}, labels)
    failed_quota = math.ceil(FAILED_SHARE * rules.audits)
    failed = draw.deal([c for c in pool if c.failed], failed_quota)
    accurate = draw.deal([c for c in pool if not c.failed], rules.audits - len(failed))
    picks = _weighted(accurate, pool) + _weighted(failed, pool)
    remaining = len(pool) - len(picks)
    return Selected(tuple(picks), dict(refusals.counts) | ({OVER: remaining} if remaining else {}))


class _Draw:
    """Audit frames drawn so far, with the spacing between them."""

    def __init__(self, rules: AuditRules, taken: Taken, labels: Sequence[Candidate]) -> None:
        self._rules = rules
        self._spacing = Spacing(rules.min_separation, taken)
        for candidate in labels:
            self._spacing.add(candidate)
        self._by_trajectory: Counter[str] = Counter()

    def deal(self, pool: Sequence[Candidate], quota: int) -> list[Candidate]:
        """Draw at most `quota` frames of `pool`, spread over trajectories."""
        drawn: list[Candidate] = []

        def admit(c: Candidate) -> bool:
            if self._by_trajectory[c.trajectory] >= self._rules.per_trajectory:
                return False
            if self._spacing.is_near(c):
                return False
            drawn.append(c)
            self._spacing.add(c)
            self._by_trajectory[c.trajectory] += 1
            return True

        deal(
            pool,
            lambda c: (c.condition, c.trajectory),
            self._rules.seed,
            admit,
            lambda: len(drawn) >= quota,
        )
        return drawn


def _weighted(drawn: Sequence[Candidate], pool: Sequence[Candidate]) -> list[Candidate]:
    """The drawn frames of one class (accurate or failed) with their weights: reservoir weight ×
    conditions / drawn conditions × trajectories of the condition / drawn trajectories × frames of
    the trajectory in the reservoir / drawn frames."""
    if not drawn:
        return []
    whole = [c for c in pool if c.failed == drawn[0].failed]
    conditions = len({c.condition for c in whole}) / len({c.condition for c in drawn})
    picks = []
    for c in drawn:
        trajectories = _distinct_trajectories(whole, c) / _distinct_trajectories(drawn, c)
        frames = _frames_beside(whole, c) / _frames_beside(drawn, c)
        kind = "a failed" if c.failed else "an accurate"
        weight = c.weight * conditions * trajectories * frames
        picks.append(c.picked(f"audit: random draw of {kind} frame at {c.condition}", weight))
    return picks


def _distinct_trajectories(frames: Sequence[Candidate], like: Candidate) -> int:
    return len({c.trajectory for c in frames if c.condition == like.condition})


def _frames_beside(frames: Sequence[Candidate], like: Candidate) -> int:
    return sum((c.condition, c.trajectory) == (like.condition, like.trajectory) for c in frames)
