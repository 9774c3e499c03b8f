"""The ScaledJob of a pool for KEDA, on clusters that forbid applications to create Jobs.

KEDA asks the coordinator for the wanted number of workers, and creates a Job for each that is
missing. The Job is the one of `worker_job.yaml`, with one worker.
"""

from __future__ import annotations

from typing import Any

from dpstream.services.coordinator.fleet.engines.worker_job import LAUNCH, worker_job
from dpstream.services.coordinator.fleet.pools import PoolSettings

POLLING = 15
"""Seconds between two questions of KEDA."""
HISTORY = 100
"""Ended Jobs that KEDA keeps, so that the coordinator learns how their workers ended."""
AUTHENTICATION = "dpstream-fleet"
"""The TriggerAuthentication with the token of the coordinator's API."""


def scaled_job(deployment: str, name: str, pool: PoolSettings) -> dict[str, Any]:
    job = worker_job(deployment, name, pool, "", 1)
    for labelled in (job["metadata"], job["spec"]["template"]["metadata"]):
        del labelled["labels"][LAUNCH]  # every Job is a launch, under its own name
    namespace = pool.kubernetes.namespace
    metric = {
        "url": f"http://dpstream-coordinator.{namespace}:8080/fleet/wanted/{name}",
        "valueLocation": "wanted",
        "targetValue": "1",
        "authMode": "bearer",
    }
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledJob",
        "metadata": {**job["metadata"], "name": scaled_job_name(deployment, name)},
        "spec": {
            "jobTargetRef": job["spec"],
            "pollingInterval": POLLING,
            "maxReplicaCount": pool.max,
            "successfulJobsHistoryLimit": HISTORY,
            "failedJobsHistoryLimit": HISTORY,
            # By default KEDA deletes every running worker when this object changes.
            "rollout": {"strategy": "gradual"},
            "triggers": [
                {
                    "type": "metrics-api",
                    "metadata": metric,
                    "authenticationRef": {"name": AUTHENTICATION},
                }
            ],
        },
    }


def scaled_job_name(deployment: str, pool: str) -> str:
    return f"{deployment}-{pool}".lower()
