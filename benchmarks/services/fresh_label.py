"""Time for a fresh label to reach a training task."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.services import campaigns
from benchmarks.services.figures import Figure, milliseconds
from benchmarks.services.site import Servers, Site, at, wait_until
from dpstream.services.coordinator.ledger.ledger import LedgerReader
from dpstream.shared.messages import LabelsDone, TaskFailed


def measure(servers: Servers, labels: int) -> Iterator[Figure]:
    """One campaign per label, of which it is the last that the first training waits for."""
    with at(servers, "fresh-label") as site:
        site.employ("coordinator")
        for role in ("zeros", "reader"):
            site.employ(role)
        found = [_reached(site, f"fresh-{number}") for number in range(labels + 1)]
        site.end()
    yield milliseconds("label stored → its bytes read by a training task", found[1:])


def _reached(site: Site, campaign: str) -> float:
    """Seconds from the end of the label's handler until a trainer has read the dataset."""
    campaigns.empty(site.store, campaign, labels=1, bundle=1)
    campaigns.wake(site.bus, campaign)
    reading = LedgerReader.begin(site.store, campaign)

    def is_read() -> bool:
        reading.update()
        return reading.state.paused is not None

    wait_until(is_read, "nobody trained")
    (labelled,) = site.said(campaign, LabelsDone)
    read = min(event.time for event in site.said(campaign, TaskFailed))
    return float(read - labelled.time)
