"""Decides how many workers each pool wants, and what to launch and to take back for it.

A pure function of the demand, of what stands, and of the time. Pools are filled in the order of
their price. A pool passes demand on to the next one when it is full, paused, over its budget or
unknown, or when its launches wait longer than its `patience`. Workers that run are never ended
here: they leave when their queue is empty.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from dpstream.services.coordinator.fleet.pools import LARGEST, PoolSettings
from dpstream.shared.ports import Launch


@dataclass(frozen=True)
class Demand:
    """Tasks of one queue in active campaigns; `seconds`: of a usual task, None before the first."""

    waiting: int = 0
    running: int = 0
    seconds: float | None = None
    declined: int = 0
    """Of those that wait: tasks of campaigns that workers of the queue have declined lately."""


@dataclass(frozen=True)
class PoolStanding:
    """What is known of one pool."""

    launches: tuple[Launch, ...] = ()
    unknown_since: float | None = None
    """When the engine could last be asked; None: the launches are those of now."""
    silence: str = ""
    """Why it could not be asked since."""
    blocked: str = ""
    """Why nothing may be launched: failed launches, a used-up budget."""
    declining: str = ""
    """Why nothing is launched for tasks that were declined."""
    closed: bool = False
    """Whether what waits is to be taken back as well."""
    ceiling: int | None = None
    """Workers beyond which the engine has refused a launch."""
    silent: int = 0
    """Running processes that should have been up long ago."""
    most: int | None = None
    """Largest launch that a quota is believed to allow."""
    coming: int = 0
    """Running processes that have sent no message yet."""
    start_time: float = 0.0
    """Seconds that workers took to start, 0 before the first."""

    @property
    def started(self) -> int:
        return sum(launch.started for launch in self.launches)

    @property
    def alive(self) -> int:
        return sum(launch.alive for launch in self.launches)


@dataclass(frozen=True)
class NewLaunch:
    pool: str
    count: int
    name: str
    warm: bool = False
    """Whether the workers stay when they are idle: those of the pool's `min`."""


@dataclass(frozen=True)
class Retirement:
    """Take back up to `most` waiting processes."""

    launch: Launch
    most: int


@dataclass(frozen=True)
class PoolVerdict:
    """How many workers a pool wants, how many of its slots have tasks, and what limits or holds
    it."""

    wanted: int
    busy_slots: int = 0
    reason: str = ""


@dataclass(frozen=True)
class FleetPlan:
    launches: tuple[NewLaunch, ...] = ()
    retirements: tuple[Retirement, ...] = ()
    verdicts: Mapping[str, PoolVerdict] = field(default_factory=dict)


def plan(
    demand: Mapping[str, Demand],
    standing: Mapping[str, PoolStanding],
    pools: Mapping[str, PoolSettings],
    now: float,
) -> FleetPlan:
    """What to do in this turn. `now`: seconds since the epoch."""
    waiting = {queue: float(each.waiting) for queue, each in demand.items()}
    running = {queue: each.running for queue, each in demand.items()}
    launches: list[NewLaunch] = []
    retirements: list[Retirement] = []
    verdicts: dict[str, PoolVerdict] = {}
    for name in sorted(pools, key=lambda each: (pools[each].price, each)):
        turn = _PoolTurn(name, pools[name], standing.get(name, PoolStanding()), demand, now)
        verdicts[name] = turn.decide(waiting, running)
        launches += turn.launches()
        retirements += turn.retirements()
    return FleetPlan(tuple(launches), tuple(retirements), verdicts)


def name_of(pool: str, now: float) -> str:
    """The name of a launch, which contains its time."""
    return f"{pool}-{int(now * 1000):x}"


def time_of(name: str) -> float:
    """When the launch with this name was made, seconds since the epoch; 0 if it does not say."""
    try:
        return int(name.rpartition("-")[2], 16) / 1000
    except ValueError:
        return 0.0


