"""Workers as Kubernetes Jobs, through the `kubernetes` package alone.

A launch is one Job without `completions`: its pods end when their queue is empty, and once one has
ended with status 0 the Job controller makes no more. What may be said about a pod is read from two
lists per turn, of the Jobs and of the pods of a deployment. There is no watch: a list that fails
leaves nothing half known, and its cost does not depend on how often pods change.

The only module that imports kubernetes.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from dpstream.services.coordinator.fleet.plan import time_of
from dpstream.services.coordinator.fleet.pools import PoolSettings, worker_variables
from dpstream.shared.errors import FleetError, FleetLimit
from dpstream.shared.ports import Launch

Object = Mapping[str, Any]
Place = Literal["waiting", "stuck", "starting", "running", "ended"]

DEPLOYMENT, POOL, LAUNCH = "dpstream/deployment", "dpstream/pool", "dpstream/launch"
"""Labels of Jobs and their pods."""
SECONDS = (5.0, 30.0)
"""Time limits for connecting and for the reply to one request."""
PAGE = 500
"""Pods in one reply of a list."""
STUCK = re.compile(r"ImagePull|ErrImage|InvalidImage|ImageInspect|CreateContainer|RunContainer")
"""Reasons of a container that waits and will not start without help."""
LIMITS = re.compile(r"exceeded quota|admission webhook", re.IGNORECASE)
"""Words of a refusal that another attempt at once would not change."""
STOP_SECONDS = 5
"""Between the end of a worker's grace period and SIGKILL."""
LOST_SECONDS = 30.0
"""After its deletion was due, a pod that still exists is on a lost node."""


