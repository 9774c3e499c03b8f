"""A fleet engine in virtual time: workers wait, start late, find no room and are reclaimed.

It implements `FleetEngine` for all pools of a fleet file, whatever their real engine, and counts
the calls that a real one would send to its scheduler or API server.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dpstream.services.coordinator.fleet.assumptions import Assumptions, PoolAssumptions
from dpstream.services.coordinator.fleet.pools import PoolSettings
from dpstream.services.coordinator.simulation.agenda import Agenda
from dpstream.shared.ports import Launch

LISTED = 300.0
"""Seconds for which an ended launch is listed, as Slurm does."""
HOUR = 3600.0
TAKEN_BACK, KILLED, LOST = "CANCELLED", "SIGKILL", "NODE_FAIL"


class StoppableWorker(Protocol):
    def stop(self) -> None:
        """As SIGTERM."""

    def die(self) -> None:
        """As SIGKILL."""


@dataclass(eq=False)
class LaunchedWorker:
    """A worker as the fleet engine sees it. `began`: when it was started."""

    name: str
    pool: str
    launch: _Launch
    warm: bool
    began: float = 0.0
    worker: StoppableWorker | None = None


@dataclass(eq=False)
class _Launch:
    name: str
    pool: str
    since: float
    waiting: dict[str, LaunchedWorker] = field(default_factory=dict)
    starting: int = 0
    up: dict[str, LaunchedWorker] = field(default_factory=dict)
    ended: Counter[str] = field(default_factory=Counter)
    gone: set[str] = field(default_factory=set)
    ended_at: float = 0.0

    @property
    def alive(self) -> int:
        return len(self.waiting) + self.starting + len(self.up)


@dataclass
class PoolUse:
    """What a pool has used so far."""

    started: int = 0
    """Workers that start or run."""
    most: int = 0
    launched: int = 0
    preempted: int = 0
    hours: float = 0.0
    """Of workers that have ended, from the start of the machine."""
    began: float = 0.0
    """Sum of the times at which those that start or run were started."""

    def total_hours(self, now: float) -> float:
        """Of all workers, of those that still run up to `now`."""
        return self.hours + (self.started * now - self.began) / HOUR


@dataclass
class SimulatedFleet:
    agenda: Agenda
    pools: Mapping[str, PoolSettings]
    assumptions: Assumptions
    seed: int
    epoch: float
    """Seconds since the epoch at which the simulation begins."""
    begin: Callable[[LaunchedWorker], StoppableWorker]
    """Called when a worker is up."""
    calls: Counter[str] = field(default_factory=Counter)
    """By method of the port."""
    use: dict[str, PoolUse] = field(default_factory=lambda: defaultdict(PoolUse))
    alive: int = 0
    """Workers that wait, start or run."""
    _warm: int = 0
    """Warm workers that run."""
    _launches: dict[str, _Launch] = field(default_factory=dict)
    _ready: dict[str, deque[LaunchedWorker]] = field(default_factory=lambda: defaultdict(deque))
    """Workers whose time in the queue is over, by pool: they start where there is room."""

    # ------------------------------------------------------------------------------- the port

    def running(self) -> Sequence[Launch]:
        self.calls["running"] += 1
        late = self.agenda.now - LISTED
        for name, launch in list(self._launches.items()):
            if not launch.alive and launch.ended_at < late:
                del self._launches[name]
        return [self._listed(launch) for launch in self._launches.values()]

    def launch(self, pool: str, count: int, name: str, *, warm: bool = False) -> None:
        self.calls["launch"] += 1
        if name in self._launches:
            return
        launch = self._launches[name] = _Launch(name, pool, self.agenda.now)
        self.use[pool].launched += count
        self.alive += count
        for number in range(count):
            process = LaunchedWorker(f"{name}-{number}", pool, launch, warm)
            launch.waiting[process.name] = process
            wait = self._assumed(pool).wait.draw(self.seed, "wait", process.name)
            self.agenda.after(wait, self._queue, process)

    def retire(self, launch: Launch, most: int) -> int:
        self.calls["retire"] += 1
        waiting = list(self._launches[launch.name].waiting.values())[::-1][:most]
        for process in waiting:
            del process.launch.waiting[process.name]
            self._count_end(process, TAKEN_BACK)
        return len(waiting)

    def end(self, launch: Launch) -> None:
        self.calls["end"] += 1
        self.retire(launch, launch.waiting)
        for process in list(self._launches[launch.name].up.values()):
            if process.worker is not None:
                process.worker.stop()

    def check(self, pool: str) -> None:
        """Every pool is accepted."""

    def render(self, pool: str) -> str:
        return f"a simulated worker of {pool}"

    # ---------------------------------------------------------------------------- the machines

    @property
    def passing(self) -> int:
        """Workers that will end: all but the warm ones that run."""
        return self.alive - self._warm

    def ended(self, process: LaunchedWorker, how: str) -> None:
        """A worker has ended."""
        del process.launch.up[process.name]
        use = self.use[process.pool]
        use.started -= 1
        use.hours += (self.agenda.now - process.began) / HOUR
        use.began -= process.began
        self._warm -= process.warm
        self._count_end(process, how)
        self._fill(process.pool)

    def _assumed(self, pool: str) -> PoolAssumptions:
        return self.assumptions.of_pool(pool)

    def _queue(self, process: LaunchedWorker) -> None:
        self._ready[process.pool].append(process)
        self._fill(process.pool)

    def _fill(self, pool: str) -> None:
        """Starts workers while there is room."""
        room, use, ready = self._assumed(pool).capacity, self.use[pool], self._ready[pool]
        while ready and (room is None or use.started < room):
            process = ready.popleft()
            if process.launch.waiting.pop(process.name, None) is not None:
                self._start(process, use)

    def _start(self, process: LaunchedWorker, use: PoolUse) -> None:
        assumed = self._assumed(process.pool)
        seconds = assumed.start.draw(self.seed, "start", process.name)
        use.started += 1
        use.began += self.agenda.now
        if use.started > use.most:
            seconds += assumed.image_pull.draw(self.seed, "pull", process.name)
            use.most = use.started
        process.began = self.agenda.now
        process.launch.starting += 1
        self.agenda.after(seconds, self._up, process)

    def _up(self, process: LaunchedWorker) -> None:
        process.launch.starting -= 1
        process.launch.up[process.name] = process
        self._warm += process.warm
        process.worker = self.begin(process)
        share = self._assumed(process.pool).preemptions
        if share:
            drawn = random.Random(f"{self.seed} reclaimed {process.name}")
            seconds = drawn.expovariate(-math.log1p(-share) / HOUR)
            self.agenda.after(seconds, self._reclaim, process)

    def _reclaim(self, process: LaunchedWorker) -> None:
        if process.worker is None or process.name not in process.launch.up:
            return
        self.use[process.pool].preempted += 1
        if self._assumed(process.pool).notice:
            process.worker.stop()
        else:
            process.worker.die()
            self.ended(process, KILLED if self.pools[process.pool].spot else LOST)

    def _count_end(self, process: LaunchedWorker, how: str) -> None:
        launch = process.launch
        launch.ended[how] += 1
        launch.gone.add(process.name)
        launch.ended_at = self.agenda.now
        self.alive -= 1

    @property
    def standing(self) -> tuple[int, int]:
        """Workers that wait, and that start."""
        launches = self._launches.values()
        return sum(len(each.waiting) for each in launches), sum(each.starting for each in launches)

    def _listed(self, launch: _Launch) -> Launch:
        return Launch(
            launch.name,
            launch.pool,
            waiting=len(launch.waiting),
            starting=launch.starting,
            running=len(launch.up),
            ended=dict(launch.ended),
            up=frozenset(launch.up),
            gone=frozenset(launch.gone),
            since=self.epoch + launch.since,
        )
