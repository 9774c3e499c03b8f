"""A deployment of release 0.1.0 is upgraded while a campaign runs, on a real broker and a real
store: first the coordinator, or first the workers."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpstream.deploy.devcluster.rabbitmq import RabbitNode
from dpstream.deploy.devcluster.seaweed import SeaweedServer
from dpstream.integrity.verify import verify
from dpstream.services.coordinator.ledger.ledger import read_segments
from dpstream.shared import messages as m
from tests.support.campaigns.small_campaign import labelled
from tests.support.deployments.deployed_cluster import (
    HEARTBEAT,
    NAME,
    PATIENT,
    ROLES,
    Cluster,
    computed_twice,
    deployed_as,
    undisturbed,
)
from tests.support.deployments.installed_release import VERSION, install, run

pytestmark = [pytest.mark.server, pytest.mark.soak]

OLD_COORDINATOR, OLD_WORKER = "services.coordinator", "tests.e2e.chaos.standin"
SUBMIT = (
    "import os; from shared.settings import Settings, read_settings; "
    "from tests.e2e.chaos.cluster import Cluster, plan; "
    "Cluster(read_settings(Settings), dict(os.environ)).submit(plan())"
)


class RollingCluster(Cluster):
    release: Path

    def folder_of(self, *module: str) -> Path:
        return self.release if module[0] in (OLD_COORDINATOR, OLD_WORKER) else super().folder_of()

    def begin(self) -> None:
        """Everything by release 0.1.0. Leases are longer than the test: what it loses is lost by
        the upgrade."""
        given = {"http_port": "0", "lease_seconds": PATIENT, "reissue_after": "2"}
        self.keep_running("coordinator", OLD_COORDINATOR, **given)
        for role in ROLES:
            given = {"name": role, "task_heartbeat": HEARTBEAT, "standin_seconds": "1.5"}
            self.keep_running(role, OLD_WORKER, role, **given)
        done = run(self.release, "-c", SUBMIT, **self.environment)
        assert done.returncode == 0, done.stderr

    def upgrade(self, name: str) -> None:
        """Stops a process in good order, and starts this release in its place."""
        stopped = self.stop_restarting(name).process
        stopped.send_signal(signal.SIGTERM)
        stopped.wait(timeout=60)
        if name == "coordinator":
            self.start_coordinator(lease_seconds=PATIENT)
        else:
            self.start_worker(name, simulated_seconds="1.5")

    def trainings(self) -> Counter[str]:
        """How often each training was completed, by task: each leaves a model."""
        models = (key for key in self.store.list(f"campaigns/{NAME}/results/") if "model" in key)
        return Counter(key.split("/")[3] for key in models)

    def check(self) -> None:
        state = self.finish()
        assert state.finished is not None
        assert state.finished.verdict == "converged"
        assert labelled(state) == labelled(undisturbed())
        assert computed_twice(self) == []
        codes = [segment.code for segment in read_segments(self.store, NAME)]
        assert codes == sorted(codes), "each release wrote a part of the ledger"
        assert codes[0] == VERSION
        found = verify(self.store, NAME)
        assert found.ledger.damage == {}
        assert f"chained from segment {codes.count(VERSION)} on" in found.ledger.chain


@pytest.fixture
def cluster(
    rabbit_node: RabbitNode,
    seaweed: SeaweedServer,
    tmp_path: Path,
) -> Iterator[RollingCluster]:
    cluster = deployed_as(RollingCluster, rabbit_node, seaweed)
    cluster.release = install(tmp_path / "release")
    yield cluster
    cluster.close()


def until_trained(cluster: RollingCluster, count: int) -> None:
    cluster.until(lambda: len(cluster.trainings()) >= count, f"{count} trainings")


def test_the_coordinator_first(cluster: RollingCluster) -> None:
    """A training under way ends at a worker of 0.1.0, and counts with the newer coordinator."""
    cluster.begin()
    until_trained(cluster, 1)
    cluster.upgrade("coordinator")
    until_trained(cluster, 2)
    for role in ROLES:
        cluster.upgrade(role)
    cluster.check()
    assert set(cluster.trainings().values()) == {1}
    assert {trained.attempt for trained in cluster.recorded(m.MemberTrained)} <= {1, 2}


def test_the_workers_first(cluster: RollingCluster) -> None:
    """The coordinator of 0.1.0 does not understand newer workers: a task that one of them has
    claimed waits for the newer coordinator, which then takes its result from the store."""
    cluster.begin()
    until_trained(cluster, 1)
    for role in ROLES:
        cluster.upgrade(role)
    until_trained(cluster, 2)
    cluster.upgrade("coordinator")
    cluster.check()
    assert set(cluster.trainings().values()) == {1}
