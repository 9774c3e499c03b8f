"""Measures the idle time between two label tasks on one worker, and the store requests per
label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from benchmarks.services import campaigns
from benchmarks.services.figures import Figure, milliseconds
from benchmarks.services.site import Report, Servers, Site, at
from dpstream.shared.messages import LabelsDone

ANCHOR = 98.0
"""ms: Colmena with Parsl and Redis."""
WARM_UP = 5
"""Tasks that are not counted."""
AT_MOST = {"PUT": 4, "GET": 4, "LIST": 0}
"""Requests per label that the design allows."""


def measure(servers: Servers, labels: int, bundles: Sequence[int]) -> Iterator[Figure]:
    """No-op labels, then GFN2-xTB labels of methane with the given numbers of frames per task."""
    with at(servers, "idle-noop") as site:
        campaigns.empty(site.store, "noop", labels, bundle=1)
        _label_all(site, "noop", "no-op")
        yield milliseconds("idle between two no-op label tasks", _idle(site, "noop"), ANCHOR)
    for bundle in bundles:
        name, count = f"tblite-{bundle}", max(WARM_UP + 2, labels // 5) * bundle
        with at(servers, f"idle-{name}") as site:
            campaigns.real(site.store, name, campaigns.methanes(count), bundle)
            reports = _label_all(site, name, "labeler")
            what = "idle between two tblite label tasks"
            if bundle > 1:
                what += f", {bundle} frames each"
            yield milliseconds(what, _idle(site, name), ANCHOR)
            yield _requests(reports, count, bundle)


def _label_all(site: Site, campaign: str, role: str) -> list[Report]:
    site.start_process("coordinator")
    site.start_process(role)
    site.wait_for_training(campaign)
    return site.end()


def _idle(site: Site, campaign: str) -> Sequence[float]:
    """Times from the end of one handler to the start of the next, s."""
    ended = (event for event in site.events(campaign, LabelsDone) if event.last)
    done = sorted(ended, key=lambda event: event.time)[WARM_UP:]
    return [after.time - after.seconds - before.time for before, after in pairwise(done)]


def _requests(reports: Sequence[Report], labels: int, bundle: int) -> Figure:
    """Store requests of coordinator and labeler, per label."""
    total: Counter[str] = Counter()
    for report in reports:
        total.update(report.requests)
    what = f"requests per label, bundles of {bundle}: worker and coordinator, start included"
    allowed = ", ".join(f"≤ {most} {method}" for method, most in AT_MOST.items())
    return Figure(what, per(total, labels), f"design: {allowed}")


def per(requests: Mapping[str, int], count: int) -> str:
    """Formats requests by method, divided by `count`."""
    methods = ("PUT", "GET", "HEAD", "LIST")
    return ", ".join(f"{requests.get(method, 0) / count:.2f} {method}" for method in methods)
