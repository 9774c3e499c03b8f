"""Batch selection: which frames of a pool are labelled, and why.

Pure functions from records to picks. The pool's order does not matter, equal seeds give equal
picks, and every candidate that is not picked is counted under a reason, and told what it lacked.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dpstream.services.explorer.selection.diversity import Environments, FarthestPoint
from dpstream.services.explorer.selection.geometry import Refusal
from dpstream.shared.values import Condition, is_offered

SLACK = 1e-6
"""ps; times are written to this, so frames exactly `min_separation` apart pass."""
DIVERSE_POOL = 1000
"""Most frames a diverse draw describes: a balanced random draw stands for a larger pool."""

NO_DEVIATION = "deviation is not a number"
DUPLICATE = "duplicate"
SHARE = "its trajectory has had its share"
NEAR = "near another of its trajectory"
OVER_SYSTEM = "over the cap of its system"
TOO_FEW = "too few of its system"
OVER = "over the cap"


@dataclass(frozen=True)
class Candidate:
    """One frame that waits to be chosen: row `row` of pool item `item`.

    time_ps, planned_ps: where in its trajectory it lies and how long that was to be; deviation:
    max force deviation, eV/Å; weight: inverse probability that the frame is in the pool at all.
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

    def time_bin(self, bins: int) -> int:
        """Which of `bins` equal parts of the planned trajectory this frame lies in, from 0."""
        share = self.time_ps / self.planned_ps if self.planned_ps > 0 else 0.0
        return min(max(int(share * bins + SLACK), 0), bins - 1)


@dataclass(frozen=True)
class Pick:
    candidate: Candidate
    reason: str
    weight: float = 1.0


@dataclass
class Refusals:
    """Candidates not picked: counted by reason; by key what was refused for more than want of
    slots."""

    counts: Counter[str] = field(default_factory=Counter)
    by_key: dict[str, str] = field(default_factory=dict)

    def add(self, candidate: Candidate, refusal: Refusal) -> None:
        self.counts[refusal.reason] += 1
        if refusal.reason not in (OVER, DUPLICATE):  # the key of a duplicate is that of its twin
            self.by_key.setdefault(candidate.key, str(refusal))


@dataclass(frozen=True)
class Selected:
    """Picks in the order they were made; candidates not picked, counted by reason."""

    picks: tuple[Pick, ...]
    refused: Mapping[str, int]
    told: Mapping[str, str] = field(default_factory=dict)
    """What some were refused for, by key."""


Taken = Mapping[str, Sequence[float]]
"""Times in ps of frames chosen earlier, under any committee version, by trajectory."""
Used = Mapping[str, int]
"""How many of them were chosen under this version, by trajectory."""


@dataclass(frozen=True)
class SelectionRules:
    """How many, how far apart, by which policy."""

    labels: int
    seed: int
    policy: Literal["random", "max-deviation", "diverse", "least-deviation"] = "random"
    per_system: int | None = None
    caps: Mapping[str, int] = field(default_factory=dict)
    min_per_system: int = 0
    per_trajectory: int = 1
    min_separation: float = 0.1
    time_bins: int = 4

    def cap(self, system: str) -> float:
        """Most frames of one system."""
        default = math.inf if self.per_system is None else self.per_system
        return self.caps.get(system, default)


class Spacing:
    """Times in use, by trajectory: at least `separation` ps between any two."""

    def __init__(self, separation: float, taken: Taken) -> None:
        self.separation = separation
        self._times = defaultdict(list, {t: list(times) for t, times in taken.items()})

    def is_near(self, candidate: Candidate) -> bool:
        return self.nearest(candidate) < self.separation - SLACK

    def nearest(self, candidate: Candidate) -> float:
        """ps to the next time in use; infinite where there is none."""
        times = self._times.get(candidate.trajectory, ())
        return min((abs(t - candidate.time_ps) for t in times), default=math.inf)

    def add(self, candidate: Candidate) -> None:
        self._times[candidate.trajectory].append(candidate.time_ps)


class Room:
    """What may still be chosen: the caps, and the spacing within trajectories. A refusal is for
    good: nothing that is chosen is ever given back."""

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
        """Why there is no room for this candidate, or None."""
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
        """Choose the candidate, if there is room for it."""
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
    atoms of the given candidates, needed by `diverse` only. Raises ValueError without it.
    """
    refusals = Refusals()
    pool = _worthwhile(distinct(candidates, refusals), rules, refusals)
    room = Room(rules, taken or {}, used or {})
    if rules.policy == "diverse":
        picks = _diverse(pool, room, describe)
    elif rules.policy == "random":
        picks = _random(pool, room)
    else:
        picks = _by_deviation(pool, room)
    chosen = {pick.candidate.key for pick in picks}
    for candidate in pool:
        if candidate.key not in chosen:
            refusals.add(candidate, room.refuses(candidate) or Refusal(OVER))
    told = {key: why for key, why in refusals.by_key.items() if key not in chosen}
    return Selected(tuple(picks), dict(sorted(refusals.counts.items())), told)


def distinct(candidates: Iterable[Candidate], refusals: Refusals) -> list[Candidate]:
    """The candidates sorted by key, each key once (the newest verdict), with finite deviations;
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


