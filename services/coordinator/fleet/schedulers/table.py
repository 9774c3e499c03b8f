"""The batch systems by the name of their engine."""

from __future__ import annotations

from collections.abc import Mapping

from dpstream.services.coordinator.fleet.schedulers.grid_engine import GRID_ENGINE
from dpstream.services.coordinator.fleet.schedulers.lsf import LSF
from dpstream.services.coordinator.fleet.schedulers.pbs import PBS
from dpstream.services.coordinator.fleet.schedulers.scheduler import Scheduler
from dpstream.services.coordinator.fleet.schedulers.slurm import SLURM
from dpstream.services.coordinator.fleet.schedulers.torque import TORQUE

SCHEDULERS: Mapping[str, Scheduler] = {
    "slurm": SLURM,
    "sge": GRID_ENGINE,
    "pbs": PBS,
    "torque": TORQUE,
    "lsf": LSF,
}
