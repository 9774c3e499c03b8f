"""Labelers that the coordinator starts on demand, with a real Slurm, as processes and on
Kubernetes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpstream.services.coordinator.fleet.engines import engines_of
from dpstream.services.coordinator.fleet.pools import read_fleet
from dpstream.services.coordinator.ledger.ledger import verdict
from dpstream.shared import messages as m
from dpstream.shared.ports import Fleet
from tests.support.campaigns.small_campaign import COLD, finish, labelled, state_of, write_spec
from tests.support.deployments.deployed_cluster import (
    NAME,
    WORKER_MODULE,
    Cluster,
    check,
    computed_twice,
    plan,
)
from tests.support.deployments.deployment import ROOT
from tests.support.servers.fleets import environment_of, until_gone
from tests.support.servers.grid_engine_server import GridEngineServer
from tests.support.servers.kube_namespace import IMAGE, Namespace
from tests.support.servers.slurm_server import SlurmServer

MOST = 3


def worker_variables(cluster: Cluster) -> dict[str, str]:
    return {
        **cluster.environment,
        "DPSTREAM_TASK_HEARTBEAT": "0.3",
        "DPSTREAM_SIMULATED_SECONDS": "1",
        "PYTHONPATH": str(ROOT),
    }


def fleet_file(folder: Path, cluster: Cluster, engine: str, **changes: Any) -> Path:
    """A pool of simulated labelers with the cluster's credentials."""
    lines = (f"export {key}={shlex.quote(each)}" for key, each in worker_variables(cluster).items())
    (folder / "labeler.env").write_text("\n".join(lines) + "\n")
    pool = {
        "engine": engine,
        "serves": ["label.tblite"],
        "command": [sys.executable, "-m", WORKER_MODULE, "labeler"],
        "max": MOST,
        "memory": "200M",
        "start_time": 1,
        "worth": 0,
        "idle_exit": 2,
        "cool_down": 2,
        "source": ["labeler.env"],
    }
    path = folder / "fleet.yaml"
    path.write_text(yaml.safe_dump({"deployment": "chaos", "pools": {"labels": pool | changes}}))
    return path


def alive(fleet: Fleet) -> int:
    return sum(launch.alive for launch in fleet.running())


