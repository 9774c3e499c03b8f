"""The fleet engines by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from dpstream.services.coordinator.fleet.pools import FleetFile, PoolSettings
from dpstream.services.coordinator.fleet.process import ProcessFleet
from dpstream.services.coordinator.fleet.slurm import SlurmFleet
from dpstream.shared.ports import Fleet

Make = Callable[[str, Mapping[str, PoolSettings], Path], Fleet]
ENGINES: Mapping[str, Make] = {
    "process": ProcessFleet,
    "slurm": lambda deployment, pools, logs: SlurmFleet(deployment, pools),
}
"""`make(deployment, pools, logs)`; `logs`: a folder for logs of workers on this machine."""


def engines_of(file: FleetFile, logs: Path) -> dict[str, Fleet]:
    """The engines that the machine file names, each with its pools."""
    found: dict[str, Fleet] = {}
    for engine, make in ENGINES.items():
        pools = {name: pool for name, pool in file.pools.items() if pool.engine == engine}
        if pools:
            found[engine] = make(file.deployment, pools, logs)
    return found
