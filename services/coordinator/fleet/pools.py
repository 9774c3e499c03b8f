"""The fleet file: the pools of workers of a deployment, and what they may cost.

The coordinator reads it (`DPSTREAM_FLEET`), and `dpstream fleet` checks and renders it. It contains
no secrets: workers get theirs from files named under `source`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from dpstream.services.coordinator.fleet.assumptions import Assumptions
from dpstream.services.coordinator.fleet.engine_settings import (
    AwsBatchPool,
    BatchPool,
    GridEnginePool,
    KubernetesPool,
    LsfPool,
    Memory,
    PbsPool,
    SlurmPool,
    Variable,
)
from dpstream.shared.bus.topology import declared
from dpstream.shared.environment import is_secret
from dpstream.shared.messages import COMMANDS, Explore, Judge, Screen, Service
from dpstream.shared.spec.base import Section
from dpstream.shared.spec.errors import did_you_mean, read_document, validated
from dpstream.shared.spec.times import Seconds
from dpstream.shared.values import Name

Engine = Literal["process", "slurm", "sge", "pbs", "torque", "lsf", "kubernetes", "aws_batch"]
BATCH = ("slurm", "sge", "pbs", "torque", "lsf")
"""Engines that are batch systems."""
IMAGES = ("kubernetes", "aws_batch")
"""Engines whose workers are containers."""
SECTIONS = (*BATCH, *IMAGES)
"""Engines with a section of their own."""
LARGEST: Mapping[str, int] = {
    "process": 100,
    **dict.fromkeys(BATCH, 1000),
    "kubernetes": 200,
    "aws_batch": 10_000,
}
"""Most workers of one launch, by engine; the default MaxArraySize of Slurm is 1001, that of LSF
1000."""
LIST_LAG: Mapping[str, float] = {"aws_batch": 300.0, "lsf": 300.0}
"""Seconds for which the list of an engine may lack what it has accepted; the other engines list it
at once. `bjobs` may ask a copy of `mbatchd` that is 10 s old, at most 300 s (MBD_REFRESH_TIME)."""
JOB_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,50}")
MPI = ("PMI*", "PMIX_*", "I_MPI_*", "UCX_*", "OMPI_*")
PASSES = {
    "slurm": ("SLURM_*", *MPI),
    "sge": ("SGE_*", "JOB_ID", "PE*", "NSLOTS", "NHOSTS", "QUEUE", *MPI),
    "pbs": ("PBS_*", *MPI),
    "torque": ("PBS_*", *MPI),
    "lsf": ("LSB_*", "LSF_*", "LS_*", *MPI),
}
"""What engines and labeling programs may see of a fleet engine's variables: without them `srun`
asks for a second allocation, and `mpirun` does not know its machines."""
SECRET_PLACES = {
    "kubernetes": "the Secret that kubernetes.secret names",
    "aws_batch": "Secrets Manager; aws_batch.secrets names it",
}
"""Where secrets of workers in containers belong."""
LABEL = "label."
"""Prefix of the queues of labelers."""


class FleetBudget(Section):
    """Limits of the whole deployment, or of one pool."""

    worker_hours: float | None = Field(default=None, gt=0, description="hours of all workers")
    currency_per_day: float | None = Field(default=None, gt=0, description="cost per day (UTC)")
    hard: bool = Field(default=False, description="at the limit also stop the busy workers")


class PoolSettings(Section):
    """One pool of workers: processes of one service on machines of one kind."""

    engine: Engine = Field(description="what runs the workers")
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
    budget: FleetBudget = Field(default=FleetBudget(), description="limits of this pool")
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
    sge: GridEnginePool = Field(
        default=GridEnginePool(), description="for the engine sge: Grid Engine"
    )
    pbs: PbsPool = Field(
        default=PbsPool(), description="for the engine pbs: PBS Professional, OpenPBS"
    )
    torque: PbsPool = Field(default=PbsPool(), description="for the engine torque")
    lsf: LsfPool = Field(default=LsfPool(), description="for the engine lsf")
    kubernetes: KubernetesPool = Field(
        default=KubernetesPool(), description="for the engine kubernetes"
    )
    aws_batch: AwsBatchPool = Field(
        default=AwsBatchPool(), description="for the engine aws_batch: AWS Batch"
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
        if self.engine == "kubernetes":
            return (self.engine, self.kubernetes.context, self.kubernetes.namespace)
        if self.engine == "aws_batch":
            return (self.engine, self.aws_batch.region, self.aws_batch.queue)
        return (self.engine, *self.batch.submit_prefix)

    @property
    def batch(self) -> BatchPool:
        """The section of the pool's batch system; that of other engines has the defaults."""
        section: BatchPool = getattr(self, self.engine) if self.engine in BATCH else BatchPool()
        return section

    @property
    def is_observed(self) -> bool:
        """Whether something else than the coordinator starts the workers."""
        return self.engine == "kubernetes" and self.kubernetes.actuator == "keda"

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
        has_image = self.engine in IMAGES
        if has_image and self.image is None:
            raise ValueError(f"image: missing; the engine {self.engine} needs it")
        if not has_image and self.image is not None:
            raise ValueError(f"image: the engine {self.engine} does not use it; remove it")
        if self.engine == "aws_batch" and not self.aws_batch.queue:
            raise ValueError("aws_batch.queue: missing")
        if self.engine == "aws_batch" and self.memory is None:
            raise ValueError("memory: missing; the engine aws_batch needs it")
        prepared = self.module_purge or self.module_unload or self.modules or self.prepend
        if has_image and (prepared or self.source):
            raise ValueError(
                f"modules, source, prepend: the engine {self.engine} does not use them; programs "
                f"belong in the image, credentials in {SECRET_PLACES[self.engine]}"
            )
        if self.batch.nodes_of_a_worker > 1 and self.service != "labeler":
            raise ValueError(f"{self.engine}.nodes: a {self.service} uses one node")
        for section in SECTIONS:
            if section in self.model_fields_set and section != self.engine:
                raise ValueError(f"{section}: the engine {self.engine} does not use it; remove it")
        if self.is_observed and self.min:
            raise ValueError(f"min: {self.min}: must be 0 with kubernetes.actuator: keda")
        if self.min > self.max:
            raise ValueError(f"min: {self.min}: must be at most max ({self.max})")
        if (own := f"DPSTREAM_{self.service.upper()}_SLOTS") in self.envs:
            raise ValueError(f"envs: {own}: set slots instead, by which workers are counted")
        given = [("envs", name) for name in self.envs]
        given += [("prepend", name) for line in self.prepend for name in assigned(line)]
        for key, name in given:
            if is_secret(name):
                place = SECRET_PLACES.get(self.engine, "a file under source")
                raise ValueError(f"{key}: {name}: a secret; it belongs in {place}")
        return self


class FleetFile(Section):
    """The fleet file."""

    deployment: Name = Field(
        description="name in every launch; different coordinators need different names"
    )
    budget: FleetBudget = FleetBudget()
    pools: dict[Name, PoolSettings] = Field(min_length=1)
    simulation: Assumptions = Field(
        default=Assumptions(), description="what dpstream simulate assumes; see docs/simulation.md"
    )

    @model_validator(mode="after")
    def _assumed_pools(self) -> FleetFile:
        for name in self.simulation.pools.keys() - self.pools.keys():
            hint = did_you_mean(name, self.pools)
            raise ValueError(f"simulation.pools.{name}: no such pool{hint}")
        return self

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
    if pool.batch.submit_prefix:
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
        "THREADS": max(1, pool.cpus * pool.batch.nodes_of_a_worker // pool.service_slots),
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
