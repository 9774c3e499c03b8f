"""The ledger: events folded and appended, the whole of it replayed, a coordinator's restart."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.services.figures import Figure
from benchmarks.services.site import Servers, at
from services.coordinator.ledger import Entry, Ledger, Reading
from services.coordinator.policy import decide
from services.coordinator.service import BATCH
from shared import messages as m
from shared.codec import encode
from shared.connect import connect_store
from shared.settings import Settings
from shared.values import campaign_uri
from tests.unit.world import World, spec, submission

CAMPAIGN = "world"
FRAMES = 50
NEVER = 1_000_000_000
RECENT = 100
"""Manifests that somebody may still read."""
LAST = 0.1
"""Share of the events that the cost at the end is taken over."""

T = TypeVar("T")


@dataclass(frozen=True)
class Folded:
    """Seconds for `events`: all of them, and per event over the last part; of that for deciding
    and for encoding, the rest is the store's. `memory`: the process's largest, bytes."""

    events: int
    seconds: float
    last: float
    last_decided: float
    memory: int


def measure(servers: Servers, sizes: Sequence[int]) -> Iterator[Figure]:
    """Campaigns of `sizes` events, each in processes of its own."""
    for size in sizes:
        with at(servers, f"ledger-{size}") as site:
            folded = _apart(fold, site.settings, size)
            yield _folded(folded)
            for what, act in (("replayed", replay), ("a coordinator's restart", restart)):
                seconds, memory = _apart(act, site.settings, size)
                per = f"{1e6 * seconds / folded.events:.0f} µs each, {_mega(memory)}"
                yield Figure(f"{folded.events:,} events: {what}", f"{seconds:.1f} s, {per}")


def _folded(folded: Folded) -> Figure:
    mean = 1e6 * folded.seconds / folded.events
    at_the_end = f"{1e6 * folded.last:.0f} µs each (deciding {1e6 * folded.last_decided:.0f})"
    return Figure(
        f"{folded.events:,} events: folded and appended",
        f"{folded.seconds:.1f} s, {mean:.0f} µs each; the last {LAST:.0%} {at_the_end}, "
        f"{_mega(folded.memory)}",
    )


def _mega(memory: int) -> str:
    return f"{memory / 1e6:,.0f} MB"


def _apart(act: Callable[[Settings, int], T], settings: Settings, events: int) -> T:
    """In a fresh process, whose memory is nobody else's."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(act, settings, events).result()


class Endless(World):
    """Every committee finds new candidates, and the next one has learned them: nothing piles up
    but what a campaign keeps for good."""

    def __init__(self) -> None:
        super().__init__(ripe=NEVER)

    def learn(self, decision: m.Message) -> None:
        super().learn(decision)
        if len(self.manifests) > RECENT:
            del self.manifests[next(iter(self.manifests))]

    def _judge(self, command: m.Judge) -> list[m.Message]:
        return World(ripe=0)._judge(command)


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
    heard, deciding, began = 0, 0.0, time.monotonic()
    marks: list[tuple[int, float, float]] = []
    while heard < events:
        entries: list[Entry] = []
        started = time.monotonic()
        for _ in range(min(BATCH, len(waiting))):
            event = waiting.popleft()
            state, decided = decide(state, event)
            entries.append(Entry(event, decided))
        deciding += time.monotonic() - started
        ledger.append(entries)
        ledger.snapshot(state)
        heard += len(entries)
        waiting += _answers(world, entries)
        if heard >= (1 - LAST) * events:
            marks.append((heard, time.monotonic(), deciding))
    (first, then, before), (last, now, after) = marks[0], marks[-1]
    count = max(1, last - first)
    seconds = marks[-1][1] - began
    return Folded(heard, seconds, (now - then) / count, (after - before) / count, _peak())


def _answers(world: World, entries: Sequence[Entry]) -> list[m.Message]:
    """What workers say to what was decided."""
    answers: list[m.Message] = []
    for decision in (decision for entry in entries for decision in entry.decided):
        world.learn(decision)
        if isinstance(decision, m.Command):
            encode(decision)
            answers += world.answer(decision)
    return answers


def replay(settings: Settings, _: int) -> tuple[float, int]:
    """Seconds to the last state from all segments, without a snapshot; bytes of memory."""
    store, began = connect_store(settings), time.monotonic()
    reading = Reading.begin(store, CAMPAIGN)
    reading.look()
    return time.monotonic() - began, _peak()


def restart(settings: Settings, _: int) -> tuple[float, int]:
    """Seconds until a new coordinator has the state, by the newest snapshot; bytes of memory."""
    store, began = connect_store(settings), time.monotonic()
    Ledger.open(store, CAMPAIGN)
    return time.monotonic() - began, _peak()


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