@dataclass
class KubernetesFleet:
    """Launches are Jobs named `DEPLOYMENT-NAME`. All `pools` have the same context and namespace.
    `logs` is not used: the cluster keeps the logs of its pods."""

    deployment: str
    pools: Mapping[str, PoolSettings]
    logs: Path
    _pods: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    """Names of the pods of the last list, by launch and pool."""

    # ------------------------------------------------------------------ what every engine does

    def running(self) -> Sequence[Launch]:
        jobs = {_name(job): job for job in self._list(self._batch.list_namespaced_job)}
        pods: dict[str, list[Object]] = defaultdict(list)
        for pod in self._list(self._core.list_namespaced_pod):
            pods[_name(pod)].append(pod)
        names = [*jobs, *(name for name in pods if name not in jobs)]  # a deleted Job leaves pods
        launches = [self._launch(jobs.get(name), pods[name]) for name in names]
        return self._with_deleted(launches, pods)

    def launch(self, pool: str, count: int, name: str, *, warm: bool = False) -> None:
        job = self.job(pool, count, name, warm=warm)
        try:
            self._call(self._batch.create_namespaced_job, body=job)
        except Refused as error:
            if error.status != 409:  # else it exists
                raise

    def retire(self, launch: Launch, most: int) -> int:
        """Deletes the Job if nothing of it has started, else lowers its `parallelism`. A pod that
        starts meanwhile is asked to stop, like any other."""
        jobs = self._list(self._batch.list_namespaced_job, launch)
        pods = self._list(self._core.list_namespaced_pod, launch)
        if not jobs:
            return 0
        now = self._launch(jobs[0], pods)
        count = min(most, now.waiting)
        if count == now.alive:
            self.end(launch)
        elif count and not self._lower(jobs[0], now.alive - count):
            return 0
        return count

    def end(self, launch: Launch) -> None:
        """Deletes the Job after its pods, which get SIGTERM."""
        name = self._job_name(launch.name)
        try:
            self._call(self._batch.delete_namespaced_job, name, propagation_policy="Foreground")
        except Refused as error:
            if error.status != 404:  # else it is gone
                raise

    def _lower(self, job: Object, parallelism: int) -> bool:
        """Whether this changed the Job; not if somebody else has since it was read."""
        metadata = job["metadata"]
        patch = [
            {
                "op": "replace",
                "path": "/metadata/resourceVersion",
                "value": metadata["resourceVersion"],
            },
            {"op": "replace", "path": "/spec/parallelism", "value": parallelism},
        ]
        try:
            self._call(self._batch.patch_namespaced_job, metadata["name"], body=patch)
        except Refused as error:
            if error.status not in (404, 409):
                raise
            return False
        return True

    def check(self, pool: str) -> None:
        """Asks the API server whether it would accept a worker. Raises FleetError."""
        job = self.job(pool, 1, f"{pool}-check")
        self._call(self._batch.create_namespaced_job, body=job, dry_run="All")

    def render(self, pool: str) -> str:
        """The Job of one worker as YAML."""
        return yaml.safe_dump(self.job(pool, 1, f"{pool}-LAUNCH"), sort_keys=False)

    # ------------------------------------------------------------------------------- the Job

    def job(self, pool: str, count: int, name: str, *, warm: bool = False) -> dict[str, Any]:
        """The Job of a launch of `count` workers."""
        settings = self.pools[pool]
        template = resources.files(__package__).joinpath("worker_job.yaml").read_text("utf-8")
        job: dict[str, Any] = yaml.safe_load(template)
        labels = {
            "app.kubernetes.io/name": f"dpstream-{settings.service}",
            "app.kubernetes.io/part-of": "dpstream",
            DEPLOYMENT: self.deployment,
            POOL: pool,
            LAUNCH: name,
        }
        job["metadata"] = {
            "name": self._job_name(name),
            "namespace": self._namespace,
            "labels": {**settings.kubernetes.labels, **labels},
        }
        spec = job["spec"]
        spec["parallelism"] = count
        spec["activeDeadlineSeconds"] = math.ceil(
            settings.lifetime + settings.longest_task + settings.grace
        )
        pod = spec["template"]
        pod["metadata"]["labels"] = labels
        variables = worker_variables(pool, settings, warm=warm) | settings.envs
        pod["spec"]["containers"][0]["env"] += [
            {"name": key, "value": value} for key, value in variables.items()
        ]
        _complete_pod(pod["spec"], settings, {POOL: pool, DEPLOYMENT: self.deployment})
        spec["template"] = merged(pod, settings.kubernetes.patch)
        return job

    def _job_name(self, launch: str) -> str:
        return f"{self.deployment}-{launch}".lower()

    # --------------------------------------------------------------------- reading what stands

    def _launch(self, job: Object | None, pods: Sequence[Object]) -> Launch:
        """What Job and pods, at least one of them, say of one launch."""
        at: dict[Place, list[Object]] = defaultdict(list)
        for pod in pods:
            at[_place_of(pod)].append(pod)
        ended, waiting = at.pop("ended", []), len(at["waiting"]) + len(at["stuck"])
        alive = list(chain.from_iterable(at.values()))
        missing = _missing(job, alive, ended) if job else 0
        reasons = [*map(_stuck_reason, at["stuck"]), *map(_scheduling_reason, at["waiting"])]
        if job and missing and not any(reasons):
            reasons = [self._creation_problem(job)]
        labelled = job or pods[0]
        return Launch(
            _name(labelled),
            labelled["metadata"]["labels"].get(POOL, ""),
            waiting=waiting + missing,
            stuck=len(at["stuck"]),
            starting=len(at["starting"]),
            running=len(at["running"]),
            ended=Counter(_ending(pod) for pod in ended),
            up=frozenset(pod["metadata"]["name"] for pod in at["running"]),
            gone=frozenset(pod["metadata"]["name"] for pod in ended),
            since=time_of(_name(labelled)),
            reason=next(filter(None, reasons), ""),
        )

    def _with_deleted(
        self, launches: Sequence[Launch], pods: Mapping[str, Sequence[Object]]
    ) -> list[Launch]:
        """Adds the pods to `gone` that the last list had and that do not exist any more."""
        names = {
            (launch.name, launch.pool): frozenset(
                pod["metadata"]["name"] for pod in pods[launch.name]
            )
            for launch in launches
        }
        found = {launch.name: launch for launch in launches}
        for (name, pool), before in self._pods.items():
            launch = found.get(name) or Launch(name, pool)
            deleted = before - names.get((name, pool), frozenset())
            if deleted:
                found[name] = replace(launch, gone=launch.gone | deleted)
        self._pods = names
        return list(found.values())

    def _creation_problem(self, job: Object) -> str:
        """Why the Job controller could not create the pods of a Job, in its words."""
        if job["spec"].get("suspend"):
            return "suspended"
        selector = f"involvedObject.name={job['metadata']['name']},reason=FailedCreate"
        events = self._call(self._core.list_namespaced_event, field_selector=selector)["items"]
        return str(events[-1]["message"]) if events else ""

    # ----------------------------------------------------------------------- the API server

    @property
    def _namespace(self) -> str:
        return next(iter(self.pools.values())).kubernetes.namespace

    @cached_property
    def _api(self) -> client.ApiClient:
        """Of the pools' context, or of the cluster that the coordinator runs in."""
        context = next(iter(self.pools.values())).kubernetes.context
        settings = client.Configuration()
        try:
            if context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
                config.load_incluster_config(settings)
            else:
                # Of the present environment: the package reads the variable when it is imported.
                config.load_kube_config(os.environ.get("KUBECONFIG"), context, settings)
        except (config.ConfigException, OSError, TypeError) as error:
            raise FleetError(f"no access to Kubernetes: {error}") from error
        settings.retries = False  # the next turn tries again
        return client.ApiClient(settings)

    @property
    def _batch(self) -> client.BatchV1Api:
        return client.BatchV1Api(self._api)

    @property
    def _core(self) -> client.CoreV1Api:
        return client.CoreV1Api(self._api)

    def _list(self, request: Callable[..., Any], launch: Launch | None = None) -> list[Object]:
        """All objects of this deployment, or of one of its launches."""
        selector = f"{DEPLOYMENT}={self.deployment}" + (
            f",{LAUNCH}={launch.name}" if launch else ""
        )
        items: list[Object] = []
        following = ""
        while True:
            options = {"_continue": following} if following else {}
            page = self._call(request, label_selector=selector, limit=PAGE, **options)
            items += page["items"]
            following = page["metadata"].get("continue", "")
            if not following:
                return items

    def _call(self, request: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The reply to a request as JSON: the package's own objects cost several times the reading
        of it. Raises FleetError, and Refused if the API server answered."""
        try:
            reply = request(
                *arguments,
                namespace=self._namespace,
                _preload_content=False,
                _request_timeout=SECONDS,
                **options,
            )
            return json.loads(reply.data)
        except ApiException as error:
            raise _explained(error) from error
        except (HTTPError, OSError, ValueError) as error:
            raise FleetError(f"Kubernetes does not answer: {error}") from error


class Refused(FleetError):
    """The API server answered with an HTTP status that reports an error."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class RefusedByQuota(Refused, FleetLimit):
    """A quota or an admission webhook refused."""


def _explained(error: ApiException) -> Refused:
    """The refusal in the API server's words."""
    try:
        words = str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        words = str(error.reason)
    kind = RefusedByQuota if LIMITS.search(words) else Refused
    return kind(f"Kubernetes: {' '.join(words.split())[:300]}", int(error.status or 0))


# ------------------------------------------------------------------------------ the pod template


def _complete_pod(spec: dict[str, Any], pool: PoolSettings, labels: Object) -> None:
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


# ------------------------------------------------------------------------------- reading a pod


def _name(labelled: Object) -> str:
    """The launch that a Job or a pod belongs to."""
    return str(labelled["metadata"]["labels"].get(LAUNCH, ""))


def _place_of(pod: Object) -> Place:
    """How far a pod has come."""
    phase = pod["status"].get("phase")
    if phase in ("Succeeded", "Failed") or _is_lost(pod):
        return "ended"
    if phase == "Running":
        return "running"
    if not pod["spec"].get("nodeName"):
        return "waiting"
    return "stuck" if STUCK.search(_container_waits(pod).get("reason", "")) else "starting"


def _is_lost(pod: Object) -> bool:
    """Whether the node of a deleted pod does not confirm that it has ended."""
    due = pod["metadata"].get("deletionTimestamp")
    return due is not None and time.time() > _seconds(due) + LOST_SECONDS


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


def _container(pod: Object) -> Object:
    """The status of the worker's container."""
    return next(iter(pod["status"].get("containerStatuses", ())), {})


def _container_waits(pod: Object) -> Object:
    waits: Object = _container(pod).get("state", {}).get("waiting", {})
    return waits


def _stuck_reason(pod: Object) -> str:
    """Why a pod cannot start, in the words of its node."""
    waits = _container_waits(pod)
    return f"{waits['reason']}: {waits.get('message', '')}".removesuffix(": ")


def _scheduling_reason(pod: Object) -> str:
    """Why a pod has no node, in the words of the scheduler."""
    for condition in pod["status"].get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{condition.get('reason', '')}: {condition.get('message', '')}"
    return ""


def _ending(pod: Object) -> str:
    """How a worker ended: its exit status or, if somebody else ended it, Kubernetes' word."""
    terminated = _container(pod).get("state", {}).get("terminated", {})
    status = terminated.get("exitCode")
    if status in (0, 75):
        return str(status)
    conditions = {each["type"] for each in pod["status"].get("conditions", ())}
    if "DisruptionTarget" in conditions or _is_lost(pod):
        return "DisruptionTarget"
    if pod["status"].get("reason"):
        return str(pod["status"]["reason"])
    if terminated.get("reason") == "OOMKilled" or status is None:
        return str(terminated.get("reason") or pod["status"]["phase"])
    return str(status)


def _missing(job: Object, alive: Sequence[Object], ended: Sequence[Object]) -> int:
    """Pods that the Job controller has still to create, beside those that exist."""
    status = job.get("status", {})
    over = {each["type"] for each in status.get("conditions", ()) if each["status"] == "True"}
    succeeded = status.get("succeeded") or any(
        pod["status"].get("phase") == "Succeeded" for pod in ended
    )
    if succeeded or over & {"Complete", "Failed"} or "deletionTimestamp" in job["metadata"]:
        return 0
    active = sum("deletionTimestamp" not in pod["metadata"] for pod in alive)
    return max(0, int(job["spec"].get("parallelism", 1)) - active)
