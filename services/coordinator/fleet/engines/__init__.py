"""The fleet engines by name.

They are `process.py`, `schedulers` (batch systems), `aws_batch.py` and `kubernetes.py`; the last
one creates Jobs (`worker_job.py`), or leaves that to KEDA (`keda.py`), and reads the state of their
pods (`worker_pods.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from dpstream.services.coordinator.fleet.engines.process import ProcessFleet
from dpstream.services.coordinator.fleet.engines.schedulers.batch import BatchFleet
from dpstream.services.coordinator.fleet.pools import BATCH, FleetFile, PoolSettings
from dpstream.shared.errors import SpecError
from dpstream.shared.ports import Fleet


class FleetEngine(Fleet, Protocol):
    """A fleet engine as the reconciler and the command line use it."""

    pools: Mapping[str, PoolSettings]
    """Its pools by name; replaced when the fleet file changes."""

    def check(self, pool: str) -> None:
        """Ask the engine whether it would accept a worker; starts nothing. Raises `FleetError`."""

    def render(self, pool: str) -> str:
        """What is submitted for one worker."""


def kubernetes_fleet(deployment: str, pools: Mapping[str, PoolSettings], logs: Path) -> FleetEngine:
    """Imports the engine when a pool needs it: its package is large."""
    try:
        from dpstream.services.coordinator.fleet.engines.kubernetes import KubernetesFleet
    except ModuleNotFoundError as error:
        raise SpecError(
            f"engine kubernetes: {error}; pip install 'dpstream[coordinator]'"
        ) from error
    return KubernetesFleet(deployment, pools, logs)


def aws_batch_fleet(deployment: str, pools: Mapping[str, PoolSettings], logs: Path) -> FleetEngine:
    """Imports the engine when a pool needs it: boto3 is large."""
    from dpstream.services.coordinator.fleet.engines.aws_batch import AwsBatchFleet

    return AwsBatchFleet(deployment, pools, logs)


MakeEngines = Callable[[FleetFile, Path, Mapping[str, FleetEngine]], Mapping[str, FleetEngine]]
"""As `engines_of`."""
Make = Callable[[str, Mapping[str, PoolSettings], Path], FleetEngine]
ENGINES: Mapping[str, Make] = {
    "process": ProcessFleet,
    **dict.fromkeys(BATCH, BatchFleet),
    "kubernetes": kubernetes_fleet,
    "aws_batch": aws_batch_fleet,
}
"""`make(deployment, pools, logs)`; `logs`: a folder for logs of workers on this machine."""
LOGS = "worker-logs"
"""That folder, beside the fleet file."""


def engines_of(
    file: FleetFile, path: Path, before: Mapping[str, FleetEngine] = MappingProxyType({})
) -> dict[str, FleetEngine]:
    """The fleet engine of every pool of the file at `path`, by the pool's name. Pools of the same
    place share one; `before`: engines of an earlier version of the file, which know how their
    workers ended and are kept."""
    known = {next(iter(each.pools.values())).place: each for each in before.values()}
    shared: dict[tuple[object, ...], dict[str, PoolSettings]] = {}
    for name, pool in file.pools.items():
        shared.setdefault(pool.place, {})[name] = pool
    found: dict[str, FleetEngine] = {}
    logs = path.absolute().parent / LOGS
    for place, pools in shared.items():
        engine = known.get(place) or ENGINES[str(place[0])](file.deployment, pools, logs)
        engine.pools = pools
        found |= dict.fromkeys(pools, engine)
    return found


def each_once(engines: Mapping[str, FleetEngine]) -> list[tuple[FleetEngine, list[str]]]:
    """Every engine once, with the names of its pools."""
    pools: dict[int, list[str]] = {}
    for name, engine in engines.items():
        pools.setdefault(id(engine), []).append(name)
    return [(engines[names[0]], names) for names in pools.values()]
