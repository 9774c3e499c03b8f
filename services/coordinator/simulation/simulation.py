"""Runs one campaign in virtual time: `simulate(submission, fleet file, seed)`.

The coordinator's loop and the reconciler's turns become actions of the agenda: as in `service.py`,
a pass takes a batch of events and then looks at the clock. Everything random is drawn from the
seed, and nothing depends on the time that the simulation itself takes.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import yaml

from dpstream.services.coordinator.fleet.plan import Demand
from dpstream.services.coordinator.fleet.pools import LABEL, SERVICES, FleetFile, queue_kind
from dpstream.services.coordinator.fleet.reconciler import (
    IDLE_SHARE,
    LONGEST,
    LONGEST_PAUSE,
    SHORTEST,
    Reconciler,
)
from dpstream.services.coordinator.service import BATCH, Coordinator
from dpstream.services.coordinator.simulation.agenda import Agenda
from dpstream.services.coordinator.simulation.assumed import AssumedResults
from dpstream.services.coordinator.simulation.bus import LossyBus
from dpstream.services.coordinator.simulation.fleet import SimulatedFleet
from dpstream.services.coordinator.simulation.outcome import (
    Moment,
    PoolOutcome,
    ServiceOutcome,
    SimulationOutcome,
)
from dpstream.services.coordinator.simulation.store import MemoryStore
from dpstream.services.coordinator.simulation.use import Use
from dpstream.services.coordinator.simulation.workers import Crew
from dpstream.services.coordinator.views.overview import label_counts
from dpstream.shared import messages as m
from dpstream.shared.bus.batch import BATCH_SECONDS, take_ready
from dpstream.shared.bus.topology import COORDINATOR
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Spec
from dpstream.shared.values import Dataset, campaign_uri

EPOCH = 1_699_920_000.0
"""When simulations begin: at midnight, UTC."""
LISTING = 2e-5
"""Seconds in which a fleet engine lists one worker: a reconciler pauses longer after long lists."""
FULL_PASS = 0.02
"""Seconds between two passes of the loop while more events are ready than one takes."""
MOMENTS = 1000
"""Points of the picture: when there are twice as many, every other one is dropped."""
STANDSTILL = 25 * 3600.0
"""Seconds without any work after which a campaign stands still: a budget per day lasts until
midnight."""
QUIET, SLOW = 600.0, 60.0
"""After so many seconds without any work, passes and turns are this far apart."""


@dataclass(frozen=True)
class Submission:
    """A campaign as `dpstream submit` stores it. `objects`: its other inputs, by key."""

    spec: Spec
    event: m.CampaignSubmitted
    objects: Mapping[str, bytes] = field(default_factory=dict)


@dataclass
class Costs:
    """Processor time, s, of the parts of the coordinator. It differs from run to run, and belongs
    to no outcome."""

    loop: float = 0.0
    turns: float = 0.0


def simulate(submission: Submission, fleet: FleetFile, seed: int = 1) -> SimulationOutcome:
    """What would come of the campaign with these pools. Raises SpecError if a queue that it needs
    has no worker."""
    return Simulation(submission, fleet, seed).run()


class Simulation:
    """One campaign. `costs` and `coordinator` are for those who measure."""

    def __init__(self, submission: Submission, fleet: FleetFile, seed: int = 1) -> None:
        self.submission, self.file, self.seed = submission, fleet, seed
        self.spec, self.assumptions = submission.spec, fleet.simulation
        self.costs = Costs()
        self.agenda, self.store = Agenda(), MemoryStore()
        self.bus = LossyBus(self.agenda, self.assumptions.messages, random.Random(f"{seed} bus"))
        self.crew = self._crew()
        self.fleet = SimulatedFleet(
            self.agenda, fleet.pools, self.assumptions, seed, EPOCH, self.crew.begin
        )
        self.crew.fleet = self.fleet
        self.coordinator = Coordinator(
            self.bus, self.store, clock=self._clock, timer=lambda: self.agenda.now
        )
        self.coordinator.on_decided = self._count_decision
        self.bus.arrived = self._arrived
        self._events = self.bus.consume(COORDINATOR, prefetch=BATCH)
        self._pass_due = False
        self._decided = 0
        self._demand: Mapping[str, Demand] = {}
        self._changed = False
        self._ended_at = 0.0
        self._moments: list[Moment] = []
        self._every = 1.0

    def run(self) -> SimulationOutcome:
        self._store_inputs()
        self._add_others()
        with tempfile.TemporaryDirectory() as folder:
            self.reconciler = self._reconciler(Path(folder))
            self.coordinator.open_all()
            self.open = self.coordinator.open_campaigns[self.spec.name]
            for action in (self._tick, self._turn, self._remember):
                self.agenda.after(0.0, action)
            while not self._is_over() and self.agenda.step():
                pass
        self._remember()
        return self._outcome()

    # ------------------------------------------------------------------------------ the parts

    def _clock(self) -> float:
        return EPOCH + self.agenda.now

    def _crew(self) -> Crew:
        stored: set[str] = set()
        results = AssumedResults(self.spec, self.assumptions, self.seed, self.store, stored)
        return Crew(
            self.agenda,
            self.bus,
            self.store,
            results,
            self.assumptions,
            self.seed,
            EPOCH,
            stored=stored,
        )

    def _store_inputs(self) -> None:
        name, event = self.spec.name, self.submission.event
        for key, data in self.submission.objects.items():
            self.store.create(key, data)
        self.store.create(campaign_uri(name, "spec.json"), self.spec.model_dump_json().encode())
        event = event.model_copy(update={"time": EPOCH})
        self.store.create(campaign_uri(name, "submitted.json"), event.model_dump_json().encode())

    def _add_others(self) -> None:
        """The workers besides the fleet. Raises SpecError for labels without a labeler."""
        others = others_of(self.spec, self.file)
        for queue, count in others.items():
            self.crew.add_other(queue, SERVICES[queue_kind(queue)], count)

    def _reconciler(self, folder: Path) -> Reconciler:
        path = folder / "fleet.yaml"
        path.write_text(yaml.safe_dump(self.file.model_dump(mode="json", exclude_unset=True)))
        reconciler = Reconciler(
            path,
            self.store,
            on_wanted=partial(setattr, self.coordinator, "wanted"),
            clock=self._clock,
            labels=lambda: self.coordinator.computed_labels,
            processes=self.coordinator.processes,
            make_engines=lambda file, path, before: dict.fromkeys(file.pools, self.fleet),
        )
        reconciler.start()
        self.coordinator.on_demand = self._post
        return reconciler

    # ------------------------------------------------------------------------------- the loop

    def _arrived(self, queue: str) -> None:
        if queue != COORDINATOR:
            self.crew.arrived(queue)
        elif not self._pass_due:
            self._pass_due = True
            self.agenda.after(BATCH_SECONDS, self._pass)

    def _tick(self) -> None:
        """A pass without events, in which leases and delays end."""
        if not self._pass_due:
            self._pass()
        self.agenda.after(self._paced(LONGEST), self._tick)

    def _pass(self) -> None:
        """As one of `Coordinator.run`."""
        self._pass_due = False
        began, ended = time.process_time(), self.coordinator.processes.ended
        taken = take_ready(self._events, BATCH)
        self.coordinator.receive(taken)
        self.coordinator.check_clock(ended if len(taken) < BATCH else frozenset())
        self.costs.loop += time.process_time() - began
        if self.bus.depth(COORDINATOR):
            self._pass_due = True
            self.agenda.after(FULL_PASS, self._pass)
        self._look()

    def _post(self, demand: Mapping[str, Demand]) -> None:
        self._changed = self._changed or demand != self._demand
        self._demand = demand
        self.reconciler.post(demand)

    def _turn(self) -> None:
        """As one of `Reconciler.run`, which pauses longer while the demand stays the same."""
        self._changed, began = False, time.process_time()
        self.reconciler.turn()
        self.costs.turns += time.process_time() - began
        pause = IDLE_SHARE * LISTING * self.fleet.alive
        pause = self._paced(max(SHORTEST, min(pause, LONGEST_PAUSE)))
        self.agenda.after(pause, self._turn_or_wait)

    def _turn_or_wait(self) -> None:
        if self._changed:
            self._turn()
        else:
            self.agenda.after(LONGEST - SHORTEST, self._turn)

    @property
    def _quiet(self) -> float:
        """Seconds without any work."""
        if any(use.busy for use in self.crew.use.values()):
            return 0.0
        return self.agenda.now - self.crew.worked_at

    def _paced(self, seconds: float) -> float:
        return max(seconds, SLOW) if self._quiet > QUIET else seconds

    def _count_decision(self, seconds: float) -> None:
        self._decided += 1

    def _look(self) -> None:
        """Notes which services have tasks that wait."""
        waiting = self._waiting()
        for service, use in self.crew.use.items():
            use.count(self.agenda.now)
            use.waits = any(
                count and SERVICES[queue_kind(queue)] == service for queue, count in waiting.items()
            )

    def _waiting(self) -> Counter[str]:
        return self.open.task_queue.waiting

    def _is_over(self) -> bool:
        state, now = self.open.state, self.agenda.now
        if state.finished is None:
            self._ended_at = now
            return state.paused is not None or self._quiet > STANDSTILL
        return not self.fleet.passing

    # ---------------------------------------------------------------------------- the outcome

    def _remember(self) -> None:
        """Takes a point of the picture."""
        waiting, starting = self.fleet.standing
        moment = Moment(
            time=self.agenda.now,
            waiting=waiting,
            starting=starting,
            idle=self.crew.slots[False],
            busy=self.crew.slots[True],
            tasks=self._waiting().total(),
            labels=len(self.crew.stored),
            cost=sum(map(self._cost, self.file.pools)),
        )
        self._moments.append(moment)
        if len(self._moments) >= 2 * MOMENTS:
            self._moments, self._every = self._moments[::2], 2 * self._every
        self.agenda.after(self._every, self._remember)

    def _cost(self, pool: str) -> float:
        use = self.fleet.use[pool]
        return use.total_hours(self.agenda.now) * self.file.pools[pool].price

    def _outcome(self) -> SimulationOutcome:
        state = self.open.state
        labels = label_counts(state)
        verdict, why = self._verdict()
        again = sum(self.crew.computed.values()) - len(self.crew.computed)
        return SimulationOutcome(
            campaign=self.spec.name,
            seed=self.seed,
            verdict=verdict,
            why=why,
            seconds=self._ended_at,
            labels=labels.labelled,
            rejected=labels.rejected,
            lost=labels.pending,
            doubled=self._doubled(),
            computed_again=again,
            committees=state.committee.version,
            tasks=len(state.tasks) + sum(state.archive.tasks_by_status.values()),
            events=self._decided,
            pools={name: self._pool(name) for name in self.file.pools},
            services={name: _service(use) for name, use in self.crew.use.items()},
            lost_seconds=self.crew.lost_seconds,
            messages=dict(self.bus.counts),
            calls=dict(self.fleet.calls),
            ledger_bytes=self.store.written["ledger"],
            moments=tuple(self._moments),
        )

    def _verdict(self) -> tuple[str, str]:
        state = self.open.state
        if state.finished is not None:
            return state.finished.verdict, state.finished.why
        if state.paused is not None:
            return "paused", state.paused
        status = self.reconciler.status
        reasons = (pool.reason for pool in status.pools.values()) if status else ()
        return "stands still", "; ".join(sorted({*filter(None, reasons)}))

    def _doubled(self) -> int:
        """Labels that are in the versions of the dataset more than once."""
        keys = self.store.list(campaign_uri(self.spec.name, "manifests", "dataset-"))
        datasets = (Dataset.model_validate_json(self.store.get(key)) for key in keys)
        counts = Counter(label.uri for dataset in datasets for label in dataset.labels)
        return counts.total() - len(counts)

    def _pool(self, name: str) -> PoolOutcome:
        use = self.fleet.use[name]
        return PoolOutcome(
            hours=use.total_hours(self.agenda.now),
            busy_hours=self.crew.busy_hours[name],
            cost=self._cost(name),
            launched=use.launched,
            most=use.most,
            preempted=use.preempted,
        )


def _service(use: Use) -> ServiceOutcome:
    return ServiceOutcome(
        while_work_waits=use.busy_waiting / use.present_waiting if use.present_waiting else None,
        whole_run=use.busy_seconds / use.present_seconds if use.present_seconds else None,
    )


def others_of(spec: Spec, file: FleetFile) -> dict[str, int]:
    """Workers besides the fleet, by queue. Raises SpecError for labels without a labeler."""
    served = {queue for pool in file.pools.values() for queue in pool.serves}
    given, labels = file.simulation.workers, f"{LABEL}{spec.labels.capability}"
    if labels not in served and not given.get(labels):
        raise SpecError(
            f"pools: none serves {labels}, the labels of campaign {spec.name}; add it to the pool "
            "that computes them, or give simulation.workers"
        )
    needed = (m.Train.QUEUE, m.Explore.QUEUE, m.Judge.QUEUE)
    return {queue: 1 for queue in needed if queue not in served} | given
