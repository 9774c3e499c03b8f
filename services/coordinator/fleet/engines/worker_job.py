"""The Kubernetes Job of one launch: `worker_job.yaml`, completed with what the pool says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml

from dpstream.services.coordinator.fleet.pools import PoolSettings, worker_variables

DEPLOYMENT, POOL, LAUNCH = "dpstream/deployment", "dpstream/pool", "dpstream/launch"
"""Labels of Jobs and their pods."""
STOP_SECONDS = 5
"""Between the end of a worker's grace period and SIGKILL."""


def worker_job(
    deployment: str, name: str, pool: PoolSettings, launch: str, count: int, *, warm: bool = False
) -> dict[str, Any]:
    """The Job of a launch of `count` workers of pool `name`."""
    template = resources.files(__package__).joinpath("worker_job.yaml").read_text("utf-8")
    job: dict[str, Any] = yaml.safe_load(template)
    labels = {
        "app.kubernetes.io/name": f"dpstream-{pool.service}",
        "app.kubernetes.io/part-of": "dpstream",
        DEPLOYMENT: deployment,
        POOL: name,
        LAUNCH: launch,
    }
    job["metadata"] = {
        "name": job_name(deployment, launch),
        "namespace": pool.kubernetes.namespace,
        "labels": {**pool.kubernetes.labels, **labels},
    }
    spec = job["spec"]
    spec["parallelism"] = count
    spec["activeDeadlineSeconds"] = math.ceil(pool.lifetime + pool.longest_task + pool.grace)
    pod = spec["template"]
    pod["metadata"]["labels"] = labels
    variables = worker_variables(name, pool, warm=warm) | pool.envs
    pod["spec"]["containers"][0]["env"] += [
        {"name": key, "value": value} for key, value in variables.items()
    ]
    _complete_pod(pod["spec"], pool, {POOL: name, DEPLOYMENT: deployment})
    spec["template"] = merged(pod, pool.kubernetes.patch)
    return job


def job_name(deployment: str, launch: str) -> str:
    return f"{deployment}-{launch}".lower()


def _complete_pod(spec: dict[str, Any], pool: PoolSettings, labels: Mapping[str, str]) -> None:
    """Adds what the pool says to the specification of its pods."""
    settings = pool.kubernetes
    container = spec["containers"][0]
    container["image"] = pool.image
    if pool.command:
        container["command"] = list(pool.command)
    if settings.secret:
        container["envFrom"] = [{"secretRef": {"name": settings.secret}}]
    container["resources"] = _resources(pool)
    scratch = {"sizeLimit": _quantity(settings.scratch)}
    spec["volumes"].append({"name": "scratch", "emptyDir": scratch})
    spec["serviceAccountName"] = settings.service_account or f"dpstream-{pool.service}"
    spec["terminationGracePeriodSeconds"] = math.ceil(pool.grace) + STOP_SECONDS
    spec["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": labels},
        }
    ]
    chosen = {
        "nodeSelector": settings.node_selector,
        "tolerations": list(settings.tolerations),
        "imagePullSecrets": [{"name": each} for each in settings.pull_secrets],
    }
    spec |= {key: value for key, value in chosen.items() if value}


def _resources(pool: PoolSettings) -> dict[str, dict[str, str]]:
    requests = {"cpu": str(pool.cpus)}
    limits: dict[str, str] = {}
    if pool.memory:
        requests["memory"] = limits["memory"] = _quantity(pool.memory)
    if pool.gpus:
        limits["nvidia.com/gpu"] = str(pool.gpus)
    return {"requests": requests, "limits": limits}


def _quantity(memory: str) -> str:
    """`120G` of the fleet file, in powers of 1024 as Slurm reads it, as a Kubernetes quantity."""
    return f"{memory}i"


def merged(target: Any, patch: Any) -> Any:
    """`target` with a JSON merge patch (RFC 7396)."""
    if not isinstance(patch, Mapping):
        return patch
    before = target if isinstance(target, Mapping) else {}
    found = {**before, **{key: merged(before.get(key), value) for key, value in patch.items()}}
    return {key: value for key, value in found.items() if value is not None}
