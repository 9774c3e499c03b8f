"""Pools whose Jobs KEDA creates: the manifests, the number that KEDA reads, and a coordinator that
only observes."""

from __future__ import annotations

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from fastapi.testclient import TestClient

from dpstream.services.coordinator.fleet.engines.keda import AUTHENTICATION
from dpstream.services.coordinator.fleet.engines.worker_pods import launch_of, launched_at
from dpstream.services.coordinator.fleet.plan import Demand, PoolStanding, plan
from dpstream.services.coordinator.fleet.pools import PoolSettings, read_fleet
from dpstream.services.coordinator.fleet.status import FleetStatus, PoolStatus
from dpstream.services.coordinator.http.api import make_app
from dpstream.services.coordinator.http.metrics import CoordinatorMetrics
from dpstream.services.coordinator.http.read_access import ReadAccess
from dpstream.services.coordinator.service import Coordinator
from dpstream.shared.bus.memory import Broker, InProcessBus
from dpstream.shared.ports import Launch
from dpstream.shared.store.folder import FolderStore
from tests.support.command_line import run_command

COMPONENT = Path(__file__).parents[4] / "k8s" / "components" / "keda"
KUBECTL = Path(sys.executable).with_name("kubectl")
DATA = os.environ.get("DPSTREAM_TEST_DATA")


def objects() -> list[dict[str, Any]]:
    names = ("authentication.yaml", "scaledjobs.yaml")
    return [each for name in names for each in yaml.safe_load_all((COMPONENT / name).read_text())]


def pool(**changes: Any) -> PoolSettings:
    settings = {
        "engine": "kubernetes",
        "image": "labeler:1",
        "serves": ["label.vasp"],
        "max": 10,
        "kubernetes": {"actuator": "keda"},
    }
    return PoolSettings.model_validate(settings | changes)


def strict(schema: Any) -> Any:
    """The schema, with every field refused that it does not name."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    free = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and not free:
        found["additionalProperties"] = False
    return found


@pytest.mark.skipif(DATA is None, reason="DPSTREAM_TEST_DATA names no folder of recorded data")
def test_keda_knows_every_field() -> None:
    schemas = {}
    for path in Path(DATA or "", "keda").glob("*.yaml"):
        definition = yaml.safe_load(path.read_text())
        (version,) = definition["spec"]["versions"]
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        schemas[definition["spec"]["names"]["kind"]] = schema
    for each in objects():
        jsonschema.validate(each, schemas[each["kind"]])
    wrong = deepcopy(objects()[1])
    wrong["spec"]["rollout"]["stratagy"] = "gradual"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schemas["ScaledJob"])


def test_the_scaled_jobs_are_what_fleet_render_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = COMPONENT / "fleet.yaml"
    _, printed, _ = run_command(monkeypatch, capsys, "fleet", "render", file)
    scaled = list(yaml.safe_load_all((COMPONENT / "scaledjobs.yaml").read_text()))
    assert list(yaml.safe_load_all(printed)) == scaled
    assert len(scaled) == len(read_fleet(file).pools)


def test_a_scaled_job_runs_the_workers_of_its_pool() -> None:
    for each in objects()[1:]:
        spec, labels = each["spec"], each["metadata"]["labels"]
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
        kubernetes_validate.validate({**job, "spec": spec["jobTargetRef"]}, "1.36", strict=True)
        assert "scalingStrategy" not in spec
        assert spec["rollout"] == {"strategy": "gradual"}, "a change deletes no running worker"
        (trigger,) = spec["triggers"]
        assert trigger["authenticationRef"] == {"name": AUTHENTICATION}
        metric = trigger["metadata"]
        assert metric["targetValue"] == "1"
        assert metric["url"].endswith(f"/fleet/wanted/{labels['dpstream/pool']}")
        (container,) = spec["jobTargetRef"]["template"]["spec"]["containers"]
        given = {each["name"]: each.get("value") for each in container["env"]}
        assert given["DPSTREAM_POOL"] == labels["dpstream/pool"]


def test_kustomize_takes_the_component(tmp_path: Path) -> None:
    folder = COMPONENT.parents[1]
    lines = {"resources": [folder / "overlays" / "local"], "components": [COMPONENT]}
    relative = {
        key: [os.path.relpath(path, tmp_path.resolve()) for path in paths]
        for key, paths in lines.items()
    }
    kind = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kind | relative))
    done = subprocess.run([KUBECTL, "kustomize", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("kind: ScaledJob") == 2


def test_the_coordinator_launches_nothing_in_a_pool_of_keda() -> None:
    """It still computes how many workers are wanted, and never more than it may have."""
    demand = {"label.vasp": Demand(waiting=7, seconds=355.0)}
    old = PoolStanding((Launch("a", "p", waiting=9),))
    for standing in (PoolStanding(), old):
        found = plan(demand, {"p": standing}, {"p": pool()}, 1e6)
        assert (found.launches, found.retirements) == ((), ())
    assert found.verdicts["p"].wanted == 7
    used_up = PoolStanding(blocked="the budget is used up", closed=True)
    assert plan(demand, {"p": used_up}, {"p": pool()}, 1e6).verdicts["p"].wanted == 0
    with pytest.raises(ValueError, match=r"min: 1: must be 0 with kubernetes.actuator: keda"):
        pool(min=1)


def test_a_job_of_keda_is_a_launch() -> None:
    created = "2026-01-01T00:00:00Z"
    job = {"metadata": {"name": "lab-cpu-x1", "labels": {}, "creationTimestamp": created}}
    pod = {"metadata": {"name": "lab-cpu-x1-abc", "labels": {"job-name": "lab-cpu-x1"}}}
    assert launch_of(job) == launch_of(pod) == "lab-cpu-x1"
    assert launched_at(job) == 1767225600.0


def test_keda_reads_the_wanted_number_of_a_pool(tmp_path: Path) -> None:
    """While broker or store do not answer it gets none, and creates nothing."""
    coordinator = Coordinator(InProcessBus(Broker()), FolderStore(tmp_path))
    read_access = ReadAccess(coordinator)
    app = make_app(read_access, CoordinatorMetrics(read_access), None)
    client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    status = FleetStatus.model_construct(
        pools={"cpu": PoolStatus.model_construct(wanted=7)}, is_current=True
    )
    coordinator.fleet_status = lambda: status
    assert client.get("/fleet/wanted/cpu").json() == {"wanted": 7}
    assert client.get("/fleet/wanted/gpu").status_code == 404
    coordinator.fleet_status = lambda: status.model_copy(update={"is_current": False})
    assert client.get("/fleet/wanted/cpu").status_code == 503
