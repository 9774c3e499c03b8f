"""Which frames are labelled though nothing asks for it: the audit's draw from the reservoirs.

Every picked frame carries the inverse of the probability that it was drawn, so that weighted means
over audit frames estimate means over all explored frames (W. G. Cochran, Sampling Techniques, 3rd
ed., ch. 10–11: sampling in stages).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dpstream.services.explorer.selection.choose import (
    OVER,
    Candidate,
    Pick,
    Refusals,
    Selected,
    Spacing,
    Taken,
    deal,
    distinct,
)

FAILED_SHARE = 0.25
"""Largest share of an audit drawn from failed frames: they are kept for calibration only, and the
fewer of them are labelled, the more labels measure the frames that claim to be accurate."""


@dataclass(frozen=True)
class AuditRules:
    """How many, over at least how many trajectories, how far apart (ps)."""

    audits: int
    seed: int
    min_trajectories: int = 5
    min_separation: float = 0.1

    @property
    def per_trajectory(self) -> int:
        """Most frames of one trajectory, such that `min_trajectories` can be reached."""
        return max(1, self.audits // self.min_trajectories)


def draw_audit(
    reservoir: Iterable[Candidate],
    rules: AuditRules,
    taken: Taken | None = None,
    labels: Sequence[Candidate] = (),
) -> Selected:
    """A seeded draw of accurate and failed frames, dealt over conditions and trajectories.

    `reservoir`: frames that passed the geometry filters, with their reservoir weight; `taken`:
    times used earlier; `labels`: frames chosen for training in the same breath, which the audit
    neither repeats nor comes near.
    """
    refusals = Refusals()
    trained = {c.key for c in labels}
    pool = [c for c in distinct(reservoir, refusals) if c.key not in trained]
    draw = _Draw(rules, taken or {}, labels)
    failed_quota = math.ceil(FAILED_SHARE * rules.audits)
    failed = draw.deal([c for c in pool if c.failed], failed_quota)
    accurate = draw.deal([c for c in pool if not c.failed], rules.audits - len(failed))
    picks = _weighted(accurate, pool) + _weighted(failed, pool)
    left = len(pool) - len(picks)
    return Selected(tuple(picks), dict(refusals.counts) | ({OVER: left} if left else {}))


class _Draw:
    """Audit frames drawn so far, and what keeps them apart."""

    def __init__(self, rules: AuditRules, taken: Taken, labels: Sequence[Candidate]) -> None:
        self._rules = rules
        self._spacing = Spacing(rules.min_separation, taken)
        for candidate in labels:
            self._spacing.add(candidate)
        self._by_trajectory: Counter[str] = Counter()

    def deal(self, pool: Sequence[Candidate], quota: int) -> list[Candidate]:
        """At most `quota` frames of `pool`, one trajectory after another."""
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


def _weighted(drawn: Sequence[Candidate], pool: Sequence[Candidate]) -> list[Pick]:
    """The drawn frames of one class with their weights: reservoir weight × conditions over those
    drawn from × trajectories of the condition over those drawn from × the trajectory's frames in
    the reservoir over those drawn."""
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
        picks.append(Pick(c, f"audit: random draw of {kind} frame at {c.condition}", weight))
    return picks


def _distinct_trajectories(frames: Sequence[Candidate], like: Candidate) -> int:
    return len({c.trajectory for c in frames if c.condition == like.condition})


def _frames_beside(frames: Sequence[Candidate], like: Candidate) -> int:
    return sum((c.condition, c.trajectory) == (like.condition, like.trajectory) for c in frames)
