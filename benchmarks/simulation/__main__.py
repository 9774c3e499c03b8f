"""`python -m benchmarks.simulation NAME…|all [--full]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.services.figures import Figure, show
from benchmarks.simulation.campaigns import LABEL, TRAINING, Run, fixed, fleet, loop, queue, run
from benchmarks.simulation.sleeping import compare
from dpstream.shared.logs import configure


@dataclass(frozen=True)
class Size:
    """`wave`: workers, and labels of a round; `small`: the same where several runs are compared;
    `waves`: labels of a campaign in waves."""

    wave: int
    small: int
    waves: int
    workers: tuple[int, ...]
    frames: tuple[int, ...]
    sleeping: int


STEADY = 0.8
"""Share of the labels before the tail: afterwards workers run out of work."""
TINY = Size(20, 10, 4, (8, 16), (50, 100), 8)
USUAL = Size(1000, 200, 10, (64, 10_000), (3_000, 30_000), 80)
FULL = Size(1000, 1000, 10, (64, 10_000, 65_536), (10_000, 100_000, 1_000_000), 80)


def barrier(size: Size) -> Iterator[Figure]:
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
        hours = f"{each.labeling / 3600:.2f} h; whole campaign {each.outcome.seconds / 3600:.2f} h"
        yield Figure(f"{name}: first label to last", hours)
    ratio = lockstep.labeling / streaming.labeling
    yield Figure("hours of lockstep over streaming", f"{ratio:.2f}", "3.1")
    ratio = lockstep.outcome.seconds / streaming.outcome.seconds
    yield Figure("  of whole campaigns", f"{ratio:.2f}")
    yield _checked(labels, streaming, lockstep)


def preemption(size: Size) -> Iterator[Figure]:
    """The same labels, with and without workers that are reclaimed."""
    workers, labels = size.small, size.small * size.waves
    pools = fixed(workers, spot=True)
    calm = run(queue(labels), fleet(pools))
    for notice in (True, False):
        assumed = {"labels": {"preemptions": 0.3, "notice": notice}}
        spot = run(queue(labels), fleet(pools, pools=assumed))
        how = "with notice" if notice else "without notice"
        steady = 1 - calm.until(STEADY) / spot.until(STEADY)
        whole = 1 - calm.labeling / spot.labeling
        share = spot.outcome.lost_seconds / 3600 / spot.label_hours
        reclaimed = spot.outcome.preempted
        yield Figure(f"30 % reclaimed per hour, {how}: workers reclaimed", f"{reclaimed:,}")
        yield Figure(f"  throughput lost, first {STEADY:.0%} of labels", f"{steady:.1%}", "< 10 %")
        yield Figure("  throughput lost, with the tail", f"{whole:.1%}")
        yield Figure("  work repeated", f"{share:.1%}")
        yield _checked(labels, spot)


def elastic(size: Size) -> Iterator[Figure]:
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
            what = f"{money:.0%} of the money, {hours:.0%} of the hours"
            facts = f"{each.outcome.cost:,.0f} in {each.outcome.seconds / 3600:.2f} h"
            yield Figure(f"{mode}, {name}", f"{what} ({facts})")
            yield _checked(wave * size.waves, each)


def scale(size: Size) -> Iterator[Figure]:
    """At most 1,000 workers in a launch, as Slurm allows."""
    for workers in size.workers:
        labels = max(workers, 2 * size.frames[0] // 3)
        pools = {"labels": {"engine": "slurm", "max": workers, "step": 1000}}
        yield from _costs(
            f"{workers:,} workers, {labels:,} labels", run(queue(labels), fleet(pools))
        )


def frames(size: Size) -> Iterator[Figure]:
    """Labels of a tenth of the usual time."""
    times = {"label": {key: value / 10 for key, value in LABEL.items()}, "train": TRAINING}
    for labels in size.frames:
        pools = fleet(fixed(size.wave), tasks=times)
        yield from _costs(f"{labels:,} frames, {size.wave:,} workers", run(queue(labels), pools))


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


def _checked(labels: int, *runs: Run) -> Figure:
    """All labels are there, once."""
    lost = sum(labels - each.outcome.labels + each.outcome.lost for each in runs)
    doubled = sum(each.outcome.doubled for each in runs)
    again = sum(each.outcome.computed_again for each in runs)
    return Figure(
        "  labels", f"{lost} lost, {doubled} doubled; {again} computed again", "0 lost, 0 doubled"
    )


BENCHMARKS: Mapping[str, Callable[[Size], Iterable[Figure]]] = {
    "barrier": barrier,
    "preemption": preemption,
    "elastic": elastic,
    "scale": scale,
    "frames": frames,
    "real": real,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description=__doc__)
    parser.add_argument("names", nargs="+", choices=[*BENCHMARKS, "all"], metavar="NAME")
    parser.add_argument(
        "--full", action="store_true", help="65,536 workers and 1,000,000 frames as well"
    )
    arguments = parser.parse_args()
    configure("error")
    for name in BENCHMARKS if "all" in arguments.names else arguments.names:
        figures = list[Figure]()
        try:
            for figure in BENCHMARKS[name](FULL if arguments.full else USUAL):
                figures.append(figure)
        finally:  # prints what was measured, even after an interrupt
            show(name, figures)


if __name__ == "__main__":
    main()
