"""Batch selection: chooses which frames of a pool are labelled, with a reason for each.

Pure functions from candidates to picks: the picked candidates, each with the reason. The picks do
not depend on the order of the pool, equal seeds give equal picks, and every candidate that is not
picked is counted under a reason.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from dpstream.services.explorer.selection.diversity import Environments, FarthestPoint
from dpstream.services.explorer.selection.geometry import Refusal
from dpstream.shared.values import Condition, is_offered

SLACK = 1e-6
"""ps; rounding of times, so that frames exactly `min_separation` apart are accepted."""
DIVERSE_POOL = 1000
"""Maximum frames of a diverse draw; a larger pool is first reduced by a balanced random draw."""

NO_DEVIATION = "deviation is not a number"
DUPLICATE = "duplicate"
SHARE = "limit of its trajectory reached"
NEAR = "too close in time to another frame of its trajectory"
OVER_SYSTEM = "limit of its system reached"
NOT_LARGE = "not among the largest deviations of its system"
TOO_FEW = "too few candidates of its system"
OVER = "limit of the selection reached"


@dataclass(frozen=True)
class Candidate:
    """One frame of the pool: row `row` of pool item `item`.

    time_ps: time in its trajectory, of planned length planned_ps; deviation: max force deviation,
    eV/Å; weight: inverse probability that the frame is in the pool or, once it is picked, in the
    sample; reason: why it was picked.
    """

    key: str
    trajectory: str
    condition: Condition
    version: int
    time_ps: float
    planned_ps: float
    deviation: float
    item: int
    row: int
    weight: float = 1.0
    failed: bool = False
    reason: str = ""

    def picked(self, reason: str, weight: float = 1.0) -> Candidate:
        return replace(self, reason=reason, weight=weight)

    def time_bin(self, bins: int) -> int:
        """Index, from 0, of the frame's part when the planned trajectory has `bins` equal parts."""
        share = self.time_ps / self.planned_ps if self.planned_ps > 0 else 0.0
        return min(max(int(share * bins + SLACK), 0), bins - 1)


@dataclass
class Refusals:
    """Candidates not picked: counts by reason, and reasons by key except for the selection's limit
    and duplicates."""

    counts: Counter[str] = field(default_factory=Counter)
    by_key: dict[str, str] = field(default_factory=dict)

    def add(self, candidate: Candidate, refusal: Refusal) -> None:
        self.counts[refusal.reason] += 1
        if refusal.reason not in (OVER, DUPLICATE):  # a duplicate has the key of the kept frame
            self.by_key.setdefault(candidate.key, str(refusal))


