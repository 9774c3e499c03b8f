"""The sections of the fleet file about one engine each, and the values in them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from dpstream.shared.spec.base import Section
from dpstream.shared.spec.times import Seconds


def size_of(value: Any) -> Any:
    """A size such as `120G`, as it is."""
    if not (isinstance(value, str) and re.fullmatch(SIZE, value)):
        raise ValueError("must be a size such as 500M, 120G or 1T")
    return value


SIZE = r"^[1-9][0-9]*[KMGT]$"
Memory = Annotated[str, StringConstraints(pattern=SIZE), BeforeValidator(size_of)]
Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class BatchPool(Section):
    """What the batch systems have in common."""

    submit_prefix: tuple[str, ...] = Field(
        default=(),
        description="command that runs the batch system's commands elsewhere, e.g. [ssh, login1]",
    )
    flags: tuple[str, ...] = Field(
        default=(), description="further options of the command that submits, e.g. [--exclusive]"
    )

    @property
    def nodes_of_a_worker(self) -> int:
        return 1


class SeveralNodes(BatchPool):
    nodes: int = Field(
        default=1,
        ge=1,
        description="nodes of a labeler; cpus, gpus and memory are those of each node",
    )

    @property
    def nodes_of_a_worker(self) -> int:
        return self.nodes


class SlurmPool(SeveralNodes):
    partition: str | None = Field(default=None, description="partition; default: the cluster's")
    account: str | None = Field(default=None, description="account that is charged")
    qos: str | None = Field(default=None, description="quality of service")
    time_limit: str | None = Field(default=None, description="walltime of a worker, e.g. 24:00:00")


class QueuedPool(BatchPool):
    queue: str | None = Field(default=None, description="queue; default: the cluster's")
    project: str | None = Field(default=None, description="project that is charged")
    time_limit: Seconds | None = Field(
        default=None, description="run time after which the batch system ends a worker, e.g. 24h"
    )


class GridEnginePool(QueuedPool):
    parallel_environment: str = Field(
        default="smp", description="parallel environment whose slots are cores of one machine"
    )
    memory_resource: str = Field(
        default="mem_free", description="complex that memory requests, per slot if it is consumable"
    )
    gpu_resource: str = Field(default="gpu", description="complex that gpus requests")


class PbsPool(QueuedPool, SeveralNodes):
    account: str | None = Field(default=None, description="account that is charged")


class LsfPool(QueuedPool, SeveralNodes):
    pass


class AwsBatchPool(Section):
    queue: str = Field(default="", description="job queue")
    region: str | None = Field(default=None, description="region; default: AWS_DEFAULT_REGION")
    job_role: str | None = Field(default=None, description="ARN of the role of the workers")
    execution_role: str | None = Field(
        default=None, description="ARN of the role that pulls the image and reads the secrets"
    )
    secrets: dict[Variable, str] = Field(
        default={},
        description="variables of the workers with the ARNs of their values in Secrets Manager or "
        "Parameter Store",
    )
    share_identifier: str | None = Field(
        default=None, description="share of a queue with a fair-share policy"
    )
    tags: dict[str, str] = Field(default={}, description="further tags of jobs and definitions")


class KubernetesPool(Section):
    context: str | None = Field(
        default=None,
        description="context of kubeconfig; default: the cluster the coordinator is in",
    )
    namespace: Label = Field(default="dpstream", description="namespace of the Jobs")
    secret: Label | None = Field(
        default=None, description="Secret whose keys are variables of the workers"
    )
    service_account: Label | None = Field(
        default=None, description="ServiceAccount of the pods; default: dpstream-SERVICE"
    )
    pull_secrets: tuple[Label, ...] = Field(default=(), description="Secrets for pulling the image")
    node_selector: dict[str, str] = Field(default={}, description="labels that a node must have")
    tolerations: tuple[dict[str, Any], ...] = Field(
        default=(), description="taints of nodes that the pods tolerate"
    )
    scratch: Memory = Field(default="20G", description="disk for the private files of tasks")
    actuator: Literal["coordinator", "keda"] = Field(
        default="coordinator",
        description="what creates the Jobs; keda: the ScaledJob that dpstream fleet render prints",
    )
    labels: dict[str, str] = Field(
        default={}, description="further labels of the Job, e.g. kueue.x-k8s.io/queue-name"
    )
    patch: dict[str, Any] = Field(
        default={}, description="merged into the pod template of the Job (JSON merge patch)"
    )
