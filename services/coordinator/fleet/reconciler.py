"""Brings the workers in line with the demand, in a thread beside the coordinator's loop.

The loop posts the demand after every pass and never waits for a fleet engine, whose calls may take
half a minute. Each turn lists the launches of every engine once, plans, takes back and launches.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from dpstream.services.coordinator.fleet.engines import (
    FleetEngine,
    MakeEngines,
    each_once,
    engines_of,
)
from dpstream.services.coordinator.fleet.memory import PoolMemory
from dpstream.services.coordinator.fleet.plan import (
    Demand,
    FleetPlan,
    NewLaunch,
    Retirement,
    plan,
)
from dpstream.services.coordinator.fleet.pools import (
    LIST_LAG,
    SERVICES,
    FleetBudget,
    FleetFile,
    queue_kind,
    read_fleet,
)
from dpstream.services.coordinator.fleet.processes import Processes
from dpstream.services.coordinator.fleet.spending import Spending, Spent, spending_uri
from dpstream.services.coordinator.fleet.status import FleetStatus, PoolStatus, Sample
from dpstream.shared.errors import FleetError, FleetLimit, NotFound, SpecError, StoreError
from dpstream.shared.logs import logger
from dpstream.shared.messages import Train
from dpstream.shared.ports import Launch, Store
from dpstream.shared.programs import BACKENDS
from dpstream.shared.values import FLEET_PREFIX

log = logger()

SHORTEST, LONGEST = 1.0, 5.0
"""Seconds between two turns: the first if the demand has changed, at most the second."""
IDLE_SHARE = 10.0
"""Pause after a turn in terms of its duration: long lists of workers are read less often."""
LONGEST_PAUSE = 30.0
"""Seconds: after a request that timed out, the engine is asked again soon."""
WARNING = 0.8
"""Share of a budget at which a warning is logged."""
SAMPLES, SAMPLE_SECONDS = 720, 10.0
"""Length of the history, and the least time between two of its samples: two hours."""
STALE = 60.0
"""Seconds without a pass of the loop after which nothing is launched: broker or store do not
answer, and workers could do nothing."""
SAVED_HOURS = 0.01
"""Worker-hours after which the expenses are stored."""


def pause_after(seconds: float) -> float:
    """Seconds between a turn of that duration and the next one."""
    return max(SHORTEST, min(IDLE_SHARE * seconds, LONGEST_PAUSE))


@dataclass
class Reconciler:
    """`path`: the fleet file. `on_wanted` is called with the slots wanted for each queue."""

    path: Path
    store: Store
    on_wanted: Callable[[Mapping[str, int]], object] = lambda wanted: None
    clock: Callable[[], float] = time.time
    labels: Callable[[], int] = lambda: 0
    """Labels that were computed since the coordinator started."""
    processes: Processes = field(default_factory=Processes)
    """Of the workers; shared with the coordinator's loop."""
    make_engines: MakeEngines = engines_of
    _status: FleetStatus | None = None
    """Of the last turn that was completed up to its plan."""
    _status_posted_at: float = 0.0
    """When the demand behind it was posted."""
    _file: FleetFile = field(init=False)
    _spending: Spending = field(init=False)
    _engines: Mapping[str, FleetEngine] = field(default_factory=dict)
    _memory: dict[str, PoolMemory] = field(default_factory=dict)
    _read_at: float = 0.0
    _refusal: str = ""
    """Why the present file is refused; it is tried again until it is accepted."""
    _saved_hours: float = 0.0
    _labels: int = 0
    _history: deque[Sample] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    _epoch: int = 0
    _low: set[str | None] = field(default_factory=set)
    """Pools of whose budget little is left, and None if little is left of the deployment's."""
    _unserved: set[str] = field(default_factory=set)
    """Queues without a pool that a warning has named."""
    _demand: Mapping[str, Demand] | None = None
    """None before the first pass of the loop: nothing is known yet, and nothing is taken back."""
    _posted_at: float = 0.0
    _changed: threading.Event = field(default_factory=threading.Event)

    @property
    def status(self) -> FleetStatus | None:
        """Of the last turn; read by other threads. It ages while turns fail."""
        is_current = self.clock() - self._status_posted_at < STALE
        return self._status and self._status.model_copy(update={"is_current": is_current})

    def post(self, demand: Mapping[str, Demand]) -> None:
        """Takes the demand of one pass of the loop."""
        self._posted_at = self.clock()
        if demand != self._demand:
            self._demand = demand
            self._changed.set()

    def start(self) -> None:
        """Reads the fleet file and takes over from an earlier reconciler. Raises SpecError."""
        self._use(read_fleet(self.path))
        self._read_at = self.path.stat().st_mtime
        while not self.store.create(self._epoch_uri(self._epoch + 1), b"{}"):
            self._epoch += 1
        self._epoch += 1
        try:
            self._spending = Spending.model_validate_json(self.store.get(self._spending_uri))
        except NotFound:
            self._spending = Spending()

    def run(self, stopping: threading.Event) -> None:
        """Turns until `stopping` is set."""
        while not stopping.is_set():
            began = time.monotonic()
            try:
                self.turn()
            except StoreError as error:
                log.warning("fleet: the store failed, trying again", reason=str(error))
            except Exception:  # an error of one turn must not end all later ones
                log.exception("fleet: turn failed, trying again")
            stopping.wait(pause_after(time.monotonic() - began))
            self._changed.wait(LONGEST - SHORTEST)
            self._changed.clear()

    def turn(self) -> None:
        """Lists, plans, takes back and launches once."""
        now, demand = self.clock(), self._demand
        self._list(now)
        if self._read_again():
            self._list(now)
        self._spend(now)
        if demand is None:
            return
        standing = {
            name: each.standing(now, used_up=bool(self._used_up(name)))
            for name, each in self._memory.items()
        }
        self._warn_of_unserved(demand)
        found = plan(demand, standing, self._file.pools, now)
        self._publish(found, demand, now)
        self._carry_out(found, now)

    # ---------------------------------------------------------------------- the fleet file

    def _use(self, file: FleetFile) -> None:
        self._file, self._engines = file, self.make_engines(file, self.path, self._engines)
        self._memory = {name: self._memory.get(name, PoolMemory()) for name in file.pools}
        for name, pool in file.pools.items():
            self._memory[name].spot = pool.spot
            self._memory[name].list_lag = LIST_LAG.get(pool.engine, 0.0)
            if pool.gpus and Train.QUEUE in pool.serves:
                why = f"the trainers of pool {name} have a GPU"
                self.processes.gpu_trainers |= dict.fromkeys(BACKENDS, why)

    def _read_again(self) -> bool:
        """Reads a changed fleet file; a bad one is refused, and the old one stays. Whether the file
        has changed."""
        try:
            written = self.path.stat().st_mtime
            if written == self._read_at:
                return False
            file = read_fleet(self.path)
            self._check_change(file)
        except (SpecError, OSError) as error:
            if str(error) != self._refusal:
                log.error("fleet: fleet file refused; the old one stays", reason=str(error))
            self._refusal = str(error)
            return False
        self._use(file)
        self._read_at, self._refusal = written, ""
        log.info("fleet: fleet file read again", file=str(self.path))
        return True

    def _check_change(self, file: FleetFile) -> None:
        """Raises SpecError for a change that would leave workers behind."""
        if file.deployment != self._file.deployment:
            raise SpecError("deployment: cannot change while the coordinator runs; restart it")
        for name, memory in self._memory.items():
            place = file.pools[name].place if name in file.pools else None
            if memory.launches and place != self._file.pools[name].place:
                raise SpecError(f"pools.{name}: still has workers; set its max to 0 first")

    # ------------------------------------------------------------------------ what stands

    def _list(self, now: float) -> None:
        """Lists the launches of every engine once."""
        for engine, names in each_once(self._engines):
            try:
                launches = engine.running()
            except Exception as error:  # also of a damaged kubeconfig: the others are listed
                for name in names:
                    self._memory[name].not_listed(str(error), now)
                ours = not isinstance(error, FleetError)
                reason = str(error)
                log.warning(
                    "fleet: engine does not answer", pools=names, reason=reason, exc_info=ours
                )
                continue
            gone = chain.from_iterable(launch.gone for launch in launches)
            up = chain.from_iterable(launch.up for launch in launches)
            self.processes.end(gone, now, up)
            for name in names:
                memory = self._memory[name]
                memory.update([each for each in launches if each.pool == name], now)
                memory.judge_starts(self.processes, self._file.pools[name], now)

    # ------------------------------------------------------------------------ the budget

    def _share(self, pool: str | None = None) -> float:
        """The used part of the budget of the deployment, or of a pool."""
        budget = self._file.budget if pool is None else self._file.pools[pool].budget
        return self._spending.share(budget, pool)

    def _used_up(self, pool: str) -> list[FleetBudget]:
        """The budgets that are used up, of the deployment's and the pool's own."""
        budgets = {None: self._file.budget, pool: self._file.pools[pool].budget}
        return [each for name, each in budgets.items() if self._spending.share(each, name) >= 1]

    def _spend(self, now: float) -> None:
        started = {
            name: sum(launch.started for launch in memory.launches)
            for name, memory in self._memory.items()
        }
        pools = self._status.pools if self._status else {}
        idle = {
            name: pool.idle_slots / self._file.pools[name].slots
            for name, pool in pools.items()
            if name in self._file.pools
        }
        self._spending.add(started, idle, self._file.pools, now)
        labels = self.labels()
        self._spending.labels += labels - self._labels
        self._labels = labels
        low = {pool for pool in (None, *self._file.pools) if self._share(pool) >= WARNING}
        for pool in low - self._low:
            log.warning("fleet: most of the budget is used", pool=pool, share=self._share(pool))
        self._low = low
        if self._spending.hours - self._saved_hours > SAVED_HOURS:
            self.store.put(self._spending_uri, self._spending.model_dump_json().encode())
            self._saved_hours = self._spending.hours

    # ------------------------------------------------------------------------ acting

    def _warn_of_unserved(self, demand: Mapping[str, Demand]) -> None:
        """Names, once, each queue whose tasks no worker takes, of a service that pools run."""
        served = {queue for pool in self._file.pools.values() for queue in pool.serves}
        services = {pool.service for pool in self._file.pools.values()}
        for queue, each in demand.items():
            ours = SERVICES[queue_kind(queue)] in services and queue not in served
            if ours and each.waiting and not each.running and queue not in self._unserved:
                self._unserved.add(queue)
                log.warning("fleet: tasks wait in a queue that no pool serves", queue=queue)

    def _publish(self, found: FleetPlan, demand: Mapping[str, Demand], now: float) -> None:
        memory, verdicts, spent = self._memory, found.verdicts, self._spending
        pools = {
            name: memory[name].status(
                each,
                self._file.pools[name].slots,
                self.processes,
                self.processes.programs(name),
                self.processes.devices(name),
                spent.pools.get(name, Spent()),
                self._share(name),
                now,
            )
            for name, each in verdicts.items()
        }
        self._remember(pools, demand, now)
        self._status_posted_at = self._posted_at
        self._status = FleetStatus(
            deployment=self._file.deployment,
            pools=pools,
            worker_hours=spent.hours,
            idle_share=spent.idle_share,
            cost=spent.cost,
            cost_per_label=spent.cost_per_label,
            cost_today=spent.cost_today,
            budget_used=self._share(),
            history=tuple(self._history),
            is_current=True,
        )
        wanted: Counter[str] = Counter()
        for name, pool in self._file.pools.items():
            for queue in pool.serves:
                wanted[queue] += verdicts[name].wanted * pool.slots
        self.on_wanted(wanted)

    def _remember(
        self, pools: Mapping[str, PoolStatus], demand: Mapping[str, Demand], now: float
    ) -> None:
        if self._history and now - self._history[-1].time < SAMPLE_SECONDS:
            return
        sample = Sample(
            time=now,
            workers=sum(pool.starting + pool.running for pool in pools.values()),
            waiting=sum(pool.waiting for pool in pools.values()),
            tasks=sum(each.waiting for each in demand.values()),
        )
        self._history.append(sample)

    def _carry_out(self, found: FleetPlan, now: float) -> None:
        for retirement in found.retirements:
            self._retire(retirement)
        for launch in found.launches if now - self._posted_at < STALE else ():
            self._launch(launch, now)
        for name, memory in self._memory.items():
            observed = self._file.pools[name].is_observed
            if not observed and any(budget.hard for budget in self._used_up(name)):
                for each in memory.launches:
                    self._end(each)

    def _retire(self, retirement: Retirement) -> None:
        launch = retirement.launch
        if self._is_overtaken():
            return
        try:
            taken = self._engines[launch.pool].retire(launch, retirement.most)
            log.info("fleet: taken back", launch=launch.name, workers=taken)
        except FleetError as error:
            log.warning("fleet: not taken back", launch=launch.name, reason=str(error))

    def _end(self, launch: Launch) -> None:
        """Asks the workers of a launch to stop; they release their tasks."""
        try:
            self._engines[launch.pool].end(launch)
        except FleetError as error:
            log.warning("fleet: not ended", launch=launch.name, reason=str(error))

    def _launch(self, new: NewLaunch, now: float) -> None:
        memory = self._memory[new.pool]
        if not memory.may_launch(now) or self._is_overtaken():
            return
        name = memory.unsure or new.name
        try:
            self._engines[new.pool].launch(new.pool, new.count, name, warm=new.warm)
            memory.count_launch(name, new.pool, new.count, now)
            log.info("fleet: launched", pool=new.pool, workers=new.count, launch=name)
        except FleetLimit as error:
            memory.limit(new.count, now)
            log.warning("fleet: limit reached", pool=new.pool, reason=str(error))
        except FleetError as error:
            memory.lose(name, str(error), now)
            log.warning("fleet: launch failed", pool=new.pool, reason=str(error))

    # ------------------------------------------------------------------------ the fence

    def _is_overtaken(self) -> bool:
        """Whether a newer coordinator has taken over; this one then launches nothing more."""
        return self.store.exists(self._epoch_uri(self._epoch + 1))

    def _epoch_uri(self, number: int) -> str:
        return f"{FLEET_PREFIX}{self._file.deployment}/epoch/{number:06d}"

    @property
    def _spending_uri(self) -> str:
        return spending_uri(self._file.deployment)
