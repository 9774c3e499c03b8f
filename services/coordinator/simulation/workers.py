"""Workers in virtual time: they claim tasks, send heartbeats, finish, release and die.

Each follows the protocol of `shared/runtime/worker.py` message by message, claims and their secrets
included. How long a task takes is assumed; what it finds comes from `results`.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpstream.services.coordinator.fleet.assumptions import Assumptions
from dpstream.services.coordinator.fleet.pools import PoolSettings
from dpstream.services.coordinator.simulation.agenda import Agenda
from dpstream.services.coordinator.simulation.bus import LossyBus
from dpstream.services.coordinator.simulation.fleet import LaunchedWorker, SimulatedFleet
from dpstream.services.coordinator.simulation.results import SimulatedResults, ref
from dpstream.services.coordinator.simulation.store import MemoryStore
from dpstream.services.coordinator.simulation.use import Use
from dpstream.shared import messages as m
from dpstream.shared.bus.memory import InProcessDelivery, InProcessSubscription
from dpstream.shared.codec import decode, encode, kind_of, topic_of
from dpstream.shared.messages import Explore
from dpstream.shared.ports import Outgoing
from dpstream.shared.proof import digest
from dpstream.shared.runtime.context import KEEPS, envelope_of
from dpstream.shared.runtime.exit_limits import STAGGER
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.values import stable_id

HEARTBEAT = 60.0
"""Seconds between heartbeats of a task; the default of workers."""
LOOKUP = 1.0
"""Seconds for a label that is in the store already."""
DONE, RELEASED = "0", "75"


@dataclass(eq=False)
class SimulatedSlot:
    """Takes one task at a time from its queues."""

    worker: SimulatedWorker
    queues: tuple[str, ...]
    work: TaskAttempt | None = None


@dataclass(eq=False)
class TaskAttempt:
    """One attempt of a task. `kept`: when its last chunk was published; `ahead`: seconds of work on
    the next one that it found in restart files."""

    command: m.Command
    secret: str
    began: float
    kept: float
    ahead: float = 0.0
    over: bool = False


@dataclass
class Crew:
    """All workers of a simulation."""

    agenda: Agenda
    bus: LossyBus
    store: MemoryStore
    results: SimulatedResults
    assumptions: Assumptions
    seed: int
    epoch: float
    fleet: SimulatedFleet | None = None
    use: dict[m.Service, Use] = field(default_factory=lambda: {s: Use() for s in m.SERVICES})
    busy_hours: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Hours with a task, by pool; of workers with several slots, the share in use."""
    lost_seconds: float = 0.0
    """Work of interrupted attempts that another attempt repeats."""
    computed: Counter[str] = field(default_factory=Counter)
    """How often the label of each frame was computed."""
    stored: set[str] = field(default_factory=set)
    """Frames whose label is in the store."""
    slots: Counter[bool] = field(default_factory=Counter)
    """Of the workers of pools, without and with a task."""
    restarts: dict[str, float] = field(default_factory=dict)
    """Seconds of work in the restart files of released labels, by task."""
    worked_at: float = 0.0
    """When a task last began or ended."""
    _idle: dict[str, dict[SimulatedSlot, None]] = field(default_factory=lambda: defaultdict(dict))
    """Slots that wait for a task, by queue, the longest wait first."""
    _subscriptions: dict[str, InProcessSubscription] = field(default_factory=dict)
    _claims: int = 0

    def __post_init__(self) -> None:
        self.bus.arrived = self.arrived

    # ----------------------------------------------------------------------------------- tasks

    def arrived(self, queue: str) -> None:
        """Hands the messages of a queue to slots that wait for one."""
        idle = self._idle[queue]
        while idle and (delivery := self._subscription(queue).next(timeout=0.0)) is not None:
            self._take(next(iter(idle)), delivery)

    def _subscription(self, queue: str) -> InProcessSubscription:
        if queue not in self._subscriptions:
            self._subscriptions[queue] = self.bus.consume(queue)
        return self._subscriptions[queue]

    def _take(self, slot: SimulatedSlot, delivery: InProcessDelivery) -> None:
        """Claims the command of a delivery and begins to work on it. A slot that loses the claim
        publishes the winner's once more, and waits on."""
        command = decode(delivery.body)
        self._claims += 1
        secret = f"{self.seed} {self._claims}"
        claimed = m.TaskClaimed(
            **self._envelope(command, "claim", self._claims),
            worker=slot.worker.name,
            process=slot.worker.process and slot.worker.process.name,
            proof_sha256=digest(digest(secret)),
        )
        key = claim_uri(command.campaign, command.task, command.attempt)
        won = self.store.create(key, encode(claimed))
        winner = claimed if won else decode(self.store.get(key))
        if isinstance(winner, m.TaskClaimed):  # the coordinator publishes its own
            self._publish(winner)
        delivery.ack()
        if won:
            now, ahead = self.agenda.now, 0.0
            if isinstance(command, m.Label) and command.resume is not None:
                ahead = self.restarts[command.task]
                self.lost_seconds = max(0.0, self.lost_seconds - ahead)
            self._begin(slot, TaskAttempt(command, secret, now, now, ahead))

    def _begin(self, slot: SimulatedSlot, work: TaskAttempt) -> None:
        for queue in slot.queues:
            del self._idle[queue][slot]
        slot.work, slot.worker.tasks = work, slot.worker.tasks + 1
        self._count_busy(slot, +1)
        self._go_on(slot, work, self._steps(work))
        self.agenda.after(HEARTBEAT, self._beat, slot, work)

    def _steps(self, work: TaskAttempt) -> Iterator[tuple[float, m.Message]]:
        """The results of an attempt, each with the seconds since the one before."""
        command: Any = work.command
        results = self.results.results(command)
        if isinstance(command, m.Label):
            for result in results:
                assert isinstance(result, m.LabelsDone)
                keys = [each.key for each in result.accepted]
                keys += [each.key for each in result.rejected]
                yield max(0.0, sum(map(self._label_seconds, keys)) - work.ahead), result
        elif isinstance(command, Explore):
            total = self.assumptions.times("explore").draw(self.seed, command.trajectory)
            for result in results:
                yield total / (len(results) + command.from_chunk), result
        else:
            kind = kind_of(command)
            check = isinstance(command, m.CheckLabel)
            what = command.frame.key if check else command.task
            yield self.assumptions.times(kind).draw(self.seed, what), results[0]
            yield from ((0.0, result) for result in results[1:])

    def _label_seconds(self, frame: str) -> float:
        if self.results.writer(frame) is not None:
            return LOOKUP
        return self.results.label_seconds(frame)

    def _go_on(
        self, slot: SimulatedSlot, work: TaskAttempt, steps: Iterator[tuple[float, m.Message]]
    ) -> None:
        """Works until the next result is due, or ends after the last one."""
        step = next(steps, None)
        if step is None:
            self._finish(slot, work)
            self._offer(slot)
        else:
            self.agenda.after(step[0], self._publish_result, slot, work, step[1], steps)

    def _publish_result(
        self,
        slot: SimulatedSlot,
        work: TaskAttempt,
        result: m.Result,
        steps: Iterator[tuple[float, m.Message]],
    ) -> None:
        if work.over:
            return
        self._store_labels(result)
        seconds = self.agenda.now - work.began
        changes: dict[str, Any] = {"time": self.epoch + self.agenda.now}
        if not isinstance(result, m.Chunk) or result.last:
            changes["seconds"] = seconds
        self._publish(result.model_copy(update=changes), work.secret)
        if isinstance(result, KEEPS):
            work.kept, work.ahead = self.agenda.now, 0.0
        self._go_on(slot, work, steps)

    def _store_labels(self, result: m.Result) -> None:
        if isinstance(result, m.LabelsDone):
            for each in result.accepted:
                self.stored.add(each.key)
                self.computed[each.key] += not each.reused

    def _finish(self, slot: SimulatedSlot, work: TaskAttempt) -> None:
        work.over, slot.work = True, None
        self.busy_hours[slot.worker.pool] += (
            (self.agenda.now - work.began) / 3600 / len(slot.worker.slots)
        )
        self._count_busy(slot, -1)

    def _beat(self, slot: SimulatedSlot, work: TaskAttempt) -> None:
        """A heartbeat, and a look for the request to stop."""
        if work.over:
            return
        command = work.command
        stop = claim_uri(command.campaign, command.task, command.attempt) + ".stop"
        if self.store.exists(stop):
            self._release(slot, work, preempted=False)
            self._offer(slot)
            return
        beat = m.TaskHeartbeat(
            **self._envelope(command, "beat", self.agenda.now),
            worker=slot.worker.name,
            process=slot.worker.process and slot.worker.process.name,
        )
        self._publish(beat, work.secret)
        self.agenda.after(HEARTBEAT, self._beat, slot, work)

    def _release(self, slot: SimulatedSlot, work: TaskAttempt, preempted: bool) -> None:
        lost, restart = self.agenda.now - work.kept, None
        if preempted and self.assumptions.restarts and isinstance(work.command, m.Label):
            self.restarts[work.command.task] = work.ahead + lost
            restart = ref(f"restart-{work.command.task}")
        self.lost_seconds += work.ahead + lost if preempted else 0.0
        released = m.TaskReleased(
            **self._envelope(work.command, "released"),
            reason="the worker stops" if preempted else "cancelled",
            preempted=preempted,
            seconds=lost,
            restart=restart,
        )
        self._publish(released, work.secret)
        self._finish(slot, work)

    def _envelope(self, command: m.Command, *what: object) -> dict[str, Any]:
        return {
            **envelope_of(command),
            "id": stable_id(command.task, command.attempt, *what),
            "time": self.epoch + self.agenda.now,
        }

    def _publish(self, event: m.Message, secret: str | None = None) -> None:
        self.bus.publish([Outgoing(encode(event), topic=topic_of(event), secret=secret)])

    def _count_busy(self, slot: SimulatedSlot, change: int) -> None:
        use = self.use[slot.worker.service]
        use.count(self.agenda.now)
        use.busy += change
        if slot.worker.pool:
            self.slots[True] += change
            self.slots[False] -= change
        self.worked_at = self.agenda.now

    # --------------------------------------------------------------------------------- workers

    def begin(self, process: LaunchedWorker) -> SimulatedWorker:
        """A worker of a pool is up."""
        assert self.fleet is not None
        pool = self.fleet.pools[process.pool]
        worker = SimulatedWorker(self, process.name, process.pool, pool.service, process)
        worker.slots = [SimulatedSlot(worker, queues) for queues in _queues_of_slots(pool)]
        worker.idle_exit = None if process.warm else pool.idle_exit
        stagger = random.Random(f"{self.seed} lifetime {process.name}").uniform(1 - STAGGER, 1)
        self.agenda.after(pool.lifetime * stagger, worker.close)
        started = m.WorkerStarted(
            id=stable_id(process.name),
            time=self.epoch + self.agenda.now,
            worker=process.name,
            host="simulated",
            process=process.name,
            pool=process.pool,
            slots=len(worker.slots),
            queues=pool.serves,
        )
        self._publish(started)
        self._enter(worker)
        return worker

    def add_other(self, queue: str, service: m.Service, count: int) -> None:
        """Workers that run besides the fleet, and never end."""
        for number in range(count):
            worker = SimulatedWorker(self, f"{queue}-{number}", "", service)
            worker.slots = [SimulatedSlot(worker, (queue,))]
            self._enter(worker)

    def _enter(self, worker: SimulatedWorker) -> None:
        use = self.use[worker.service]
        use.count(self.agenda.now)
        use.present += len(worker.slots)
        self.slots[False] += len(worker.slots) * bool(worker.pool)
        for slot in worker.slots:
            self._offer(slot)

    def _offer(self, slot: SimulatedSlot) -> None:
        """The slot waits for a task, or its worker ends."""
        worker = slot.worker
        if worker.closed:
            if not any(each.work for each in worker.slots):
                self.leave(worker, DONE)
            return
        for queue in slot.queues:
            self._idle[queue][slot] = None
        for queue in slot.queues:
            self.arrived(queue)
        if worker.idle_exit is not None and worker.is_idle:
            self.agenda.after(worker.idle_exit, self._leave_idle, worker, worker.tasks)

    def _leave_idle(self, worker: SimulatedWorker, tasks: int) -> None:
        if worker.tasks == tasks and worker.is_idle and not worker.left:
            self.leave(worker, DONE)

    def release_all(self, worker: SimulatedWorker) -> None:
        for slot in worker.slots:
            if slot.work is not None:
                self._release(slot, slot.work, preempted=True)

    def drop_all(self, worker: SimulatedWorker) -> None:
        """The worker dies in the midst of its tasks."""
        for slot in worker.slots:
            if slot.work is not None:
                self.lost_seconds += slot.work.ahead + self.agenda.now - slot.work.kept
                self._finish(slot, slot.work)

    def withdraw(self, worker: SimulatedWorker) -> None:
        """Its slots wait for no task any more."""
        for slot in worker.slots:
            for queue in slot.queues:
                self._idle[queue].pop(slot, None)

    def leave(self, worker: SimulatedWorker, how: str | None) -> None:
        """The worker takes no more tasks; `how` it ends, None if its fleet engine knows."""
        if worker.left:
            return
        worker.left = worker.closed = True
        self.withdraw(worker)
        use = self.use[worker.service]
        use.count(self.agenda.now)
        use.present -= len(worker.slots)
        self.slots[False] -= len(worker.slots) * bool(worker.pool)
        if how is not None and self.fleet is not None and worker.process is not None:
            self.fleet.ended(worker.process, how)


