"""The fleet engines by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from dpstream.services.coordinator.fleet.pools import FleetFile, PoolSettings
from dpstream.services.coordinator.fleet.process import ProcessFleet
from dpstream.services.coordinator.fleet.slurm import SlurmFleet
from dpstream.shared.ports import Fleet

Make = Callable[[str, Mapping[str, PoolSettings], Path], Fleet]
ENGINES: Mapping[str, Make] = {"process": ProcessFleet, "slurm": SlurmFleet}
"""`make(deployment, pools, logs)`; `logs`: a folder for logs of workers on this machine."""
LOGS = "worker-logs"
"""That folder, beside the fleet file."""


def engines_of(file: FleetFile, path: Path) -> dict[str, Fleet]:
    """The fleet engine of every pool of the file at `path`, by the pool's name. Pools share one if
    they are run by the same engine through the same `submit_prefix`."""
    shared: dict[tuple[object, ...], dict[str, PoolSettings]] = {}
    for name, pool in file.pools.items():
        shared.setdefault((pool.engine, pool.slurm.submit_prefix), {})[name] = pool
    found: dict[str, Fleet] = {}
    logs = path.absolute().parent / LOGS
    for (engine, _), pools in shared.items():
        found |= dict.fromkeys(pools, ENGINES[str(engine)](file.deployment, pools, logs))
    return found


def each_once(engines: Mapping[str, Fleet]) -> list[tuple[Fleet, list[str]]]:
    """Every engine once, with the names of its pools."""
    pools: dict[int, list[str]] = {}
    for name, engine in engines.items():
        pools.setdefault(id(engine), []).append(name)
    return [(engines[names[0]], names) for names in pools.values()]
