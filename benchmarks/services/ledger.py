"""Measures the ledger: applying and appending events, a full replay, a restart of the
coordinator."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from benchmarks.services.figures import Figure
from benchmarks.services.site import Servers, at
from dpstream.services.coordinator.garbage import collect_rarely
from dpstream.services.coordinator.ledger.ledger import Ledger, LedgerEntry, LedgerReader
from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.service import BATCH
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m
from dpstream.shared.codec import encode
from dpstream.shared.connect import connect_store
from dpstream.shared.ports import Store
from dpstream.shared.settings import Settings
from dpstream.shared.values import campaign_uri
from tests.support.campaigns.campaign_simulator import CampaignSimulator, spec, submission

CAMPAIGN = "world"
FRAMES = 50
NEVER = 1_000_000_000
RECENT = 100
"""Number of manifests kept for the simulator to read."""
LAST = 0.1
"""Share of the events, at the end, whose cost is reported separately."""

T = TypeVar("T")


@dataclass
class Spent:
    """CPU time of the coordinator's work, s: deciding, appending, snapshots. The time of the
    simulated workers is excluded; `wall`, s, includes the time of the store."""

    events: int = 0
    deciding: float = 0.0
    appending: float = 0.0
    keeping: float = 0.0
    wall: float = 0.0

    @property
    def seconds(self) -> float:
        return self.deciding + self.appending + self.keeping

    @property
    def per_event(self) -> str:
        parts = f"{self._each(self.deciding)} deciding, {self._each(self.appending)} appending"
        return f"{self._each(self.seconds)} µs ({parts}, {self._each(self.keeping)} snapshots)"

    def since(self, before: Spent) -> Spent:
        return Spent(**{name: now - getattr(before, name) for name, now in vars(self).items()})

    def _each(self, seconds: float) -> str:
        return f"{1e6 * seconds / self.events:.0f}"


@dataclass(frozen=True)
class Applied:
    """Cost of all events and of the last ones; `memory`: peak memory of the process, bytes."""

    whole: Spent
    last: Spent
    memory: int


def measure(servers: Servers, sizes: Sequence[int]) -> Iterator[Figure]:
    """Runs campaigns of `sizes` events, each in processes of its own."""
    for size in sizes:
        with at(servers, f"ledger-{size}") as site:
            applied = _apart(apply_events, site.settings, size)
            whole = applied.whole
            spent = f"{whole.wall:.1f} s, CPU {whole.seconds:.1f} s, {_mega(applied.memory)}"
            yield Figure(f"{whole.events:,} events applied and appended", spent)
            yield Figure("  CPU each", whole.per_event)
            yield Figure(f"  CPU each of the last {LAST:.0%}", applied.last.per_event)
            for what, act in (("replayed", replay), ("a coordinator's restart", restart)):
                seconds, cpu, memory = _apart(act, site.settings, size)
                per = f"CPU {cpu:.1f} s, {1e6 * cpu / whole.events:.0f} µs each, {_mega(memory)}"
                yield Figure(f"  {what}", f"{seconds:.1f} s, {per}")


def _mega(memory: int) -> str:
    return f"{memory / 1e6:,.0f} MB"


def _apart(act: Callable[[Settings, int], T], settings: Settings, events: int) -> T:
    """Calls `act` in a new process, so that its peak memory is its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(act, settings, events).result()


class Endless(CampaignSimulator):
    """A simulated campaign that never converges: every committee finds new candidates, and the next
    one finds them accurate, so that only tasks and labelled frames accumulate."""

    def __init__(self) -> None:
        super().__init__(ripe=NEVER)

    def learn(self, decision: m.Message) -> None:
        super().learn(decision)
        if len(self.manifests) > RECENT:
            del self.manifests[next(iter(self.manifests))]

    def _judge(self, command: m.Judge) -> list[m.Message]:
        return CampaignSimulator(ripe=0)._judge(command)


def apply_events(settings: Settings, events: int) -> Applied:
    """Runs a simulated campaign as a coordinator would: decides a batch, appends it, and writes a
    snapshot when one is due."""
    of = spec(
        mode="streaming",
        stages=[{"name": "only", "systems": ["methane"], "temperatures": [50.0, 100.0]}],
        md={"steps": 100, "every": 10, "trajectories": 50, "chunk": 5},
        selection={"per_round": 100, "select_every": 20},
        labels={"bundle": 1},
        budget={"labels": NEVER, "rounds": NEVER},
        streaming={"retrain_after": 100},
        initial={"perturb": {"copies": FRAMES}},
    )
    collect_rarely()
    store = connect_store(settings)
    store.put(campaign_uri(CAMPAIGN, "spec.json"), of.model_dump_json().encode())
    ledger, state = Ledger.open(store, CAMPAIGN)
    waiting, world = deque[m.Message]([submission(of, FRAMES)]), Endless()
    spent, before = Spent(), Spent()
    while spent.events < events:
        if spent.events < (1 - LAST) * events:
            before = replace(spent)
        began, times = time.monotonic(), [time.process_time()]
        state, entries = _decided(state, waiting)
        times.append(time.process_time())
        ledger.append(entries)
        times.append(time.process_time())
        state = ledger.snapshot(state)
        times.append(time.process_time())
        spent.wall += time.monotonic() - began
        spent.events += len(entries)
        spent.deciding += times[1] - times[0]
        spent.appending += times[2] - times[1]
        spent.keeping += times[3] - times[2]
        waiting += _answers(world, entries)
    return Applied(spent, spent.since(before), _peak())


def _decided(state: State, waiting: deque[m.Message]) -> tuple[State, list[LedgerEntry]]:
    """Decides the next batch of waiting events."""
    entries: list[LedgerEntry] = []
    for _ in range(min(BATCH, len(waiting))):
        event = waiting.popleft()
        state, decided = decide(state, event)
        for decision in decided:
            if isinstance(decision, m.Command):
                encode(decision)
        entries.append(LedgerEntry(event, decided))
    return state, entries


def _answers(world: CampaignSimulator, entries: Sequence[LedgerEntry]) -> list[m.Message]:
    """The events with which simulated workers answer the decisions."""
    answers: list[m.Message] = []
    for decision in (decision for entry in entries for decision in entry.decided):
        world.learn(decision)
        if isinstance(decision, m.Command):
            answers += world.answer(decision)
    return answers


def replay(settings: Settings, _: int) -> tuple[float, float, int]:
    """Rebuilds the state from all segments without a snapshot: wall time and CPU time, s; peak
    memory, bytes."""
    return _timed(settings, lambda store: LedgerReader.begin(store, CAMPAIGN).update())


def restart(settings: Settings, _: int) -> tuple[float, float, int]:
    """Opens the ledger as a new coordinator does, from the newest snapshot: same figures as
    `replay`."""
    return _timed(settings, lambda store: Ledger.open(store, CAMPAIGN))


def _timed(settings: Settings, act: Callable[[Store], object]) -> tuple[float, float, int]:
    collect_rarely()
    store, began, cpu = connect_store(settings), time.monotonic(), time.process_time()
    act(store)
    return time.monotonic() - began, time.process_time() - cpu, _peak()


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
