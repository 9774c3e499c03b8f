"""Brings the workers in line with the demand, in a thread beside the coordinator's loop.

The loop posts the demand after every pass and never waits for a fleet engine, whose calls may take
half a minute. Each turn lists the launches of every engine once, plans, takes back and launches.
What a turn needs of the turns before is in `PoolMemory` and, for the budget, in the store.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dpstream.services.coordinator.fleet.engines import engines_of
from dpstream.services.coordinator.fleet.plan import (
    Demand,
    FleetPlan,
    NewLaunch,
    PoolVerdict,
    Retirement,
    Standing,
    plan,
)
from dpstream.services.coordinator.fleet.pools import Budget, FleetFile, PoolSettings, read_fleet
from dpstream.services.coordinator.fleet.status import FleetStatus, PoolStatus
from dpstream.shared.errors import (
    BusError,
    FleetError,
    FleetLimit,
    NotFound,
    SpecError,
    StoreError,
)
from dpstream.shared.logs import logger
from dpstream.shared.ports import Fleet, Launch, Store

log = logger()

SHORTEST, LONGEST = 1.0, 5.0
"""Seconds between two turns: the first if the demand has changed, at most the second."""
FAILURES = 3
"""Failed workers in a row after which a pool pauses."""
FIRST_PAUSE, LONGEST_PAUSE = 60.0, 3600.0
CEILING_SECONDS = 600.0
"""How long a limit of the fleet engine is believed."""
LAUNCHES_PER_MINUTE = 20
WARNING = 0.8
"""Share of a budget at which a warning is logged."""
GOOD = frozenset({"0", "75"})
"""Exit statuses of workers that did what they should."""
TAKEN = frozenset({"SIGTERM", "143", "CANCELLED", "PREEMPTED", "NODE_FAIL", "TIMEOUT", "DEADLINE"})
"""Endings that are not the worker's fault."""
DAY = 86400.0


@dataclass
class PoolMemory:
    """What earlier turns found about one pool."""

    launches: tuple[Launch, ...] = ()
    unknown_since: float | None = None
    failures: int = 0
    last_failure: str = ""
    pause: float = 0.0
    paused_until: float = 0.0
    ceiling: int | None = None
    ceiling_until: float = 0.0
    counted: dict[str, Counter[str]] = field(default_factory=dict)
    """Ended workers of each launch that are counted already."""
    ended: Counter[str] = field(default_factory=Counter)
    launched: int = 0

    def update(self, launches: Sequence[Launch], now: float) -> None:
        """Takes in a new list of the pool's launches."""
        self.launches, self.unknown_since = tuple(launches), None
        for launch in launches:
            new = Counter(launch.ended) - self.counted.get(launch.name, Counter())
            self.counted[launch.name] = Counter(launch.ended)
            self.ended += new
            self._judge(new, now)

    def _judge(self, new: Counter[str], now: float) -> None:
        failed = {reason: n for reason, n in new.items() if reason not in GOOD | TAKEN}
        if not failed:
            if new:
                self.failures, self.pause = 0, 0.0
            return
        self.failures += sum(failed.values())
        self.last_failure = f"ended with {', '.join(sorted(failed))}"
        if self.failures >= FAILURES and now >= self.paused_until:
            self.pause = min(max(2 * self.pause, FIRST_PAUSE), LONGEST_PAUSE)
            self.paused_until = now + self.pause

    def status(self, verdict: PoolVerdict) -> PoolStatus:
        return PoolStatus(
            wanted=verdict.wanted,
            waiting=sum(launch.waiting for launch in self.launches),
            starting=sum(launch.starting for launch in self.launches),
            running=sum(launch.running for launch in self.launches),
            launched=self.launched,
            ended=dict(self.ended),
            reason=verdict.reason,
            stale_since=self.unknown_since,
        )

    def blocked(self, now: float) -> str:
        if now >= self.paused_until:
            return ""
        return (
            f"{self.failures} workers in a row failed ({self.last_failure}); paused for "
            f"{self.paused_until - now:.0f} s"
        )


