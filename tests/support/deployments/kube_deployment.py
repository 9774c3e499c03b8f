"""A deployment from the manifests in `k8s/`, in a namespace of its own on a cluster from outside.

All that goes in and out passes through the API server. Campaigns are submitted and read by a pod,
which reaches broker and store from any cluster.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpstream.deploy.access_files import parse_deployment, write_access
from dpstream.inputs.gather import gather
from dpstream.running.submit import announced, submit
from dpstream.services.labeler.recipes import make_recipe
from dpstream.shared.access import ROLES
from dpstream.shared.codec import encode
from dpstream.shared.spec import load_spec
from dpstream.shared.store.folder import FolderStore
from tests.support.deployments.deployment import ROOT
from tests.support.servers.kube_namespace import KUBECONFIG, image

K8S = ROOT / "k8s"
LOCAL = K8S / "overlays" / "local"
KUBECTL = Path(sys.executable).with_name("kubectl")
CLIENT = Path(__file__).with_name("kube_client.py")
NAME, POOL = "app.kubernetes.io/name", "dpstream/pool"
SERVERS = ("broker", "store", "coordinator")
SECONDS = 600.0
"""Limit of every wait: the cluster may have to fetch images of gigabytes."""
QUICK = {"cpus": 1, "memory": "2G", "worth": 0, "idle_exit": 30, "cool_down": 5}
"""Of every pool: the campaign takes minutes, on nodes of two cores."""
DATA = [
    {"op": "remove", "path": "/spec/volumeClaimTemplates"},
    {
        "op": "add",
        "path": "/spec/template/spec/volumes/-",
        "value": {"name": "data", "emptyDir": {"sizeLimit": "1Gi"}},
    },
]
"""Data of the servers that ends with their pods: no StorageClass is needed."""
CLIENT_POLICY = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "spec": {
        "podSelector": {
            "matchExpressions": [
                {
                    "key": NAME,
                    "operator": "In",
                    "values": ["dpstream-broker", "dpstream-store", "dpstream-client"],
                }
            ]
        },
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {NAME: "dpstream-client"}}}]}],
        "egress": [
            {"to": [{"podSelector": {"matchLabels": {NAME: "dpstream-broker"}}}]},
            {"to": [{"podSelector": {"matchLabels": {NAME: "dpstream-store"}}}]},
        ],
    },
}
"""Broker and store for the client, which no manifest knows."""

Object = dict[str, Any]


@dataclass
class KubeDeployment:
    namespace: str
    folder: Path
    most: Counter[str] = field(default_factory=Counter)
    """Most workers that were seen running at once, by pool."""

    # -------------------------------------------------------------------------- the deployment

    def start(self, campaign: str) -> None:
        """Applies the overlay `local` with a generator for the campaign, and waits until its
        services are ready."""
        self.objects = self._rendered(campaign)
        (namespace,) = self._of_kind("Namespace")
        self._apply([namespace])
        for secret in self._secrets():
            self.kubectl("apply", "--filename=-", given=secret)
        # The generator's job runs when the test starts it.
        self._apply([each for each in self.objects if each["kind"] != "CronJob"])
        for server in SERVERS:
            self.until_ready(server)

    def until_ready(self, server: str) -> None:
        statefulset = f"statefulset/dpstream-{server}"
        self.kubectl("rollout", "status", statefulset, f"--timeout={SECONDS:.0f}s")

    def _rendered(self, campaign: str) -> list[Object]:
        """The manifests, as `kubectl apply -k` applies them."""
        overlay = self.folder / "overlay"
        overlay.mkdir()
        fleet = yaml.safe_load((LOCAL / "fleet.yaml").read_text())
        for pool in fleet["pools"].values():
            pool |= {**QUICK, "image": image(pool["image"])}
            pool["kubernetes"]["namespace"] = self.namespace
        (overlay / "fleet.yaml").write_text(yaml.safe_dump(fleet))
        path = "/spec/jobTemplate/spec/template/spec/containers/0/args"
        arguments = [{"op": "replace", "path": path, "value": [campaign]}]
        settings = {
            "namespace": self.namespace,
            "resources": [os.path.relpath(LOCAL, overlay)],
            "components": [os.path.relpath(K8S / "components" / "generator", overlay)],
            "configMapGenerator": [
                {
                    "name": "dpstream-fleet",
                    "namespace": "dpstream",
                    "behavior": "replace",
                    "files": ["fleet.yaml"],
                }
            ],
            "generatorOptions": {"disableNameSuffixHash": True},
            "images": [{"name": "dpstream-coordinator", "newName": image("dpstream-coordinator")}],
            "patches": [
                {
                    "target": {"kind": "StatefulSet", "name": "dpstream-(broker|store)"},
                    "patch": json.dumps(DATA),
                },
                {"target": {"kind": "CronJob"}, "patch": json.dumps(arguments)},
            ],
        }
        (overlay / "kustomization.yaml").write_text(yaml.safe_dump(settings))
        return list(yaml.safe_load_all(self.kubectl("kustomize", str(overlay))))

    def _secrets(self) -> Iterator[str]:
        """Secrets of a user per service and of one more operator, the client."""
        access, users = self.folder / "access", ",".join([*ROLES, "client=operator"])
        write_access(parse_deployment(users, "dpstream", "", "dpstream", ""), access)
        yield self._printed("secrets.sh", access, LOCAL, self.namespace)
        yield self._printed("components/servers/secrets.sh", access, self.namespace)

    def _printed(self, script: str, *arguments: object) -> str:
        path = f"{KUBECTL.parent}:{os.environ['PATH']}"
        words = [str(K8S / script), *map(str, arguments)]
        return _run(words, env={**os.environ, "PATH": path})

    def _of_kind(self, kind: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] == kind]

    # -------------------------------------------------------------------------------- campaigns

    def prepare(self, spec: Path) -> None:
        """Makes a campaign and a program that submits it available to pods, and opens broker and
        store to them."""
        loaded, store = load_spec(spec), FolderStore(self.folder / "submitted")
        recipe = make_recipe(loaded.labels)
        event = submit(loaded, gather(loaded, spec.parent), recipe, store, time.time())
        inputs = {key: base64.b64encode(store.get(key)).decode() for key in store.list("")}
        files = {
            CLIENT.name: CLIENT.read_text(),
            "event.json": encode(announced(event)).decode(),
            "inputs.json": json.dumps(inputs),
        }
        self._apply(
            [
                {"apiVersion": "v1", "kind": "ConfigMap", "data": files, **self._named("client")},
                {**CLIENT_POLICY, **self._named("client")},
            ]
        )

    def start_client(self, step: str, campaign: str) -> str:
        """Starts a step of `kube_client.py`, in the pod of the bucket's Job; returns the Job's
        name."""
        (bucket,) = self._of_kind("Job")
        template = deepcopy(bucket["spec"]["template"])
        template["metadata"]["labels"][NAME] = "dpstream-client"
        (container,) = template["spec"]["containers"]
        container |= {
            "command": ["python", f"/client/{CLIENT.name}"],
            "args": [step, campaign],
            "envFrom": [{"secretRef": {"name": "dpstream-client"}}],
        }
        container["volumeMounts"].append({"name": "client", "mountPath": "/client"})
        template["spec"]["volumes"].append({"name": "client", "configMap": {"name": "client"}})
        return self._start_job(f"client-{step}", {"backoffLimit": 0, "template": template})

    def start_generator(self) -> str:
        """As `kubectl create job --from=cronjob/dpstream-generator` does; returns its name."""
        (cron,) = self._of_kind("CronJob")
        return self._start_job("generator-once", cron["spec"]["jobTemplate"]["spec"])

    def _start_job(self, name: str, spec: Object) -> str:
        spec["template"]["spec"]["restartPolicy"] = "Never"
        job = {"apiVersion": "batch/v1", "kind": "Job", "spec": spec, **self._named(name)}
        self._apply([job])
        return name

    def _named(self, name: str) -> Object:
        return {"metadata": {"name": name, "namespace": self.namespace}}

    def has_succeeded(self, job: str) -> bool:
        """Raises AssertionError if it has failed."""
        status = json.loads(self.kubectl("get", "job", job, "--output=json"))["status"]
        assert not status.get("failed"), self.log_of(f"job/{job}")
        return bool(status.get("succeeded"))

    # ----------------------------------------------------------------------------------- pods

    def workers(self) -> Counter[str]:
        """Workers that run, by pool."""
        found = Counter(
            pod["metadata"]["labels"][POOL]
            for pod in self.listed("pods")
            if pod["status"]["phase"] == "Running"
        )
        self.most |= found
        return found

    def active_jobs(self) -> list[str]:
        """Jobs of workers that have not ended."""
        return [j["metadata"]["name"] for j in self.listed("jobs") if j["status"].get("active")]

    def listed(self, kind: str) -> list[Object]:
        """What the fleet has made."""
        words = ("get", kind, f"--selector={POOL}", "--output=json")
        items: list[Object] = json.loads(self.kubectl(*words))["items"]
        return items

    def log_of(self, what: str) -> str:
        """The last lines of a pod's log, or why there are none."""
        return self.kubectl("logs", what, "--tail=20", check=False)

    def until(self, met: Callable[[], Any], what: str) -> Any:
        """The first true value of `met`; running workers are counted meanwhile."""
        deadline = time.monotonic() + SECONDS
        while True:
            self.workers()
            if found := met():
                return found
            assert time.monotonic() < deadline, f"{what}: {self.summary()}"
            time.sleep(0.5)

    def summary(self) -> str:
        pods = self.kubectl("get", "pods,jobs", "--output=wide", check=False)
        return f"{pods}\n{self.log_of('statefulset/dpstream-coordinator')}"

    # -------------------------------------------------------------------------------- kubectl

    def kubectl(self, *words: str, given: str | None = None, check: bool = True) -> str:
        """What a command prints. Raises AssertionError if it fails and `check` is set."""
        command = [str(KUBECTL), f"--kubeconfig={KUBECONFIG}", f"--namespace={self.namespace}"]
        return _run([*command, *words], given, check=check)

    def _apply(self, objects: Sequence[Object]) -> None:
        self.kubectl("apply", "--filename=-", given=yaml.safe_dump_all(objects))


def _run(command: list[str], given: str | None = None, check: bool = True, **options: Any) -> str:
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=SECONDS + 60, **options
    )
    assert not check or done.returncode == 0, f"{command}: {done.stderr}"
    return str(done.stdout or done.stderr)


@pytest.fixture
def kube_deployment(tmp_path: Path) -> Iterator[KubeDeployment]:
    """A namespace of its own, which is removed with all that is in it."""
    if KUBECONFIG is None:
        pytest.skip("DPSTREAM_TEST_KUBECONFIG gives access to no cluster: make k8s-test")
    deployment = KubeDeployment(f"dpstream-test-{uuid.uuid4().hex[:8]}", tmp_path)
    yield deployment
    deployment.kubectl("delete", "namespace", deployment.namespace, "--ignore-not-found")