@pytest.mark.soak
@pytest.mark.parametrize("engine", ["process", "sge", "slurm"])
def test_from_zero_to_max_and_back(
    engine: str,
    cluster: Cluster,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the way the coordinator is killed, and a worker is taken away and the master of Slurm or
    Grid Engine absent for a while: the same frames are labelled, none twice, and no worker is
    left."""
    monkeypatch.chdir(tmp_path)
    environment = environment_of(engine, request, tmp_path)
    cluster.environment |= environment
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    path = fleet_file(tmp_path, cluster, engine)
    fleet = engines_of(read_fleet(path), path)["labels"]

    cluster.start_coordinator(fleet=str(path))
    cluster.start_services(("trainer", "explorer"))
    assert alive(fleet) == 0
    cluster.submit(plan())
    most = 0

    def seen() -> int:
        nonlocal most
        most = max(most, alive(fleet))
        return most

    cluster.until(lambda: seen() == MOST, "the pool is full")
    cluster.until(lambda: cluster.recorded(m.LabelsDone), "a label")
    cluster.kill("coordinator")
    if engine == "slurm":
        slurm: SlurmServer = request.getfixturevalue("slurm_server")
        subprocess.run(["scancel", "--batch", "--signal=KILL", *_jobs()[:1]], check=True)
        slurm.stop_controller()
        time.sleep(3)
        slurm.start_controller()
    if engine == "sge":
        grid_engine: GridEngineServer = request.getfixturevalue("grid_engine")
        subprocess.run(["qdel", *grid_engine.running("dps.chaos.")[:1]], check=True)
        grid_engine.stop_master()
        time.sleep(3)
        grid_engine.start_master()
    cluster.until(lambda: seen() and verdict(cluster.store, NAME), "the campaign's end")
    check(cluster, cluster.finish())
    assert most == MOST
    until_gone(fleet)


@pytest.mark.soak
def test_the_task_of_a_worker_lost_without_a_word_is_issued_again_within_seconds(
    cluster: Cluster,
    slurm_server: SlurmServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lease is 15 minutes. Slurm lists the job as ended, and the claims of all its slots name
    its process, also for a coordinator that has started since."""
    monkeypatch.chdir(tmp_path)
    cluster.environment |= slurm_server.environment
    monkeypatch.setenv("SLURM_CONF", str(slurm_server.configuration))
    gate = tmp_path / "gate"
    envs = {"DPSTREAM_SIMULATED_GATE": str(gate)}
    path = fleet_file(tmp_path, cluster, "slurm", spot=True, envs=envs, slots=2)
    cluster.start_coordinator(fleet=str(path), lease_seconds="900")
    cluster.start_services(("trainer", "explorer"))
    cluster.submit(plan())

    def tasks_of_labelers() -> Counter[str]:
        return Counter(each.process for each in cluster.recorded(m.TaskClaimed) if each.process)

    cluster.until(lambda: 2 in tasks_of_labelers().values(), "a labeler has two tasks")
    lost = tasks_of_labelers().total()
    cluster.kill("coordinator")
    began = time.monotonic()
    subprocess.run(["scancel", "--batch", "--signal=KILL", *_jobs()], check=True)
    cluster.until(lambda: len(cluster.recorded(m.LeaseLapsed)) >= lost, "the end of the leases")
    assert time.monotonic() - began < 60
    assert all("has ended" in each.reason for each in cluster.recorded(m.LeaseLapsed))
    gate.touch()
    check(cluster, cluster.finish())
    until_gone(engines_of(read_fleet(path), path)["labels"])


@pytest.mark.soak
def test_a_methane_campaign_with_dft_labels_from_slurm_jobs(
    cluster: Cluster, slurm_server: SlurmServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job is cancelled, the node is set down, and the controller is away for a minute: the frames
    of an undisturbed campaign are labelled, none twice, and no job is left."""
    changes = {
        "name": NAME,
        "initial": {"perturb": {"copies": 24, "displace": 0.1}},
        "labels": {"code": "pyscf"},
        "stages": [COLD],
        "verification": {"nve_ps": 0.0},
        "max_attempts": 12,
    }
    calm = tmp_path / "calm"
    finish(write_spec(calm, **changes), calm / "root")
    peaceful = state_of(calm / "root", NAME)

    cluster.environment |= slurm_server.environment
    monkeypatch.setenv("SLURM_CONF", str(slurm_server.configuration))
    monkeypatch.chdir(tmp_path)
    labeler = [sys.executable, "-m", "dpstream.services.labeler"]
    path = fleet_file(tmp_path, cluster, "slurm", serves=["label.pyscf"], command=labeler, max=2)
    fleet = engines_of(read_fleet(path), path)["labels"]
    cluster.start_coordinator(fleet=str(path), lease_seconds="900")
    cluster.keep_running_engines(("trainer", "explorer"), tmp_path)
    assert alive(fleet) == 0
    cluster.submit_file(write_spec(tmp_path, **changes))

    def labels() -> int:
        return len(cluster.recorded(m.LabelsDone))

    def one_more(before: int) -> None:
        cluster.until(lambda: labels() > before, "a label")

    cluster.until(lambda: alive(fleet) == 2, "the pool is full")
    one_more(0)
    subprocess.run(["scancel", _jobs()[0]], check=True)
    one_more(labels())
    slurm_server.set_node_down()
    cluster.until(lambda: alive(fleet) == 0, "the jobs have failed")
    slurm_server.resume_node()
    one_more(labels())
    slurm_server.stop_controller()
    began, before = time.monotonic(), labels()
    cluster.until(lambda: time.monotonic() - began > 60, "a minute")
    during = labels() - before
    slurm_server.start_controller()
    state = cluster.finish()
    print(f"{len(labelled(state))} labels, {during} of them while the controller was away")
    assert during > 0
    assert labelled(state) == labelled(peaceful)
    assert computed_twice(cluster) == []
    until_gone(fleet)


@pytest.mark.soak
def test_from_zero_to_max_and_back_on_kubernetes(
    cluster: Cluster, kube: Namespace, tmp_path: Path
) -> None:
    """On the way a pod is reclaimed with notice, another killed without, the API server is away for
    a while, and the coordinator is killed: the same frames are labelled, none twice, no launch is
    made twice, and nothing is left."""
    path = fleet_file(
        tmp_path,
        cluster,
        "kubernetes",
        source=[],
        image=IMAGE,
        kubernetes={"namespace": kube.name, "secret": "dpstream-labeler"},
    )
    kube.secret("dpstream-labeler", **worker_variables(cluster))
    fleet = engines_of(read_fleet(path), path)["labels"]

    cluster.environment["KUBECONFIG"] = os.environ["KUBECONFIG"]
    cluster.start_coordinator(fleet=str(path))
    cluster.start_services(("trainer", "explorer"))
    assert kube.pods() == []
    cluster.submit(plan())
    most = 0

    def running() -> list[Any]:
        nonlocal most
        pods = [pod for pod in kube.pods() if pod["status"]["phase"] == "Running"]
        most = max(most, sum("deletionTimestamp" not in pod["metadata"] for pod in pods))
        return pods

    def pool() -> list[Any]:
        found = running()
        return found if len(found) == MOST else []

    reclaimed, killed, *_ = cluster.until(pool, "the pool is full")
    cluster.until(lambda: cluster.recorded(m.LabelsDone), "a label")
    kube.delete(reclaimed)
    kube.delete(killed, grace=0)
    cluster.kill("coordinator")
    if kube.server is not None:
        kube.server.stop()
        time.sleep(3)
        kube.server.start()
    cluster.until(lambda: (running(), verdict(cluster.store, NAME))[1], "the campaign's end")
    check(cluster, cluster.finish())
    assert most == MOST
    until_gone(fleet)
    if kube.server is not None:
        assert len(kube.server.launches) == len(set(kube.server.launches))


def _jobs() -> list[str]:
    """Running jobs of the deployment."""
    command = ["squeue", "--noheader", "--array", "--states=RUNNING", "--format=%i %j"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in listed.splitlines())
    return [job for job, name in rows if name.startswith("dps.chaos.")]
