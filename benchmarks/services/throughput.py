"""Measures durable no-op tasks per second through broker, claim, store and ledger."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from benchmarks.services import campaigns
from benchmarks.services.figures import Figure
from benchmarks.services.idle import per
from benchmarks.services.site import Report, Servers, at

ANCHOR = 1181.0
"""Tasks per second: Parsl's HTEX, without durability."""
BUNDLE = 20


def measure(servers: Servers, tasks: int, crews: Sequence[int]) -> Iterator[Figure]:
    """Runs `tasks` with each number of worker processes, one by one and in bundles."""
    for bundle in (1, BUNDLE):
        for workers in crews:
            yield from _run(servers, tasks, bundle, workers)


def _run(servers: Servers, tasks: int, bundle: int, workers: int) -> Iterator[Figure]:
    """From opening the campaign to the training that follows its last label, with all decisions."""
    name = f"throughput-{bundle}-{workers}"
    with at(servers, name) as site:
        site.start_process("coordinator")
        for _ in range(workers):
            site.start_process("no-op")
        campaigns.empty(site.store, name, tasks, bundle)
        began = time.monotonic()
        campaigns.wake(site.bus, name)
        seconds = site.wait_for_training(name) - began
        coordinator, *crew = site.end()
    how = "one by one" if bundle == 1 else f"in bundles of {bundle}"
    workers_text = "1 worker" if workers == 1 else f"{workers} workers"
    what = f"{tasks:,} durable no-op tasks {how}, {workers_text}"
    rate = tasks / seconds
    yield Figure(what, f"{rate:,.0f} /s ({seconds:.1f} s)", f"{ANCHOR:,.0f} /s", rate / ANCHOR)
    yield Figure("  requests per task: worker", per(_sum(crew), tasks))
    yield Figure("  requests per task: coordinator", per(coordinator.requests, tasks))
    busy = sum(report.cpu for report in crew)
    cpu = f"{1e3 * coordinator.cpu / tasks:.2f} ms coordinator, {1e3 * busy / tasks:.2f} ms workers"
    yield Figure("  CPU per task", cpu)


def _sum(reports: Sequence[Report]) -> dict[str, int]:
    methods = {method for report in reports for method in report.requests}
    return {method: sum(r.requests.get(method, 0) for r in reports) for method in methods}
