"""Workers as Kubernetes Jobs, through the `kubernetes` package alone.

A launch is one Job without `completions`: its pods end when their queue is empty, and once one has
ended with status 0 the Job controller makes no more. What may be said about a pod is read from two
lists per turn, of the Jobs and of the pods of a deployment. There is no watch: a list that fails
leaves nothing half known, and its cost does not depend on how often pods change.

The only module that imports kubernetes.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from dpstream.services.coordinator.fleet.engines.keda import scaled_job, scaled_job_name
from dpstream.services.coordinator.fleet.engines.worker_job import (
    DEPLOYMENT,
    LAUNCH,
    POOL,
    job_name,
    worker_job,
)
from dpstream.services.coordinator.fleet.engines.worker_pods import (
    Object,
    Place,
    ending,
    has_success,
    launch_of,
    launched_at,
    missing_pods,
    place_of,
    scheduling_reason,
    seconds_of,
    stuck_reason,
)
from dpstream.services.coordinator.fleet.pools import PoolSettings
from dpstream.shared.errors import FleetError, FleetLimit
from dpstream.shared.ports import Launch

SECONDS = (5.0, 30.0)
"""Time limits for connecting and for the reply to one request."""
PAGE = 500
"""Pods in one reply of a list."""
LIMITS = re.compile(r"exceeded quota|admission webhook", re.IGNORECASE)
"""Words of a refusal that another attempt at once would not change."""


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
        jobs = {launch_of(job): job for job in self._list(self._batch.list_namespaced_job)}
        pods: dict[str, list[Object]] = defaultdict(list)
        for pod in self._list(self._core.list_namespaced_pod):
            pods[launch_of(pod)].append(pod)
        names = [*jobs, *(name for name in pods if name not in jobs)]  # a deleted Job leaves pods
        launches = [self._launch(jobs.get(name), pods[name]) for name in names]
        return self._with_deleted(launches, pods)

    def launch(self, pool: str, count: int, name: str, *, warm: bool = False) -> None:
        job = self._job(pool, name, count, warm=warm)
        try:
            self._call(self._batch.create_namespaced_job, body=job)
        except ApiError as error:
            if error.status != 409:  # else it exists
                raise

    def retire(self, launch: Launch, most: int) -> int:
        """Deletes the Job if nothing of it has started, else lowers its `parallelism`. A pod that
        starts meanwhile is asked to stop, like any other."""
        if self._is_observed(launch.pool):
            return 0
        jobs = self._list(self._batch.list_namespaced_job, launch)
        pods = self._list(self._core.list_namespaced_pod, launch)
        if not jobs:
            return 0
        now = self._launch(jobs[0], pods)
        count = min(most, now.waiting)
        if count == now.alive:
            self.end(launch)
        elif has_success(jobs[0], pods) or (count and not self._lower(jobs[0], now.alive - count)):
            return 0
        return count

    def end(self, launch: Launch) -> None:
        """Deletes the Job after its pods, which get SIGTERM."""
        if self._is_observed(launch.pool):
            name = scaled_job_name(self.deployment, launch.pool)
            raise FleetError(f"KEDA creates its Jobs: kubectl delete scaledjob {name}")
        name = job_name(self.deployment, launch.name)
        try:
            self._call(self._batch.delete_namespaced_job, name, propagation_policy="Foreground")
        except ApiError as error:
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
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            return False
        return True

    def check(self, pool: str) -> None:
        """Asks the API server whether it would accept a worker. Raises FleetError."""
        if self._is_observed(pool):
            self._call(self._batch.list_namespaced_job, limit=1)
            return
        job = self._job(pool, f"{pool}-check")
        self._call(self._batch.create_namespaced_job, body=job, dry_run="All")

    def render(self, pool: str) -> str:
        """The Job of one worker, or the ScaledJob of the pool, as YAML."""
        if self._is_observed(pool):
            return "---\n" + yaml.safe_dump(
                scaled_job(self.deployment, pool, self.pools[pool]), sort_keys=False
            )
        return yaml.safe_dump(self._job(pool, f"{pool}-LAUNCH"), sort_keys=False)

    def _is_observed(self, pool: str) -> bool:
        return pool in self.pools and self.pools[pool].is_observed

    def _job(self, pool: str, name: str, count: int = 1, *, warm: bool = False) -> dict[str, Any]:
        return worker_job(self.deployment, pool, self.pools[pool], name, count, warm=warm)

    # --------------------------------------------------------------------- reading what stands

    def _launch(self, job: Object | None, pods: Sequence[Object]) -> Launch:
        """What Job and pods, at least one of them, say of one launch."""
        at: dict[Place, list[Object]] = defaultdict(list)
        for pod in pods:
            at[place_of(pod)].append(pod)
        ended, waiting = at.pop("ended", []), [*at["waiting"], *at["stuck"]]
        alive = list(chain.from_iterable(at.values()))
        missing = missing_pods(job, alive, ended) if job else 0
        reasons = [*map(stuck_reason, at["stuck"]), *map(scheduling_reason, at["waiting"])]
        if job and missing and not any(reasons):
            reasons = [self._creation_problem(job)]
        labelled = job or pods[0]
        name = launch_of(labelled)
        waits = [seconds_of(pod["metadata"]["creationTimestamp"]) for pod in waiting]
        if missing and any(reasons):
            waits.append(launched_at(labelled))
        return Launch(
            name,
            labelled["metadata"]["labels"].get(POOL, ""),
            waiting=len(waiting) + missing,
            stuck=len(at["stuck"]),
            starting=len(at["starting"]),
            running=len(at["running"]),
            ended=Counter(ending(pod) for pod in ended),
            up=frozenset(pod["metadata"]["name"] for pod in at["running"]),
            gone=frozenset(pod["metadata"]["name"] for pod in ended),
            since=launched_at(labelled),
            # A pod that takes the place of a preempted one has just begun to wait.
            waits_since=min(waits, default=time.time()),
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
        try:
            events = self._call(self._core.list_namespaced_event, field_selector=selector)["items"]
        except ApiError:  # a Role of the user's own may forbid events
            return ""
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
        of it. Raises FleetError, and ApiError if the API server answered."""
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


class ApiError(FleetError):
    """The API server answered with an HTTP status that reports an error."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class RefusedByQuota(ApiError, FleetLimit):
    """A quota or an admission webhook refused."""


def _explained(error: ApiException) -> ApiError:
    """The refusal in the API server's words."""
    try:
        words = str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        words = str(error.reason)
    kind = RefusedByQuota if LIMITS.search(words) else ApiError
    return kind(f"Kubernetes: {' '.join(words.split())[:300]}", int(error.status or 0))