@dataclass
class Spending:
    """Worker-hours in all, and cost of the present day (UTC); kept in the store."""

    hours: float = 0.0
    day: int = 0
    cost: float = 0.0

    def add(
        self,
        seconds: float,
        workers: Mapping[str, int],
        pools: Mapping[str, PoolSettings],
        now: float,
    ) -> None:
        if int(now // DAY) != self.day:
            self.day, self.cost = int(now // DAY), 0.0
        for name, count in workers.items():
            self.hours += count * seconds / 3600
            self.cost += count * seconds / 3600 * pools[name].price

    def share(self, budget: Budget) -> float:
        """The used part of the budget; 1 and more: used up."""
        hours = self.hours / budget.worker_hours if budget.worker_hours else 0.0
        cost = self.cost / budget.currency_per_day if budget.currency_per_day else 0.0
        return max(hours, cost)


@dataclass
class Reconciler:
    """`path`: the machine file. `on_wanted`: called with the workers wanted for each queue."""

    path: Path
    store: Store
    logs: Path
    on_wanted: Callable[[Mapping[str, int]], object] = lambda wanted: None
    clock: Callable[[], float] = time.time
    status: FleetStatus | None = None
    """Of the last turn; read by other threads."""
    _file: FleetFile | None = None
    _read_at: float = 0.0
    _engines: Mapping[str, Fleet] = field(default_factory=dict)
    _memory: dict[str, PoolMemory] = field(default_factory=dict)
    _spending: Spending | None = None
    _saved_hours: float = 0.0
    _epoch: int = 0
    _last: float | None = None
    _warned: bool = False
    _launched: deque[float] = field(default_factory=deque)
    _demand: Mapping[str, Demand] = field(default_factory=dict)
    _changed: threading.Event = field(default_factory=threading.Event)

    def post(self, demand: Mapping[str, Demand]) -> None:
        """Takes the demand of one pass of the loop."""
        if demand != self._demand:
            self._demand = demand
            self._changed.set()

    def start(self) -> None:
        """Reads the machine file and takes over from an earlier reconciler. Raises SpecError."""
        self._read()
        while not self.store.create(self._epoch_uri(self._epoch + 1), b"{}"):
            self._epoch += 1
        self._epoch += 1
        self._spending = self._stored_spending()

    def run(self, stopping: threading.Event) -> None:
        """Turns until `stopping` is set."""
        while not stopping.is_set():
            try:
                self.turn()
            except (BusError, StoreError) as error:
                log.warning("fleet: the store failed, trying again", reason=str(error))
            stopping.wait(SHORTEST)
            self._changed.wait(LONGEST - SHORTEST)
            self._changed.clear()

    def turn(self) -> None:
        """Lists, plans, takes back and launches once."""
        now = self.clock()
        self._read_again()
        assert self._file is not None
        self._list(now)
        self._spend(now)
        standing = {name: self._standing(name, now) for name in self._file.pools}
        found = plan(self._demand, standing, self._file.pools, now)
        self._publish(found)
        if not self._is_overtaken():
            self._carry_out(found, now)

    # ---------------------------------------------------------------------- the machine file

    def _read(self) -> None:
        self._file = read_fleet(self.path)
        self._read_at = self.path.stat().st_mtime
        self._engines = engines_of(self._file, self.logs)
        self._memory = {name: self._memory.get(name, PoolMemory()) for name in self._file.pools}

    def _read_again(self) -> None:
        """Reads a changed machine file; a bad one is refused, and the old one stays."""
        try:
            if self.path.stat().st_mtime != self._read_at:
                self._read()
                log.info("fleet: machine file read again", file=str(self.path))
        except (SpecError, OSError) as error:
            log.error("fleet: machine file refused; the old one stays", reason=str(error))
            self._read_at = self.path.stat().st_mtime if self.path.exists() else 0.0

    # ------------------------------------------------------------------------ what stands

    def _list(self, now: float) -> None:
        assert self._file is not None
        for engine, fleet in self._engines.items():
            names = [n for n, pool in self._file.pools.items() if pool.engine == engine]
            try:
                launches = fleet.running()
            except FleetError as error:
                for name in names:
                    self._memory[name].unknown_since = self._memory[name].unknown_since or now
                log.warning("fleet: engine does not answer", engine=engine, reason=str(error))
                continue
            for name in names:
                self._memory[name].update([each for each in launches if each.pool == name], now)

    def _standing(self, name: str, now: float) -> Standing:
        memory = self._memory[name]
        used_up = self._is_used_up()
        return Standing(
            launches=memory.launches,
            unknown_since=memory.unknown_since,
            blocked="the budget is used up" if used_up else memory.blocked(now),
            closed=used_up,
            ceiling=memory.ceiling if now < memory.ceiling_until else None,
        )

    # ------------------------------------------------------------------------ the budget

    def _spend(self, now: float) -> None:
        assert self._file is not None
        assert self._spending is not None
        seconds = 0.0 if self._last is None else max(0.0, now - self._last)
        self._last = now
        started = {
            name: sum(launch.starting + launch.running for launch in memory.launches)
            for name, memory in self._memory.items()
        }
        self._spending.add(seconds, started, self._file.pools, now)
        share = self._spending.share(self._file.budget)
        if share >= WARNING and not self._warned:
            self._warned = True
            log.warning("fleet: most of the budget is used", share=round(share, 2))
        if self._spending.hours - self._saved_hours > 0.01:
            self._saved_hours = self._spending.hours
            self.store.put(self._uri("spent.json"), json.dumps(vars(self._spending)).encode())

    def _is_used_up(self) -> bool:
        assert self._file is not None
        assert self._spending is not None
        return self._spending.share(self._file.budget) >= 1

    def _stored_spending(self) -> Spending:
        try:
            return Spending(**json.loads(self.store.get(self._uri("spent.json"))))
        except NotFound:
            return Spending()

    # ------------------------------------------------------------------------ acting

    def _publish(self, found: FleetPlan) -> None:
        assert self._file is not None
        assert self._spending is not None
        self.status = FleetStatus(
            deployment=self._file.deployment,
            pools={
                name: self._memory[name].status(verdict) for name, verdict in found.verdicts.items()
            },
            worker_hours=self._spending.hours,
            cost_today=self._spending.cost,
            budget_used=self._spending.share(self._file.budget),
        )
        wanted: Counter[str] = Counter()
        for name, pool in self._file.pools.items():
            for queue in pool.serves:
                wanted[queue] += found.verdicts[name].wanted * pool.slots
        self.on_wanted(wanted)

    def _carry_out(self, found: FleetPlan, now: float) -> None:
        for retirement in found.retirements:
            self._retire(retirement)
        for launch in found.launches:
            self._launch(launch, now)
        assert self._file is not None
        if self._file.budget.hard and self._is_used_up():
            self._end_all()

    def _retire(self, retirement: Retirement) -> None:
        launch = retirement.launch
        try:
            taken = self._engine(launch.pool).retire(launch, retirement.most)
            log.info("fleet: taken back", launch=launch.name, workers=taken)
        except FleetError as error:
            log.warning("fleet: not taken back", launch=launch.name, reason=str(error))

    def _end_all(self) -> None:
        """Asks all workers to stop; they release their tasks."""
        for launch in (each for memory in self._memory.values() for each in memory.launches):
            if launch.starting + launch.running:
                try:
                    self._engine(launch.pool).end(launch)
                except FleetError as error:
                    log.warning("fleet: not ended", launch=launch.name, reason=str(error))

    def _launch(self, new: NewLaunch, now: float) -> None:
        while self._launched and now - self._launched[0] > 60:
            self._launched.popleft()
        if len(self._launched) >= LAUNCHES_PER_MINUTE:
            return
        self._launched.append(now)
        memory = self._memory[new.pool]
        try:
            self._engine(new.pool).launch(new.pool, new.count, new.name)
            memory.launched += new.count
            log.info("fleet: launched", pool=new.pool, workers=new.count, launch=new.name)
        except FleetLimit as error:
            alive = sum(launch.alive for launch in memory.launches)
            memory.ceiling, memory.ceiling_until = alive, now + CEILING_SECONDS
            log.warning("fleet: limit reached", pool=new.pool, limit=alive, reason=str(error))
        except FleetError as error:
            log.warning("fleet: launch failed", pool=new.pool, reason=str(error))
            memory.unknown_since = now  # it may have succeeded: list again first

    def _engine(self, pool: str) -> Fleet:
        assert self._file is not None
        return self._engines[self._file.pools[pool].engine]

    # ------------------------------------------------------------------------ the fence

    def _is_overtaken(self) -> bool:
        """Whether a newer coordinator has taken over; this one then launches nothing more."""
        return self.store.exists(self._epoch_uri(self._epoch + 1))

    def _epoch_uri(self, number: int) -> str:
        return self._uri(f"epoch/{number:06d}")

    def _uri(self, name: str) -> str:
        assert self._file is not None
        return f"fleet/{self._file.deployment}/{name}"
