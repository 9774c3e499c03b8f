"""What only Kubernetes does, on a small server of our own or, with DPSTREAM_TEST_KUBECONFIG, on any
cluster."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from kubernetes import client

from dpstream.services.coordinator.fleet.engines import kubernetes
from dpstream.services.coordinator.fleet.engines.kubernetes import KubernetesFleet
from dpstream.shared.errors import FleetError, FleetLimit
from dpstream.shared.ports import Launch
from tests.support.servers.fleets import NAME, STAYING, until, until_gone
from tests.support.servers.kube_namespace import Namespace

pytestmark = pytest.mark.server


def test_an_image_that_does_not_exist_is_told_in_the_words_of_the_node(kube: Namespace) -> None:
    pool = kube.pool(image="nowhere:1")
    fleet = KubernetesFleet("d", {"cpu": pool}, Path())
    fleet.launch("cpu", 2, NAME)
    launch = until(fleet, lambda each: each.stuck == 2)
    assert launch.reason.startswith(("ImagePullBackOff", "ErrImagePull"))
    assert (launch.waiting, launch.alive) == (2, 2)
    assert fleet.retire(launch, 5) == 2
    until_gone(fleet)


def test_workers_that_find_no_room_are_taken_back(kube: Namespace) -> None:
    fleet = KubernetesFleet("d", {"cpu": kube.pool(*STAYING, cpus=10000)}, Path())
    fleet.launch("cpu", 3, NAME)
    launch = until(fleet, lambda each: each.waiting == 3 and bool(each.reason))
    assert launch.reason.startswith("Unschedulable: 0/")
    assert fleet.retire(launch, 1) == 1
    launch = until(fleet, lambda each: each.waiting == 2)
    assert fleet.retire(launch, 2) == 2
    until_gone(fleet)


def test_a_quota_is_a_limit(kube: Namespace) -> None:
    fleet = KubernetesFleet("d", {"cpu": kube.pool(*STAYING)}, Path())
    kube.forbid_jobs()
    with pytest.raises(FleetLimit, match="exceeded quota"):
        fleet.launch("cpu", 1, NAME)
    assert list(fleet.running()) == []


def test_a_job_that_is_not_accepted_is_told_at_once(kube: Namespace) -> None:
    pool = kube.pool(*STAYING, kubernetes={"patch": {"spec": {"containers": [{"name": "w"}]}}})
    fleet = KubernetesFleet("d", {"cpu": pool}, Path())
    for attempt in (lambda: fleet.check("cpu"), lambda: fleet.launch("cpu", 1, NAME)):
        with pytest.raises(FleetError, match="is invalid") as caught:
            attempt()
        assert not isinstance(caught.value, FleetLimit)
    assert list(fleet.running()) == []


def test_a_check_starts_nothing(kube: Namespace) -> None:
    fleet = KubernetesFleet("d", {"cpu": kube.pool(*STAYING)}, Path())
    fleet.check("cpu")
    assert list(fleet.running()) == []


def test_a_reclaimed_worker_is_replaced_and_named(kube: Namespace) -> None:
    """Its pod is deleted: it gives back its task, and the Job controller starts another one."""
    fleet = KubernetesFleet("d", {"cpu": kube.pool(*STAYING)}, Path())
    fleet.launch("cpu", 1, NAME)
    until(fleet, lambda each: each.running == 1)
    time.sleep(1)  # until bash has read the trap
    (pod,) = kube.pods()
    kube.delete(pod)
    gone: set[str] = set()

    def is_replaced(launch: Launch) -> bool:
        gone.update(launch.gone)
        return pod["metadata"]["name"] in gone and launch.running == 1

    fleet.end(until(fleet, is_replaced))


def test_workers_whose_job_was_deleted_are_running_until_they_end(kube: Namespace) -> None:
    """`kubectl delete job` deletes a Job before its pods, which then have their grace period."""
    fleet = KubernetesFleet("d", {"cpu": kube.pool(*STAYING)}, Path())
    fleet.launch("cpu", 1, NAME)
    up = until(fleet, lambda each: each.running == 1).up
    client.BatchV1Api().delete_namespaced_job(f"d-{NAME}", kube.name, propagation_policy="Orphan")
    for _ in range(2):
        (launch,) = fleet.running()
        assert (launch.pool, launch.running, launch.up, launch.gone) == ("cpu", 1, up, frozenset())
    (pod,) = kube.pods()
    kube.delete(pod, grace=0)
    until(fleet, lambda each: each.gone == up)
    assert list(fleet.running()) == []


def test_while_the_api_server_is_away_nothing_is_known(kube: Namespace) -> None:
    if kube.server is None:
        pytest.skip("a cluster from outside is not stopped")
    fleet = KubernetesFleet("d", {"cpu": kube.pool(*STAYING)}, Path())
    fleet.launch("cpu", 1, NAME)
    until(fleet, lambda each: each.running == 1)
    kube.server.stop()
    with pytest.raises(FleetError, match="does not answer"):
        fleet.running()
    kube.server.start()
    assert until(fleet, lambda each: each.running == 1).gone == frozenset()


def test_lists_are_read_page_by_page(kube: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "PAGE", 2)
    fleet = KubernetesFleet("d", {"cpu": kube.pool(*STAYING, cpus=10000)}, Path())
    fleet.launch("cpu", 5, NAME)
    until(fleet, lambda each: each.waiting == 5 and each.reason.startswith("Unschedulable"))


def test_deployments_do_not_see_each_other(kube: Namespace) -> None:
    pools = {"cpu": kube.pool(*STAYING, cpus=10000)}
    one, two = KubernetesFleet("one", pools, Path()), KubernetesFleet("two", pools, Path())
    one.launch("cpu", 1, NAME)
    assert list(two.running()) == []
