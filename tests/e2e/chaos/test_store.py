"""A store that is down, slow or busy, and a disk that is full."""

from __future__ import annotations

import os
import time
from collections import deque
from pathlib import Path

import pytest

from dpstream.deploy.devcluster.rabbitmq import RabbitNode
from dpstream.deploy.devcluster.seaweed import SeaweedServer
from dpstream.shared import messages as m
from tests.support.campaigns.small_campaign import labelled
from tests.support.deployments.deployed_cluster import (
    PATIENT,
    WORKER_MODULE,
    Cluster,
    check,
    deployed,
    plan,
)
from tests.support.deployments.full_disk import can_be_had, filled, small_disk
from tests.support.servers.faulty_s3 import Handler, Proxy
from tests.support.soak import SOAK

DOWN = 60.0 if SOAK else 3.0


class Steady(deque[str]):
    """The same fault, however often it is taken."""

    def popleft(self) -> str:
        return self[0]


class Weather(Proxy):
    """Every request meets the fault of the hour."""

    SLEEP = 0.3

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.faults = Steady([""])

    def handle(self, request: Handler, body: bytes) -> None:
        try:
            super().handle(request, body)
        except OSError:  # there is no server behind us: hang up, as it would
            request.close_connection = True


def test_a_store_that_is_slow_busy_and_down(
    rabbit_node: RabbitNode, seaweed: SeaweedServer
) -> None:
    print(f"down for {DOWN:g} s")
    weather = Weather(seaweed.endpoint)
    with weather.serving() as url:
        cluster = deployed(rabbit_node, seaweed, endpoint=url)
        try:
            _endure(cluster, weather, seaweed)
        finally:
            cluster.close()


def _endure(cluster: Cluster, weather: Weather, seaweed: SeaweedServer) -> None:
    cluster.start_services(simulated_seconds="0.2")
    cluster.submit(plan())
    cluster.until_state(labelled, "a label")
    for fault in ("503", "sleep"):
        weather.faults[0] = fault
        time.sleep(DOWN)
    weather.faults[0] = ""
    cluster.until_state(lambda state: state.committee.version, "a committee")
    seaweed.kill()
    time.sleep(DOWN)
    seaweed.start()
    check(cluster, cluster.finish())
    assert not cluster.restarts


@pytest.mark.soak
@pytest.mark.skipif(not can_be_had(), reason="no user namespaces here to fill a disk in")
def test_a_worker_whose_disk_is_full_holds_nothing_up(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_coordinator(lease_seconds=PATIENT)
    cluster.start_services(["trainer", "explorer"])
    given = {"name": "full", "scratch": str(tmp_path), "task_heartbeat": "0.3"}
    full = ("tests.support.deployments.full_disk", str(tmp_path), WORKER_MODULE, "labeler")
    cluster.keep_running("full", *full, **given)
    cluster.submit(plan())
    cluster.until(lambda: cluster.recorded(m.TaskReleased), "a task given back")
    cluster.start_worker("labeler")
    state = cluster.finish()
    check(cluster, state)
    reasons = {event.reason for event in cluster.recorded(m.TaskReleased)}
    assert reasons == {"this worker's machine: No space left on device"}
    assert {task.lapses for task in state.tasks.values()} == {0}
    assert not cluster.restarts


@pytest.mark.soak
@pytest.mark.skipif(os.geteuid() != 0, reason="a disk of its own needs root")
def test_a_store_whose_disk_is_full(rabbit_node: RabbitNode, tmp_path: Path) -> None:
    """Nothing is lost or doubled once there is space again and the server was started anew."""
    server = SeaweedServer(tmp_path / "seaweed")
    with small_disk(server.folder / "data", "3G"):
        server.start()
        cluster = deployed(rabbit_node, server)
        try:
            cluster.start_services(simulated_seconds="0.5")
            cluster.submit(plan())
            cluster.until_state(labelled, "a label")
            with filled(server.folder / "data"):
                cluster.until(lambda: _outages(cluster), "a write that fails")
                time.sleep(DOWN)
            server.kill()
            server.start()
            check(cluster, cluster.finish())
            assert not cluster.restarts
        finally:
            cluster.close()
            server.kill()


def _outages(cluster: Cluster) -> list[str]:
    """Services that have logged that the store fails."""
    lines = ("broker or store failed, trying again", "store failed, trying again")
    return [name for name, each in cluster.services.items() if any(map(each.logged, lines))]
