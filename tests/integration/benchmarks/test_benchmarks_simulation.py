"""The benchmarks of the simulation run, at a tiny size, and it agrees with a real run."""

from __future__ import annotations

import pytest

from benchmarks.simulation.__main__ import TINY, measure
from benchmarks.simulation.sleeping import both

pytestmark = pytest.mark.soak
PRINTED = {
    "barrier": ("while work waits", "hours of lockstep over streaming", "0 lost, 0 doubled"),
    "preemption": ("throughput lost", "0 lost, 0 doubled"),
    "elastic": ("streaming, spot, elastic", "of the money"),
    "scale": ("µs per message", "longest plan", "per minute"),
    "frames": ("ms per label", "bytes per label"),
}


@pytest.mark.parametrize("name", PRINTED)
def test_it_prints_what_it_measured(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    points = measure(name, TINY)
    printed = capsys.readouterr().out
    assert [words for words in PRINTED[name] if words not in printed] == []
    assert points


@pytest.mark.server
def test_eight_sleeping_workers_take_as_long_as_simulated_ones() -> None:
    real, simulated = both(80)
    assert simulated.labeling == pytest.approx(real.labeling, rel=0.1)
    assert 3600 * simulated.label_hours == pytest.approx(real.busy, rel=0.1)
