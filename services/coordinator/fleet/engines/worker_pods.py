"""What the state of a Kubernetes pod says of its worker: waiting, starting, running, or how it
ended."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from dpstream.services.coordinator.fleet.engines.worker_job import LAUNCH
from dpstream.services.coordinator.fleet.plan import time_of

Object = Mapping[str, Any]
"""A Job or a pod, as the API server describes it."""
Place = Literal["waiting", "stuck", "starting", "running", "ended"]
STUCK = re.compile(r"ImagePull|ErrImage|InvalidImage|ImageInspect|CreateContainer|RunContainer")
"""Reasons of a container that waits and will not start without help."""
LOST_SECONDS = 30.0
"""After its deletion was due, a pod that still exists is on a lost node."""


def launch_of(labelled: Object) -> str:
    """The launch that a Job or a pod belongs to; a Job of KEDA is a launch under its own name."""
    metadata = labelled["metadata"]
    labels = metadata["labels"]
    return str(labels.get(LAUNCH) or labels.get("job-name") or metadata["name"])


def launched_at(labelled: Object) -> float:
    """When the launch was made, seconds since the epoch."""
    metadata = labelled["metadata"]
    if LAUNCH in metadata["labels"]:
        return time_of(launch_of(labelled))
    return seconds_of(metadata["creationTimestamp"])


def place_of(pod: Object) -> Place:
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
    return due is not None and time.time() > seconds_of(due) + LOST_SECONDS


def seconds_of(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


def _container(pod: Object) -> Object:
    """The status of the worker's container."""
    return next(iter(pod["status"].get("containerStatuses", ())), {})


def _container_waits(pod: Object) -> Object:
    waits: Object = _container(pod).get("state", {}).get("waiting", {})
    return waits


def stuck_reason(pod: Object) -> str:
    """Why a pod cannot start, in the words of its node."""
    waits = _container_waits(pod)
    return f"{waits['reason']}: {waits.get('message', '')}".removesuffix(": ")


def scheduling_reason(pod: Object) -> str:
    """Why a pod has no node, in the words of the scheduler."""
    for condition in pod["status"].get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{condition.get('reason', '')}: {condition.get('message', '')}"
    return ""


def ending(pod: Object) -> str:
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


def has_success(job: Object, pods: Sequence[Object]) -> bool:
    """Whether a pod has ended with 0: the Job controller then creates no pod more, and ignores a
    lower `parallelism`."""
    succeeded = any(pod["status"].get("phase") == "Succeeded" for pod in pods)
    return succeeded or bool(job.get("status", {}).get("succeeded"))


def missing_pods(job: Object, alive: Sequence[Object], ended: Sequence[Object]) -> int:
    """Pods that the Job controller has still to create, beside those that exist."""
    conditions = job.get("status", {}).get("conditions", ())
    over = {each["type"] for each in conditions if each["status"] == "True"}
    closed = has_success(job, ended) or "deletionTimestamp" in job["metadata"]
    if closed or over & {"Complete", "Failed"}:
        return 0
    active = sum("deletionTimestamp" not in pod["metadata"] for pod in alive)
    return max(0, int(job["spec"].get("parallelism", 1)) - active)