@dataclass(frozen=True)
class Selected:
    """Picks in order; numbers of candidates not picked, by reason."""

    picks: tuple[Candidate, ...]
    refused: Mapping[str, int]
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Reasons of individual refusals, by key."""


Taken = Mapping[str, Sequence[float]]
"""Times in ps of frames chosen earlier, under any committee version, by trajectory."""
Used = Mapping[str, int]
"""Numbers of frames chosen earlier under this committee version, by trajectory."""


@dataclass(frozen=True)
class SelectionRules:
    """Numbers, spacing and policy of a selection."""

    labels: int
    seed: int
    policy: Literal["random", "uniform", "max-deviation", "diverse", "least-deviation"] = "random"
    per_system: int | None = None
    caps: Mapping[str, int] = field(default_factory=dict)
    min_per_system: int = 0
    pool_size: int | None = None
    pool_share: float | None = None
    per_trajectory: int = 1
    min_separation: float = 0.1
    time_bins: int = 4

    def cap(self, system: str) -> float:
        """Maximum frames of one system."""
        default = math.inf if self.per_system is None else self.per_system
        return self.caps.get(system, default)


class Spacing:
    """Times of chosen frames by trajectory, at least `separation` ps apart."""

    def __init__(self, separation: float, taken: Taken) -> None:
        self.separation = separation
        self._times = defaultdict(list, {t: list(times) for t, times in taken.items()})

    def is_near(self, candidate: Candidate) -> bool:
        return self.nearest(candidate) < self.separation - SLACK

    def nearest(self, candidate: Candidate) -> float:
        """Time in ps to the nearest chosen frame; infinite without one."""
        times = self._times.get(candidate.trajectory, ())
        return min((abs(t - candidate.time_ps) for t in times), default=math.inf)

    def add(self, candidate: Candidate) -> None:
        self._times[candidate.trajectory].append(candidate.time_ps)


class SelectionLimits:
    """Limits and spacing of a selection in progress. Chosen frames are never removed, so that a
    refusal is final."""

    def __init__(self, rules: SelectionRules, taken: Taken, used: Used) -> None:
        self.rules, self._used = rules, used
        self.spacing = Spacing(rules.min_separation, taken)
        self._by_system: Counter[str] = Counter()
        self._by_trajectory: Counter[tuple[str, int]] = Counter()
        self.chosen: list[Candidate] = []

    @property
    def full(self) -> bool:
        return len(self.chosen) >= self.rules.labels

    def refuses(self, candidate: Candidate) -> Refusal | None:
        """Reason why this candidate cannot be chosen any more, or None."""
        rules = self.rules
        if self._share_used(candidate) >= rules.per_trajectory:
            return Refusal(SHARE, f"{rules.per_trajectory} frames")
        if self.spacing.is_near(candidate):
            gap = self.spacing.nearest(candidate)
            return Refusal(NEAR, f"{gap:.3g} ps, at least {rules.min_separation:g} ps")
        cap = rules.cap(candidate.condition.system)
        if self._by_system[candidate.condition.system] >= cap:
            return Refusal(OVER_SYSTEM, f"{cap:g} frames")
        return Refusal(OVER) if self.full else None

    def admit(self, candidate: Candidate) -> bool:
        """Choose the candidate if the limits allow it."""
        if self.refuses(candidate) is not None:
            return False
        self.chosen.append(candidate)
        self.spacing.add(candidate)
        self._by_system[candidate.condition.system] += 1
        self._by_trajectory[candidate.trajectory, candidate.version] += 1
        return True

    def _share_used(self, candidate: Candidate) -> int:
        here = self._by_trajectory[candidate.trajectory, candidate.version]
        return here + self._used.get(candidate.trajectory, 0)


Describe = Callable[[Sequence[Candidate]], Environments]


def choose(
    candidates: Iterable[Candidate],
    rules: SelectionRules,
    taken: Taken | None = None,
    describe: Describe | None = None,
    used: Used | None = None,
) -> Selected:
    """Picks from `candidates` (already filtered by geometry), by the policy of `rules`.

    `taken`, `used`: frames of the same trajectories chosen earlier; `describe`: descriptors of the
    atoms of the given candidates, required by the policy `diverse` (else ValueError).
    """
    refusals = Refusals()
    pool = _largest(distinct(candidates, refusals), rules, refusals)
    pool = _worthwhile(pool, rules, refusals)
    limits = SelectionLimits(rules, taken or {}, used or {})
    if rules.policy == "diverse":
        picks = _diverse(pool, limits, describe)
    elif rules.policy == "random":
        picks = _random(pool, limits)
    elif rules.policy == "uniform":
        picks = _uniform(pool, limits)
    else:
        picks = _by_deviation(pool, limits)
    chosen = {pick.key for pick in picks}
    for candidate in pool:
        if candidate.key not in chosen:
            refusals.add(candidate, limits.refuses(candidate) or Refusal(OVER))
    reasons = {key: why for key, why in refusals.by_key.items() if key not in chosen}
    return Selected(tuple(picks), dict(sorted(refusals.counts.items())), reasons)


def distinct(candidates: Iterable[Candidate], refusals: Refusals) -> list[Candidate]:
    """Candidates with finite deviations, sorted by key, each key once (with the newest verdict);
    the others are added to `refusals`."""
    pool: dict[str, Candidate] = {}
    for c in sorted(candidates, key=_identity):
        if not math.isfinite(c.deviation):
            refusals.add(c, Refusal(NO_DEVIATION))
        elif c.key in pool:
            refusals.add(c, Refusal(DUPLICATE))
        else:
            pool[c.key] = c
    return list(pool.values())


def _largest(
    pool: Sequence[Candidate], rules: SelectionRules, refusals: Refusals
) -> Sequence[Candidate]:
    """Per system the `pool_size` candidates, or `pool_share` of them, with the largest deviations;
    the others are added to `refusals`. Offered frames belong to no system and are kept."""
    if rules.pool_size is None and rules.pool_share is None:
        return pool
    kept = {c for c in pool if is_offered(c.trajectory)}
    systems: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in sorted(set(pool) - kept, key=lambda c: (-c.deviation, c.key)):
        systems[candidate.condition.system].append(candidate)
    for ranked in systems.values():
        count = max(rules.pool_size or 0, int((rules.pool_share or 0.0) * len(ranked)))
        kept.update(ranked[:count])
        for candidate in ranked[count:]:
            refusals.add(candidate, Refusal(NOT_LARGE, f"{count} of {len(ranked)}"))
    return [c for c in pool if c in kept]


def _worthwhile(
    pool: Sequence[Candidate], rules: SelectionRules, refusals: Refusals
) -> list[Candidate]:
    """Candidates of systems with at least `min_per_system` of them; the others are added to
    `refusals`. Offered frames belong to no system and are kept."""
    available = Counter(c.condition.system for c in pool)
    poor = {s for s, n in available.items() if min(n, rules.cap(s)) < rules.min_per_system}
    worth = [c for c in pool if c.condition.system not in poor or is_offered(c.trajectory)]
    for candidate in set(pool) - set(worth):
        refusals.add(candidate, Refusal(TOO_FEW, f"at least {rules.min_per_system} required"))
    return worth


def _identity(c: Candidate) -> tuple[str, int, str, float, str, float, bool]:
    """Sort key from all fields except the place in the pool."""
    return c.key, -c.version, c.trajectory, c.time_ps, str(c.condition), c.deviation, c.failed


def draw_number(seed: int, *parts: object) -> bytes:
    """A random number as bytes, determined by `seed` and `parts` alone, independent of the rest of
    the pool."""
    return hashlib.sha256("\x1f".join(str(p) for p in (seed, *parts)).encode()).digest()


Stratum = tuple[Hashable, Hashable]
"""Condition or source, and what divides it further."""


def deal(
    candidates: Iterable[Candidate],
    stratum_of: Callable[[Candidate], Stratum],
    seed: int,
    admit: Callable[[Candidate], bool],
    full: Callable[[], bool],
) -> None:
    """Offer candidates to `admit` in a seeded random order, balanced over strata. The next
    candidate comes from the condition with the fewest admitted candidates; within it from the
    stratum with the fewest; among equal strata from the one whose second part (time bin or
    trajectory) has the fewest over all conditions."""
    strata: dict[Stratum, list[Candidate]] = defaultdict(list)
    for candidate in sorted(candidates, key=lambda c: draw_number(seed, c.key), reverse=True):
        strata[stratum_of(candidate)].append(candidate)
    dealt: Counter[Hashable] = Counter()
    tie = {s: draw_number(seed, *s) for s in strata}

    def turn(s: Stratum) -> tuple[int, int, int, bytes]:
        return dealt["condition", s[0]], dealt[s], dealt["second", s[1]], tie[s]

    while strata and not full():
        stratum = min(strata, key=turn)
        if any(admit(c) for c in _popping(strata[stratum])):
            dealt.update([("condition", stratum[0]), stratum, ("second", stratum[1])])
        if not strata[stratum]:
            del strata[stratum]


def _popping(pile: list[Candidate]) -> Iterable[Candidate]:
    while pile:
        yield pile.pop()


def _random(pool: Sequence[Candidate], limits: SelectionLimits) -> list[Candidate]:
    """A seeded random draw, balanced over conditions and bins of trajectory time."""
    bins = limits.rules.time_bins
    deal(
        pool,
        lambda c: (c.condition, c.time_bin(bins)),
        limits.rules.seed,
        limits.admit,
        lambda: limits.full,
    )
    text = "random draw from {}, time bin {} of {}"
    return [c.picked(text.format(c.condition, c.time_bin(bins) + 1, bins)) for c in limits.chosen]


def _uniform(pool: Sequence[Candidate], limits: SelectionLimits) -> list[Candidate]:
    """A seeded random draw in which every explored candidate is equally likely. Explored frames and
    those of each generator are taken in turn, so that none crowds out the others."""

    def source(candidate: Candidate) -> Stratum:
        return candidate.condition if is_offered(candidate.trajectory) else "explored", None

    deal(pool, source, limits.rules.seed, limits.admit, lambda: limits.full)
    return [c.picked(f"uniform draw, from {c.condition}") for c in limits.chosen]


def _by_deviation(pool: Sequence[Candidate], limits: SelectionLimits) -> list[Candidate]:
    """Largest deviations first or, by the policy `least-deviation`, smallest first."""
    if limits.rules.policy == "least-deviation":
        order = sorted(pool, key=lambda c: (c.deviation, c.key))
        text = "no candidates: least-deviating failed frame of {} left, {:.3g} eV/Å"
    else:
        order = sorted(pool, key=lambda c: (-c.deviation, c.key))
        text = "largest deviation left, {1:.3g} eV/Å, at {0}"
    for candidate in order:
        limits.admit(candidate)
    return [c.picked(text.format(c.condition, c.deviation)) for c in limits.chosen]


def _diverse(
    pool: Sequence[Candidate], limits: SelectionLimits, describe: Describe | None
) -> list[Candidate]:
    """Farthest-point draw over the environments of uncertain atoms, starting with the largest
    deviation: every pick has the atom farthest from all uncertain atoms picked before."""
    if describe is None:
        raise ValueError("a diverse draw needs descriptors")
    pool = _thinned(pool, limits.rules)
    space = FarthestPoint(describe(pool)) if pool else None
    picks: list[Candidate] = []
    waiting = set(range(len(pool)))
    while space is not None and waiting and not limits.full:
        distance = space.distances()
        best = max(waiting, key=lambda i: (distance[i], pool[i].deviation, pool[i].key))
        waiting.remove(best)
        if limits.admit(pool[best]):
            picks.append(pool[best].picked(_why_diverse(float(distance[best]), pool[best])))
            space.pick(best)
    return picks


def _why_diverse(distance: float, candidate: Candidate) -> str:
    if math.isinf(distance):
        return f"largest deviation of environments new to the draw, at {candidate.condition}"
    return f"farthest from the draw so far (distance {distance:.3g}), at {candidate.condition}"


def _thinned(pool: Sequence[Candidate], rules: SelectionRules) -> Sequence[Candidate]:
    """At most `DIVERSE_POOL` candidates, balanced over conditions and time bins, including the one
    with the largest deviation."""
    if len(pool) <= DIVERSE_POOL:
        return pool
    worst = max(pool, key=lambda c: (c.deviation, c.key))
    kept = [worst]

    def keep(candidate: Candidate) -> bool:
        kept.append(candidate)
        return True

    deal(
        [c for c in pool if c is not worst],
        lambda c: (c.condition, c.time_bin(rules.time_bins)),
        rules.seed,
        keep,
        lambda: len(kept) >= DIVERSE_POOL,
    )
    return sorted(kept, key=lambda c: c.key)
