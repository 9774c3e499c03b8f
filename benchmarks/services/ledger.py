"""The ledger: events folded and appended, the whole of it replayed, a coordinator's restart."""

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
from tests.support.campaign_simulator import CampaignSimulator, spec, submission

CAMPAIGN = "world"
FRAMES = 50
NEVER = 1_000_000_000
RECENT = 100
"""Manifests that somebody may still read."""
LAST = 0.1
"""Share of the events that the cost at the end is taken over."""

T = TypeVar("T")


@dataclass
class Spent:
    """Seconds of CPU the coordinator's part has taken: deciding, appending, keeping snapshots. What
    the world takes to answer is nobody's, what the store takes is in `wall`, s."""

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
class Folded:
    """All events, and the last part of them; bytes of the process's memory at its largest."""

    whole: Spent
    last: Spent
    memory: int


def measure(servers: Servers, sizes: Sequence[int]) -> Iterator[Figure]:
    """Campaigns of `sizes` events, each in processes of its own."""
    for size in sizes:
        with at(servers, f"ledger-{size}") as site:
            folded = _apart(fold, site.settings, size)
            whole = folded.whole
            spent = f"{whole.wall:.1f} s, CPU {whole.seconds:.1f} s, {_mega(folded.memory)}"
            yield Figure(f"{whole.events:,} events folded and appended", spent)
            yield Figure("  CPU each", whole.per_event)
            yield Figure(f"  CPU each of the last {LAST:.0%}", folded.last.per_event)
            for what, act in (("replayed", replay), ("a coordinator's restart", restart)):
                seconds, cpu, memory = _apart(act, site.settings, size)
                per = f"CPU {cpu:.1f} s, {1e6 * cpu / whole.events:.0f} µs each, {_mega(memory)}"
                yield Figure(f"  {what}", f"{seconds:.1f} s, {per}")


def _mega(memory: int) -> str:
    return f"{memory / 1e6:,.0f} MB"


def _apart(act: Callable[[Settings, int], T], settings: Settings, events: int) -> T:
    """In a fresh process, whose memory is nobody else's."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(act, settings, events).result()


class Endless(CampaignSimulator):
    """Every committee finds new candidates, and the next one has learned them: nothing piles up
    but what a campaign keeps for good."""

    def __init__(self) -> None:
        super().__init__(ripe=NEVER)

    def learn(self, decision: m.Message) -> None:
        super().learn(decision)
        if len(self.manifests) > RECENT:
            del self.manifests[next(iter(self.manifests))]

    def _judge(self, command: m.Judge) -> list[m.Message]:
        return CampaignSimulator(ripe=0)._judge(command)


def fold(settings: Settings, events: int) -> Folded:
    """A campaign that never ends, in a world without engines, as a coordinator serves it: a batch
    is decided upon, then appended; now and then a snapshot."""
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
        ledger.snapshot(state)
        times.append(time.process_time())
        spent.wall += time.monotonic() - began
        spent.events += len(entries)
        spent.deciding += times[1] - times[0]
        spent.appending += times[2] - times[1]
        spent.keeping += times[3] - times[2]
        waiting += _answers(world, entries)
    return Folded(spent, spent.since(before), _peak())


def _decided(state: State, waiting: deque[m.Message]) -> tuple[State, list[LedgerEntry]]:
    """A batch of what waits, decided upon."""
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
    """What workers say to what was decided."""
    answers: list[m.Message] = []
    for decision in (decision for entry in entries for decision in entry.decided):
        world.learn(decision)
        if isinstance(decision, m.Command):
            answers += world.answer(decision)
    return answers


def replay(settings: Settings, _: int) -> tuple[float, float, int]:
    """Seconds to the last state from all segments, without a snapshot; those of CPU; bytes of
    memory."""
    return _timed(settings, lambda store: LedgerReader.begin(store, CAMPAIGN).update())


def restart(settings: Settings, _: int) -> tuple[float, float, int]:
    """The same until a new coordinator has the state, by the newest snapshot."""
    return _timed(settings, lambda store: Ledger.open(store, CAMPAIGN))


def _timed(settings: Settings, act: Callable[[Store], object]) -> tuple[float, float, int]:
    store, began, cpu = connect_store(settings), time.monotonic(), time.process_time()
    act(store)
    return time.monotonic() - began, time.process_time() - cpu, _peak()


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
