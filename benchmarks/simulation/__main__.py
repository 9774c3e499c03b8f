"""`python -m benchmarks.simulation NAME…|all [--full] [--sizes N,N…] [--picture FILE]`."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.services.figures import Figure, show
from benchmarks.simulation.campaigns import LABEL, TRAINING, Run, fixed, fleet, loop, queue, run
from benchmarks.simulation.picture import FRAMES, WORKERS, Point, draw, kept
from benchmarks.simulation.sleeping import compare
from dpstream.shared.logs import configure


@dataclass(frozen=True)
class Size:
    """`wave`: workers, and labels of a round; `small`: the same where several runs are compared;
    `waves`: labels of a campaign in waves; `seeds`: of runs with workers that are reclaimed."""

    wave: int
    small: int
    waves: int
    workers: tuple[int, ...]
    frames: tuple[int, ...]
    sleeping: int
    seeds: int


STEADY = 0.8
"""Share of the labels before the tail: afterwards workers run out of work."""
TINY = Size(20, 10, 4, (8, 16), (50, 100), 8, 1)
USUAL = Size(1000, 200, 10, (64, 10_000), (3_000, 30_000), 80, 5)
FULL = Size(1000, 1000, 10, (64, 10_000, 65_536), (10_000, 100_000, 1_000_000), 80, 2)


Measured = Figure | Point
"""A row of the table, or a point of the picture."""
IN_USE = "workers in use, first label to last"
LOST = "throughput lost, 30 % reclaimed per hour"
RECLAIMED = {
    "with notice": (True, False),
    "with restart files": (True, True),
    "without notice": (False, False),
}
"""Whether reclaimed workers get a notice, and whether labels then continue from restart files."""
MONEY, HOURS = "money, fixed at peak = 100", "hours, fixed at peak = 100"


def barrier(size: Size) -> Iterator[Measured]:
    """Streaming against lockstep, on workers that are always there."""
    workers, labels = size.wave, size.wave * size.waves
    pools = fixed(workers)
    streaming = run(loop("streaming", workers, labels), fleet(pools, candidates=[1.0] * 10_000))
    lockstep = run(loop("lockstep", workers, labels), fleet(pools, candidates=[0.55] * 10_000))
    waits = streaming.outcome.services["labeler"].while_work_waits or 0.0
    yield Figure("streaming: workers in use while work waits", f"{waits:.1%}", "≥ 95 %")
    yield Figure(
        "streaming: first label to last", f"{streaming.use(workers):.1%}", "at most 82 %: the tail"
    )
    yield Figure("lockstep: in its waves", f"{lockstep.use_in_waves(workers):.1%}", "35 %")
    yield Figure("lockstep: first label to last", f"{lockstep.use(workers):.1%}", "26 %")
    for name, each in (("streaming", streaming), ("lockstep", lockstep)):
        yield Point(IN_USE, "simulation", name, each.use(workers))
        hours = f"{each.labeling / 3600:.2f} h; whole campaign {each.outcome.seconds / 3600:.2f} h"
        yield Figure(f"{name}: first label to last", hours)
    ratio = lockstep.labeling / streaming.labeling
    yield Figure("hours of lockstep over streaming", f"{ratio:.2f}", "3.1")
    ratio = lockstep.outcome.seconds / streaming.outcome.seconds
    yield Figure("  of whole campaigns", f"{ratio:.2f}")
    yield _checked(labels, streaming, lockstep)


def preemption(size: Size) -> Iterator[Measured]:
    """The same labels, with and without workers that are reclaimed. Where the run ends depends on
    which label is interrupted last: several seeds."""
    workers, labels = size.small, size.small * size.waves
    pools, seeds = fixed(workers, spot=True), range(1, 1 + size.seeds)
    calm = [run(queue(labels), fleet(pools), seed) for seed in seeds]
    for how, (notice, restarts) in RECLAIMED.items():
        assumed = {"labels": {"preemptions": 0.3, "notice": notice}}
        file = fleet(pools, pools=assumed, restarts=restarts)
        spot = [run(queue(labels), file, seed) for seed in seeds]
        pairs = list(zip(calm, spot, strict=True))
        steady = [1 - one.until(STEADY) / other.until(STEADY) for one, other in pairs]
        whole = [1 - one.labeling / other.labeling for one, other in pairs]
        again = [each.outcome.lost_seconds / 3600 / each.label_hours for each in spot]
        reclaimed = sum(each.outcome.preempted for each in spot)
        yield Figure(f"30 % reclaimed per hour, {how}: workers reclaimed", f"{reclaimed:,}")
        yield Figure(f"  throughput lost, first {STEADY:.0%} of labels", _spread(steady), "< 10 %")
        yield Figure("  throughput lost, with the tail", _spread(whole))
        yield Figure("  work repeated", _spread(again))
        yield _checked(labels, *spot)
        yield Point(LOST, f"first {STEADY:.0%} of labels", how, statistics.mean(steady))
        yield Point(LOST, "with the tail", how, statistics.mean(whole))


def _spread(shares: Sequence[float]) -> str:
    """The mean, and the least and the largest value."""
    mean = f"{statistics.mean(shares):.1%}"
    return mean if len(shares) == 1 else f"{mean} ({min(shares):.1%} to {max(shares):.1%})"


def elastic(size: Size) -> Iterator[Measured]:
    """Money and hours of one campaign in lockstep and one in streaming mode."""
    wave = size.small
    start = {"start": 90, "image_pull": 60}
    ways = {
        "fixed at peak": (fixed(wave, price=1.0), {"labels": {"start": 90}}),
        "on demand, elastic": (
            {"labels": {"max": wave, "step": wave, "price": 1.0}},
            {"labels": start},
        ),
        "spot, elastic": (
            {"labels": {"max": wave, "step": wave, "price": 0.3, "spot": True}},
            {"labels": {**start, "preemptions": 0.1}},
        ),
    }
    for mode, share in (("lockstep", 0.55), ("streaming", 1.0)):
        campaign = loop(mode, wave, wave * size.waves)
        first: Run | None = None
        for name, (pools, assumed) in ways.items():
            each = run(campaign, fleet(pools, pools=assumed, candidates=[share] * 10_000))
            first = first or each
            money = each.outcome.cost / first.outcome.cost
            hours = each.outcome.seconds / first.outcome.seconds
            yield from (Point(MONEY, name, mode, money), Point(HOURS, name, mode, hours))
            what = f"{money:.0%} of the money, {hours:.0%} of the hours"
            facts = f"{each.outcome.cost:,.0f} in {each.outcome.seconds / 3600:.2f} h"
            yield Figure(f"{mode}, {name}", f"{what} ({facts})")
            yield _checked(wave * size.waves, each)


def scale(size: Size) -> Iterator[Measured]:
    """At most 1,000 workers in a launch, as Slurm allows."""
    for workers in size.workers:
        labels = max(workers, 2 * size.wave)
        pools = {"labels": {"engine": "slurm", "max": workers, "step": 1000}}
        each = run(queue(labels), fleet(pools))
        yield from _costs(f"{workers:,} workers, {labels:,} labels", each)
        yield from _points(WORKERS, workers, each)


def frames(size: Size) -> Iterator[Measured]:
    """Labels of a tenth of the usual time."""
    times = {"label": {key: value / 10 for key, value in LABEL.items()}, "train": TRAINING}
    for labels in size.frames:
        pools = fleet(fixed(size.wave), tasks=times)
        each = run(queue(labels), pools)
        yield from _costs(f"{labels:,} frames, {size.wave:,} workers", each)
        yield from _points(FRAMES, labels, each)


def real(size: Size) -> Iterator[Figure]:
    """Eight workers that sleep, simulated and as processes on a real broker and store."""
    yield from compare(size.sleeping)


def _costs(what: str, each: Run) -> Iterator[Figure]:
    outcome, minutes = each.outcome, each.outcome.seconds / 60
    messages, labels = outcome.messages["published"], outcome.labels
    calls = sum(outcome.calls.values()) / minutes
    yield Figure(what, f"{outcome.events:,} events and {messages:,} messages ({each.wall:.0f} s)")
    loop = f"{1e6 * each.loop / messages:.0f} µs per message"
    yield Figure("  coordinator", f"{loop}, {1e3 * each.loop / labels:.2f} ms per label")
    yield Figure("  ledger", f"{outcome.ledger_bytes / labels:,.0f} bytes per label")
    yield Figure("  memory, with the simulated workers", f"{each.memory / 2**20:,.0f} MiB")
    yield Figure("  longest plan", f"{1e3 * each.longest_plan:.1f} ms", "< 10 ms")
    yield Figure("  requests to the fleet engine", f"{calls:.0f} per minute")


def _points(what: str, size: int, each: Run) -> Iterator[Point]:
    panel, outcome = f"cost against the number of {what}", each.outcome
    yield Point(panel, "CPU per message", size, each.loop / outcome.messages["published"])
    yield Point(panel, "ledger per label", size, outcome.ledger_bytes / outcome.labels)
    calls = sum(outcome.calls.values()) / outcome.seconds
    yield Point(panel, "requests per minute", size, calls)


def _checked(labels: int, *runs: Run) -> Figure:
    """All labels are there, once."""
    lost = sum(labels - each.outcome.labels + each.outcome.lost for each in runs)
    doubled = sum(each.outcome.doubled for each in runs)
    again = sum(each.outcome.computed_again for each in runs)
    return Figure(
        "  labels", f"{lost} lost, {doubled} doubled; {again} computed again", "0 lost, 0 doubled"
    )


BENCHMARKS: Mapping[str, Callable[[Size], Iterable[Measured]]] = {
    "barrier": barrier,
    "preemption": preemption,
    "elastic": elastic,
    "scale": scale,
    "frames": frames,
    "real": real,
}


def main() -> None:
    arguments = _parser().parse_args()
    configure("error")
    size, points = FULL if arguments.full else USUAL, list[Point]()
    if arguments.sizes:
        size = replace(size, workers=arguments.sizes, frames=arguments.sizes)
    for name in BENCHMARKS if "all" in arguments.names else arguments.names:
        points += measure(name, size)
        if arguments.picture is not None:
            draw(kept(arguments.points, points), arguments.picture)


def measure(name: str, size: Size) -> list[Point]:
    """Runs one benchmark and prints its table; returns its points of the picture."""
    figures, points = list[Figure](), list[Point]()
    try:
        for each in BENCHMARKS[name](size):
            if isinstance(each, Point):
                points.append(each)
            else:
                figures.append(each)
    finally:  # prints what was measured, even after an interrupt
        show(name, figures)
    return points


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description=__doc__)
    parser.add_argument("names", nargs="+", choices=[*BENCHMARKS, "all"], metavar="NAME")
    parser.add_argument(
        "--full", action="store_true", help="65,536 workers and 1,000,000 frames as well"
    )
    parser.add_argument(
        "--sizes",
        type=lambda text: tuple(int(each) for each in text.split(",")),
        metavar="N,N…",
        help="numbers of workers of `scale`, and of frames of `frames`",
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write a picture (SVG)")
    parser.add_argument(
        "--points",
        type=Path,
        metavar="FILE",
        help="keep what the picture shows in this file (JSON), and add it to what it contains",
    )
    return parser


if __name__ == "__main__":
    main()
