"""The record of a development cluster, `cluster.json` in its folder."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from dpstream.deploy.devcluster.processes import ProcessRecord
from dpstream.shared.errors import SpecError

WORKERS = {"trainer": 1, "explorer": 1, "labeler": 2}
COORDINATOR = "coordinator"
HASTE = {"DPSTREAM_LEASE_SECONDS": "60", "DPSTREAM_TASK_HEARTBEAT": "5"}
"""Shorter than the defaults, because killed workers are noticed sooner on a single machine."""


class ServiceRecord(BaseModel):
    """The process of a service, and its HTTP port."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    process: ProcessRecord
    port: int


class ClusterRecord(BaseModel):
    """What is kept between calls of `up`: workers by service, environment variables of the
    services, and services by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: dict[str, int] = WORKERS
    settings: dict[str, str] = HASTE
    services: dict[str, ServiceRecord] = {}

    @staticmethod
    def read(file: Path) -> ClusterRecord:
        """The record in `file`, or a new one. Raises `SpecError` if the file is invalid."""
        try:
            return ClusterRecord.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return ClusterRecord()
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(map(str, problem["loc"]))
            raise SpecError(f"{file}: {key}: {problem['msg']}") from error

    @property
    def wanted(self) -> list[str]:
        """Names of all services that should run."""
        crew = [f"{kind}-{n + 1}" for kind, count in self.workers.items() for n in range(count)]
        return [COORDINATOR, *crew]

    def is_running(self, name: str) -> bool:
        return name in self.services and self.services[name].process.is_running
