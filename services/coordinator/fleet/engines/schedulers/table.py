"""The batch systems by the name of their engine."""

from __future__ import annotations

from collections.abc import Mapping

from dpstream.services.coordinator.fleet.engines.schedulers.grid_engine import GRID_ENGINE
from dpstream.services.coordinator.fleet.engines.schedulers.lsf import LSF
from dpstream.services.coordinator.fleet.engines.schedulers.pbs import PBS
from dpstream.services.coordinator.fleet.engines.schedulers.scheduler import Scheduler
from dpstream.services.coordinator.fleet.engines.schedulers.slurm import SLURM
from dpstream.services.coordinator.fleet.engines.schedulers.torque import TORQUE

SCHEDULERS: Mapping[str, Scheduler] = {
    "slurm": SLURM,
    "sge": GRID_ENGINE,
    "pbs": PBS,
    "torque": TORQUE,
    "lsf": LSF,
}
