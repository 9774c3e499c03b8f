"""Measures the time until a training task has read a new label."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.services import campaigns
from benchmarks.services.figures import Figure, milliseconds
from benchmarks.services.site import Servers, Site, at, wait_until
from dpstream.services.coordinator.ledger.ledger import LedgerReader
from dpstream.shared.messages import LabelsDone, TaskFailed


def measure(servers: Servers, labels: int) -> Iterator[Figure]:
    """Uses one campaign per label; its first training waits for this label only."""
    with at(servers, "fresh-label") as site:
        site.start_process("coordinator")
        for role in ("zeros", "reader"):
            site.start_process(role)
        seconds = [_seconds(site, f"fresh-{number}") for number in range(labels + 1)]
        site.end()
    yield milliseconds("label stored → its bytes read by a training task", seconds[1:])


def _seconds(site: Site, campaign: str) -> float:
    """Seconds from the end of the label's handler until a trainer has read the dataset."""
    campaigns.empty(site.store, campaign, labels=1, bundle=1)
    campaigns.wake(site.bus, campaign)
    reader = LedgerReader.begin(site.store, campaign)

    def is_read() -> bool:
        reader.update()
        return reader.state.paused is not None

    wait_until(is_read, "no training task has run")
    (labelled,) = site.events(campaign, LabelsDone)
    read = min(event.time for event in site.events(campaign, TaskFailed))
    return float(read - labelled.time)
