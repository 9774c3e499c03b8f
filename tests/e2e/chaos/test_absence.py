"""Nobody at the coordinator's desk for ten minutes, by its own clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dpstream.services.coordinator.service import Coordinator
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m
from tests.support.deployments.deployed_cluster import NAME, Cluster, check, plan

LEASE = 60.0
ABSENCE = 600.0


@dataclass
class Clock:
    ahead: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.mark.soak
def test_ten_minutes_without_a_coordinator_cost_nobody_a_lease(
    cluster: Cluster, tmp_path: Path
) -> None:
    gate, clock = tmp_path / "gate", Clock()
    cluster.start_worker("explorer")
    cluster.start_worker("labeler")
    cluster.start_worker("trainer", simulated_gate=str(gate))
    cluster.submit(plan())
    with _at_the_desk(cluster, clock):
        cluster.until_state(_is_training, "a training")
    clock.ahead += ABSENCE
    with _at_the_desk(cluster, clock) as coordinator:
        _wait_for_heartbeat(cluster, coordinator, clock)
        clock.ahead += ABSENCE  # this time the machine slept, with the coordinator on it
        _wait_for_heartbeat(cluster, coordinator, clock)
        gate.touch()
        state = cluster.finish()
    check(cluster, state)
    assert not cluster.recorded(m.LeaseLapsed)
    assert {task.command.attempt for task in state.tasks.values()} == {1}


@contextmanager
def _at_the_desk(cluster: Cluster, clock: Clock) -> Iterator[Coordinator]:
    stopping = threading.Event()
    with closing(cluster.bus()) as bus:
        coordinator = Coordinator(bus, cluster.store, LEASE, clock=clock, timer=clock)
        coordinator.open_all()
        thread = threading.Thread(target=coordinator.run, args=(stopping,))
        thread.start()
        try:
            yield coordinator
        finally:
            stopping.set()
            thread.join()


def _is_training(state: State) -> bool:
    tasks = state.tasks.values()
    return any(t.status == "running" and isinstance(t.command, m.Train) for t in tasks)


def _wait_for_heartbeat(cluster: Cluster, coordinator: Coordinator, clock: Clock) -> None:
    """One heard after now."""
    now = clock()

    def renewed() -> bool:
        leases = coordinator.open_campaigns[NAME].leases
        return any(deadline > now + LEASE + 0.5 for deadline in dict(leases).values())

    cluster.until(renewed, "a heartbeat")
