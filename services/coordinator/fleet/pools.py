"""The fleet file: the pools of workers of a deployment, and what they may cost.

The coordinator reads it (`DPSTREAM_FLEET`), and `dpstream fleet` checks and renders it. It contains
no secrets: workers get theirs from files named under `source`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from dpstream.shared.bus.topology import declared
from dpstream.shared.environment import is_secret
from dpstream.shared.messages import COMMANDS, Explore, Judge, Screen, Service
from dpstream.shared.spec.base import Section
from dpstream.shared.spec.errors import read_document, validated
from dpstream.shared.values import Name

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LARGEST: Mapping[str, int] = {"process": 100, "slurm": 1000, "kubernetes": 200}
"""Most workers of one launch, by engine; Slurm's default MaxArraySize is 1001."""
JOB_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,50}")
PASSES = {"slurm": ("SLURM_*", "PMI*", "PMIX_*", "I_MPI_*", "UCX_*", "OMPI_*")}
"""What engines and labeling programs may see of a fleet engine's variables: without them `srun`
asks for a second allocation."""
LABEL = "label."
"""Prefix of the queues of labelers."""


def seconds_of(value: Any) -> Any:
    """Reads `90`, `90s`, `10m`, `23h` or `2d` as seconds."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", value.strip())
    if found is None:
        raise ValueError("must be a time such as 90s, 10m, 23h or 2d")
    return float(found[1]) * UNITS[found[2]]


def size_of(value: Any) -> Any:
    """A size such as `120G`, as it is."""
    if not (isinstance(value, str) and re.fullmatch(SIZE, value)):
        raise ValueError("must be a size such as 500M, 120G or 1T")
    return value


SIZE = r"^[1-9][0-9]*[KMGT]$"
Seconds = Annotated[
    float, BeforeValidator(seconds_of, json_schema_input_type=float | str), Field(gt=0)
]
Memory = Annotated[str, StringConstraints(pattern=SIZE), BeforeValidator(size_of)]
Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class SlurmPool(Section):
    partition: str | None = Field(default=None, description="partition; default: the cluster's")
    account: str | None = Field(default=None, description="account that is charged")
    qos: str | None = Field(default=None, description="quality of service")
    time_limit: str | None = Field(default=None, description="walltime of a worker, e.g. 24:00:00")
    nodes: int = Field(
        default=1,
        ge=1,
        description="nodes of a labeler; cpus, gpus and memory are those of each node",
    )
    submit_prefix: tuple[str, ...] = Field(
        default=(),
        description="command that runs sbatch, squeue and scancel elsewhere, e.g. [ssh, login1]",
    )
    flags: tuple[str, ...] = Field(
        default=(), description="further options of sbatch, e.g. [--exclusive]"
    )


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
    labels: dict[str, str] = Field(
        default={}, description="further labels of the Job, e.g. kueue.x-k8s.io/queue-name"
    )
    patch: dict[str, Any] = Field(
        default={}, description="merged into the pod template of the Job (JSON merge patch)"
    )


class Budget(Section):
    """Limits of the whole deployment, or of one pool."""

    worker_hours: float | None = Field(default=None, gt=0, description="hours of all workers")
    currency_per_day: float | None = Field(default=None, gt=0, description="cost per day (UTC)")
    hard: bool = Field(default=False, description="at the limit also stop the busy workers")


class PoolSettings(Section):
    """One pool of workers: processes of one service on machines of one kind."""

    engine: Literal["process", "slurm", "kubernetes"] = Field(description="what runs the workers")
    serves: tuple[str, ...] = Field(
        min_length=1,
        description="queues of one service: train; explore, judge, screen; label.CODE",
    )
    command: tuple[str, ...] = Field(
        default=(),
        description="program and arguments of a worker; default: the service, with the Python of "
        "the coordinator; kubernetes: the image's entry point",
    )
    image: str | None = Field(default=None, description="image of a worker, with its tag")
    cpus: int = Field(default=1, ge=1, description="cores of a worker")
    gpus: int = Field(default=0, ge=0, description="GPUs of a worker")
    memory: Memory | None = Field(default=None, description="memory of a worker, e.g. 120G")
    slots: int = Field(
        default=1,
        ge=1,
        description="tasks that a worker process runs at once; its cores are divided among them",
    )
    min: int = Field(default=0, ge=0, description="fewest workers; these stay without tasks")
    max: int = Field(ge=0, description="largest number of workers")
    step: int = Field(
        default=4,
        ge=1,
        description="workers of the first launch; a later one at most doubles those that are up",
    )
    cool_down: Seconds = Field(
        default=60.0, description="age of a launch from which its waiting workers may be taken back"
    )
    idle_exit: Seconds = Field(
        default=120.0, description="time without a task after which a worker ends"
    )
    lifetime: Seconds = Field(
        default=86400.0, description="time after which a worker takes no new task and ends"
    )
    longest_task: Seconds = Field(
        default=86400.0,
        description="kubernetes: a worker that exceeds its lifetime by this is ended",
    )
    grace: Seconds = Field(
        default=25.0, description="time that a worker has after SIGTERM to release its tasks"
    )
    patience: Seconds = Field(
        default=600.0, description="how long launches may wait before the next pool is used"
    )
    start_time: Seconds = Field(
        default=15.0,
        description="assumed time from the start of a worker to its first message; a longer "
        "measured time replaces it",
    )
    start_limit: Seconds = Field(
        default=600.0,
        description="a worker that runs for this long without a message has failed to start",
    )
    worth: float = Field(
        default=2.0,
        ge=0,
        description="a further worker is launched only if the waiting tasks keep it busy for this "
        "many start times",
    )
    budget: Budget = Field(default=Budget(), description="limits of this pool")
    price: float = Field(default=0.0, ge=0, description="per worker and hour, in any currency")
    spot: bool = Field(
        default=False,
        description="machines that may be reclaimed: a killed worker does not count as a failure",
    )
    module_purge: bool = Field(default=False, description="unload all environment modules first")
    module_unload: tuple[str, ...] = Field(default=(), description="environment modules to unload")
    modules: tuple[str, ...] = Field(default=(), description="environment modules to load")
    source: tuple[Path, ...] = Field(
        default=(), description="shell files to read first, e.g. with the worker's credentials"
    )
    envs: dict[Variable, str] = Field(default={}, description="environment variables; no secrets")
    prepend: tuple[str, ...] = Field(
        default=(), description="shell lines to run last before the worker; no secrets"
    )
    slurm: SlurmPool = Field(default=SlurmPool(), description="for the engine slurm")
    kubernetes: KubernetesPool = Field(
        default=KubernetesPool(), description="for the engine kubernetes"
    )

    @property
    def service(self) -> Service:
        """The service whose processes the pool runs."""
        return SERVICES[queue_kind(self.serves[0])]

    @property
    def worker_class(self) -> str | None:
        """The class of labelers that the queues name after the code: `label.cp2k-32-cores`."""
        return queue_class(self.serves[0])

    @property
    def service_slots(self) -> int:
        """The slots of the service's own setting; an explorer of several queues has one more worker
        for each further one."""
        beside = len({*self.serves} & {Explore.QUEUE, Judge.QUEUE, Screen.QUEUE}) - 1
        return max(1, self.slots - max(0, beside))

    @property
    def arguments(self) -> tuple[str, ...]:
        """Program and arguments of a worker."""
        return self.command or (sys.executable, "-m", f"dpstream.services.{self.service}")

    @property
    def place(self) -> tuple[object, ...]:
        """The engine, and where it runs the workers: pools with the same are listed together."""
        where = {
            "process": (),
            "slurm": self.slurm.submit_prefix,
            "kubernetes": (self.kubernetes.context, self.kubernetes.namespace),
        }
        return (self.engine, *where[self.engine])

    @model_validator(mode="after")
    def _consistent(self) -> PoolSettings:
        for queue in self.serves:
            if declared(queue) is None or queue_kind(queue) not in SERVICES:
                raise ValueError(f"serves: {queue!r}: must be {' | '.join(SERVICES)}CODE")
        services = {SERVICES[queue_kind(queue)] for queue in self.serves}
        if len(services) > 1:
            raise ValueError(
                f"serves: queues of {' and '.join(sorted(services))}: a pool runs one service; "
                "give each its own pool"
            )
        if len({queue_class(queue) for queue in self.serves}) > 1:
            raise ValueError(
                "serves: queues of several classes of labelers; give each class its own pool"
            )
        if self.engine == "kubernetes" and self.image is None:
            raise ValueError("image: missing; the engine kubernetes needs it")
        if self.engine != "kubernetes" and self.image is not None:
            raise ValueError(f"image: the engine {self.engine} does not use it; remove it")
        prepared = self.module_purge or self.module_unload or self.modules or self.prepend
        if self.engine == "kubernetes" and (prepared or self.source):
            raise ValueError(
                "modules, source, prepend: the engine kubernetes does not use them; programs "
                "belong in the image, credentials in the Secret that kubernetes.secret names"
            )
        if self.slurm.nodes > 1 and self.service != "labeler":
            raise ValueError(f"slurm.nodes: a {self.service} uses one node")
        if self.min > self.max:
            raise ValueError(f"min: {self.min}: must be at most max ({self.max})")
        if (own := f"DPSTREAM_{self.service.upper()}_SLOTS") in self.envs:
            raise ValueError(f"envs: {own}: set slots instead, by which workers are counted")
        given = [("envs", name) for name in self.envs]
        given += [("prepend", name) for line in self.prepend for name in assigned(line)]
        for key, name in given:
            if is_secret(name):
                place = (
                    "the Secret that kubernetes.secret names"
                    if self.engine == "kubernetes"
                    else "a file under source"
                )
                raise ValueError(f"{key}: {name}: a secret; it belongs in {place}")
        return self


class FleetFile(Section):
    """The fleet file."""

    deployment: Name = Field(
        description="name in every launch; different coordinators need different names"
    )
    budget: Budget = Budget()
    pools: dict[Name, PoolSettings] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_of_jobs(self) -> FleetFile:
        """Names of Kubernetes Jobs have up to 63 characters: deployment, pool and 13 more."""
        for name, pool in self.pools.items():
            if pool.engine == "kubernetes" and not JOB_NAME.fullmatch(f"{self.deployment}-{name}"):
                raise ValueError(
                    f"pools.{name}: '{self.deployment}-{name}': in names of Kubernetes Jobs use at "
                    "most 51 lower-case letters, digits and -"
                )
        return self


def assigned(line: str) -> list[str]:
    """Names of the variables that a shell line sets."""
    return re.findall(r"\b([A-Za-z_]\w*)=", line)


def queue_kind(queue: str) -> str:
    """`label.` for the queues of labelers, else the queue itself."""
    return LABEL if queue.startswith(LABEL) else queue


def queue_class(queue: str) -> str | None:
    """`32-cores` of `label.cp2k-32-cores`; None without a class."""
    return queue.partition("-")[2] or None if queue.startswith(LABEL) else None


def queue_code(queue: str) -> str:
    """`cp2k` of `label.cp2k-32-cores`; the queue itself for other services."""
    return queue.removeprefix(LABEL).partition("-")[0]


SERVICES: Mapping[str, Service] = {queue_kind(kind.QUEUE): kind.SERVICE for kind in COMMANDS}
"""Services by kind of queue."""


def read_fleet(path: Path) -> FleetFile:
    """The fleet file, with the paths under `source` absolute. Raises SpecError: one line with
    file, key, value and remedy."""
    file = validated(FleetFile, read_document(path, "dpstream fleet init"), f"{path}: ")
    folder = path.absolute().parent
    pools = {name: _with_paths(pool, folder) for name, pool in file.pools.items()}
    return file.model_copy(update={"pools": pools})


def _with_paths(pool: PoolSettings, folder: Path) -> PoolSettings:
    """Paths of this machine become absolute; those of a login node are taken as they are."""
    if pool.slurm.submit_prefix:
        return pool
    source = tuple(folder / each.expanduser() for each in pool.source)
    return pool.model_copy(update={"source": source})


def worker_variables(name: str, pool: PoolSettings, *, warm: bool = False) -> dict[str, str]:
    """The `DPSTREAM_*` variables that a pool's workers get from the fleet file."""
    served = ",".join(dict.fromkeys(queue_code(queue) for queue in pool.serves))
    values: dict[str, Any] = {
        "POOL": name,
        "IDLE_EXIT": None if warm else pool.idle_exit,
        "LIFETIME": pool.lifetime,
        "GRACE": pool.grace,
        "PASS": ",".join(_passed(pool)) or None,
        "THREADS": max(1, pool.cpus * pool.slurm.nodes // pool.service_slots),
        f"{pool.service.upper()}_SLOTS": pool.service_slots,
        "DEVICE": "cuda" if pool.gpus and pool.service != "labeler" else None,
        "LABELER_CODES": served if pool.service == "labeler" else None,
        "LABELER_CLASS": pool.worker_class,
        "EXPLORER_QUEUES": served if pool.service == "explorer" else None,
    }
    return {
        f"DPSTREAM_{key}": f"{value:g}" if isinstance(value, float) else str(value)
        for key, value in values.items()
        if value is not None
    }


def _passed(pool: PoolSettings) -> list[str]:
    """Patterns of the variables that engines and labeling programs may see: those of the fleet
    engine, and those that the pool sets."""
    names = [*pool.envs, *(name for line in pool.prepend for name in assigned(line))]
    own = (name for name in dict.fromkeys(names) if not name.startswith("DPSTREAM_"))
    return [*PASSES.get(pool.engine, ()), *own]