@dataclass(eq=False)
class SimulatedWorker:
    crew: Crew
    name: str
    pool: str
    """Empty for a worker that runs besides the fleet."""
    service: m.Service
    process: LaunchedWorker | None = None
    slots: list[SimulatedSlot] = field(default_factory=list)
    idle_exit: float | None = None
    tasks: int = 0
    """Taken so far."""
    closed: bool = False
    """Whether it takes no more tasks."""
    left: bool = False

    @property
    def is_idle(self) -> bool:
        return not any(slot.work for slot in self.slots)

    def close(self) -> None:
        """Takes no more tasks, and ends after those that it has: its lifetime is over."""
        self.closed = True
        if self.is_idle:
            self.crew.leave(self, DONE)
        self.crew.withdraw(self)

    def stop(self) -> None:
        if self.left:
            return
        how = DONE if self.is_idle else RELEASED
        self.closed = True
        self.crew.release_all(self)
        self.crew.leave(self, how)

    def die(self) -> None:
        self.crew.drop_all(self)
        self.crew.leave(self, None)


def _queues_of_slots(pool: PoolSettings) -> Sequence[tuple[str, ...]]:
    """Of each slot of a worker. An explorer of several queues has a slot for each of the
    short ones."""
    short = tuple(queue for queue in pool.serves if queue != Explore.QUEUE)
    if Explore.QUEUE not in pool.serves or not short:
        return [pool.serves] * pool.slots
    return [(Explore.QUEUE,)] * pool.service_slots + [(queue,) for queue in short]