def _worthwhile(
    pool: Sequence[Candidate], rules: SelectionRules, refusals: Refusals
) -> list[Candidate]:
    """The candidates of systems with enough to label; the others are added to `refusals`. Offered
    frames belong to no system."""
    found = Counter(c.condition.system for c in pool)
    poor = {s for s, n in found.items() if min(n, rules.cap(s)) < rules.min_per_system}
    worth = [c for c in pool if c.condition.system not in poor or is_offered(c.trajectory)]
    for candidate in set(pool) - set(worth):
        refusals.add(candidate, Refusal(TOO_FEW, f"at least {rules.min_per_system} are wanted"))
    return worth


def _identity(c: Candidate) -> tuple[str, int, str, float, str, float, bool]:
    """Everything that tells two records apart but for their place in the pool."""
    return c.key, -c.version, c.trajectory, c.time_ps, str(c.condition), c.deviation, c.failed


def luck(seed: int, *parts: object) -> bytes:
    """A number drawn for something, as bytes: it depends on the seed and on what it is drawn for,
    and not on what else is in the pool."""
    return hashlib.sha256("\x1f".join(str(p) for p in (seed, *parts)).encode()).digest()


Stratum = tuple[Condition, Hashable]


def deal(
    candidates: Iterable[Candidate],
    stratum_of: Callable[[Candidate], Stratum],
    seed: int,
    admit: Callable[[Candidate], bool],
    full: Callable[[], bool],
) -> None:
    """Offer candidates to `admit` in a seeded random order dealt over strata: the next one comes
    from the condition dealt from least, there from the stratum dealt from least, and among those
    from the one whose second part (time bin, trajectory) was dealt from least anywhere."""
    strata: dict[Stratum, list[Candidate]] = defaultdict(list)
    for candidate in sorted(candidates, key=lambda c: luck(seed, c.key), reverse=True):
        strata[stratum_of(candidate)].append(candidate)
    dealt: Counter[Hashable] = Counter()
    tie = {s: luck(seed, *s) for s in strata}

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


def _random(pool: Sequence[Candidate], room: Room) -> list[Pick]:
    """A seeded draw, dealt over (system, temperature, pressure, bin of trajectory time)."""
    bins = room.rules.time_bins
    deal(
        pool,
        lambda c: (c.condition, c.time_bin(bins)),
        room.rules.seed,
        room.admit,
        lambda: room.full,
    )
    text = "random draw from {}, time bin {} of {}"
    return [Pick(c, text.format(c.condition, c.time_bin(bins) + 1, bins)) for c in room.chosen]


def _by_deviation(pool: Sequence[Candidate], room: Room) -> list[Pick]:
    """The largest deviations first; or the smallest, where nothing better than failed is left."""
    if room.rules.policy == "least-deviation":
        order = sorted(pool, key=lambda c: (c.deviation, c.key))
        text = "no candidates: least-deviating failed frame of {} left, {:.3g} eV/Å"
    else:
        order = sorted(pool, key=lambda c: (-c.deviation, c.key))
        text = "largest deviation left, {1:.3g} eV/Å, at {0}"
    for candidate in order:
        room.admit(candidate)
    return [Pick(c, text.format(c.condition, c.deviation)) for c in room.chosen]


def _diverse(pool: Sequence[Candidate], room: Room, describe: Describe | None) -> list[Pick]:
    """Farthest-point draw on the environments of the uncertain atoms, from the largest deviation
    on: every pick has the atom least like any uncertain atom picked before."""
    if describe is None:
        raise ValueError("a diverse draw needs descriptors")
    pool = _thinned(pool, room.rules)
    space = FarthestPoint(describe(pool)) if pool else None
    picks: list[Pick] = []
    waiting = set(range(len(pool)))
    while space is not None and waiting and not room.full:
        distance = space.distances()
        best = max(waiting, key=lambda i: (distance[i], pool[i].deviation, pool[i].key))
        waiting.remove(best)
        if room.admit(pool[best]):
            picks.append(Pick(pool[best], _why_diverse(float(distance[best]), pool[best])))
            space.pick(best)
    return picks


def _why_diverse(distance: float, candidate: Candidate) -> str:
    if math.isinf(distance):
        return f"largest deviation of environments new to the draw, at {candidate.condition}"
    return f"farthest from the draw so far (distance {distance:.3g}), at {candidate.condition}"


def _thinned(pool: Sequence[Candidate], rules: SelectionRules) -> Sequence[Candidate]:
    """At most `DIVERSE_POOL` candidates, dealt over conditions and time bins; always the one of
    largest deviation."""
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