class _PoolTurn:
    """The decision about one pool."""

    def __init__(
        self,
        name: str,
        pool: PoolSettings,
        standing: PoolStanding,
        demand: Mapping[str, Demand],
        now: float,
    ) -> None:
        self.name, self.pool, self.standing, self.now = name, pool, standing, now
        self.per_slot = {
            queue: self._tasks_per_slot(demand.get(queue, Demand())) for queue in pool.serves
        }
        self.declined = {queue: demand[queue].declined for queue in pool.serves if queue in demand}
        self.wanted = 0

    def decide(self, waiting: dict[str, float], running: dict[str, int]) -> PoolVerdict:
        """The verdict. Takes what this pool provides for off `waiting` and `running`."""
        held = self._held_back(waiting)
        for queue, tasks in held.items():
            waiting[queue] -= tasks
        busy = self._busy_slots(running)
        worth = math.ceil((busy + self._slots_needed(waiting)) / self.pool.slots)
        self.wanted = min(self._limit(), max(self.pool.min, worth))
        provided = min(self.wanted, self._available()) * self.pool.slots - busy
        self._provide(max(0, provided), waiting)
        for queue, tasks in held.items():
            waiting[queue] += tasks
        reason = self._reason(worth) or (self.standing.declining if any(held.values()) else "")
        return PoolVerdict(self.wanted, busy, reason)

    def _held_back(self, waiting: Mapping[str, float]) -> dict[str, float]:
        """Waiting tasks by queue that the pool leaves to others, because its workers declined."""
        if not self.standing.declining:
            return {}
        return {queue: min(waiting[queue], tasks) for queue, tasks in self.declined.items()}

    def launches(self) -> Iterator[NewLaunch]:
        if self.pool.is_observed:
            return
        largest = min(self.standing.most or math.inf, LARGEST[self.pool.engine])
        alive = self.standing.alive
        missing = max(0, min(self.pool.min, self.wanted) - alive)
        count = int(min(missing or self.wanted - alive, self._step(), largest))
        if count > 0 and not self._is_held():
            yield NewLaunch(self.name, count, name_of(self.name, self.now), warm=missing > 0)

    def retirements(self) -> Iterator[Retirement]:
        surplus = self.standing.alive - self.wanted
        if self.standing.unknown_since is not None or self.pool.is_observed:
            return
        listed = [each for each in self.standing.launches if each.listed]
        for launch in sorted(listed, key=lambda each: -each.since):
            most = min(surplus, launch.waiting)
            if most > 0 and self.now - launch.since >= self.pool.cool_down:
                surplus -= most
                yield Retirement(launch, most)

    def _tasks_per_slot(self, demand: Demand) -> int:
        """Waiting tasks that are worth a process of their own per slot."""
        if not demand.seconds:
            return 1
        start_time = max(self.pool.start_time, self.standing.start_time)
        return max(1, math.ceil(self.pool.worth * start_time / demand.seconds))

    def _busy_slots(self, running: dict[str, int]) -> int:
        """Slots of started processes that running tasks take. A running task never causes a launch:
        its worker may be lost."""
        free = self.standing.started * self.pool.slots
        taken = 0
        for queue in self.pool.serves:
            part = min(running.get(queue, 0), free - taken)
            running[queue] = running.get(queue, 0) - part
            taken += part
        return taken

    def _slots_needed(self, waiting: Mapping[str, float]) -> int:
        return sum(
            math.ceil(waiting.get(queue, 0) / self.per_slot[queue]) for queue in self.pool.serves
        )

    def _provide(self, slots: int, waiting: dict[str, float]) -> None:
        for queue in self.pool.serves:
            taken = min(slots, math.ceil(waiting.get(queue, 0) / self.per_slot[queue]))
            waiting[queue] = max(0.0, waiting.get(queue, 0) - taken * self.per_slot[queue])
            slots -= taken

    def _limit(self) -> int:
        """Most workers that the pool may have now."""
        ceiling = self.pool.max if self.standing.ceiling is None else self.standing.ceiling
        limit = min(self.pool.max, ceiling)
        if self.standing.closed:
            return min(limit, self.standing.started)
        return min(limit, self.standing.alive) if self._is_held() else limit

    def _available(self) -> int:
        """Workers that can be counted on; the rest of the demand goes to the next pool."""
        present = self.standing.started if self._is_late() else self.wanted
        return max(0, present - self.standing.silent)

    def _step(self) -> int:
        """Workers that may be launched now: as many as are up, at least `step`, less those that are
        not up yet."""
        up = sum(launch.running for launch in self.standing.launches) - self.standing.coming
        return max(self.pool.step, up) - (self.standing.alive - up)

    def _is_held(self) -> bool:
        return bool(self.standing.blocked) or self.standing.unknown_since is not None

    def _is_late(self) -> bool:
        """Whether launches wait, or the engine has been silent, longer than `patience`."""
        since = [
            launch.waits_since or launch.since
            for launch in self.standing.launches
            if launch.waiting
        ]
        if self.standing.unknown_since is not None:
            since.append(self.standing.unknown_since)
        return bool(since) and self.now - min(since) > self.pool.patience

    def _reason(self, wanted: int) -> str:
        if self.standing.blocked:
            return self.standing.blocked
        if self.standing.unknown_since is not None:
            return f"the fleet engine does not answer: {self.standing.silence}"
        if self._is_late():
            waits = next((each.reason for each in self.standing.launches if each.reason), "")
            return f"launches wait longer than patience{waits and f': {waits}'}"
        if wanted > self.wanted:
            return "max" if self.standing.ceiling is None else "limit of the fleet engine"
        return ""
