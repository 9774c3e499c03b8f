"""A Kubernetes namespace for one test: of a server of our own, or of the cluster that
DPSTREAM_TEST_KUBECONFIG gives access to. DPSTREAM_TEST_IMAGES is the registry with the images of
the services, if the cluster does not have them under their plain names."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from dpstream.services.coordinator.fleet.pools import PoolSettings
from tests.support.servers.kube_server import KubeServer

KUBECONFIG = os.environ.get("DPSTREAM_TEST_KUBECONFIG")
REGISTRY = os.environ.get("DPSTREAM_TEST_IMAGES", "")


def image(name: str) -> str:
    """An image of the project in the cluster."""
    return f"{REGISTRY}/{name}" if REGISTRY else name


IMAGE = image(f"dpstream-coordinator:{metadata.version('dpstream')}")
"""An image with bash."""


@dataclass
class Namespace:
    """`server`: the server of our own; None for a cluster from outside."""

    name: str
    server: KubeServer | None

    def pool(self, *command: str, **changes: Any) -> PoolSettings:
        """A pool in this namespace that runs `command`."""
        section = {"namespace": self.name, **changes.pop("kubernetes", {})}
        settings = {"serves": ("train",), "max": 9, "memory": "100M", "image": IMAGE} | changes
        return PoolSettings(
            engine="kubernetes", command=command, kubernetes=section, grace=5, **settings
        )

    def secret(self, name: str, **values: str) -> None:
        body = {"metadata": {"name": name}, "stringData": values}
        client.CoreV1Api().create_namespaced_secret(self.name, body)

    def forbid_jobs(self) -> None:
        """Sets a quota of no Jobs."""
        if self.server is not None:
            self.server.quota = 0
            return
        name = {"name": "no-jobs"}
        body = {"metadata": name, "spec": {"hard": {"count/jobs.batch": "0"}}}
        core = client.CoreV1Api()
        core.create_namespaced_resource_quota(self.name, body)
        while not core.read_namespaced_resource_quota("no-jobs", self.name).status.hard:
            time.sleep(0.1)

    def delete(self, pod: dict[str, Any], grace: int | None = None) -> None:
        """Evicts a pod. `grace`: seconds until SIGKILL; default: what the pod asks for."""
        options = {} if grace is None else {"grace_period_seconds": grace}
        client.CoreV1Api().delete_namespaced_pod(pod["metadata"]["name"], self.name, **options)

    def pods(self) -> list[dict[str, Any]]:
        core = client.CoreV1Api()
        reply = core.list_namespaced_pod(self.name, _preload_content=False)
        items: list[dict[str, Any]] = json.loads(reply.data)["items"]
        return items


@pytest.fixture
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    """An empty namespace; the current kubeconfig gives access to it."""
    namespace = f"dpstream-test-{uuid.uuid4().hex[:8]}"
    if KUBECONFIG is None:
        server = KubeServer(tmp_path)
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        config.load_kube_config(str(server.kubeconfig))
        yield Namespace(namespace, server)
        server.close()
        return
    monkeypatch.setenv("KUBECONFIG", KUBECONFIG)
    config.load_kube_config(KUBECONFIG)
    core = client.CoreV1Api()
    core.create_namespace({"metadata": {"name": namespace}})
    for service in ("trainer", "explorer", "labeler"):
        core.create_namespaced_service_account(
            namespace, {"metadata": {"name": f"dpstream-{service}"}}
        )
    yield Namespace(namespace, None)
    core.delete_namespace(namespace)
