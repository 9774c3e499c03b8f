"""Eight labelers that sleep: as processes that a real coordinator starts, and simulated.

Broker, store, coordinator, process fleet, worker runtime, claims and heartbeats are real; a label
takes the time that the simulation draws for the same frame.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.services.figures import Figure
from benchmarks.services.site import ROOT, servers
from benchmarks.simulation.campaigns import QUEUE, Run, queue, run
from dpstream.services.coordinator.fleet.assumptions import PoolAssumptions, Times
from dpstream.services.coordinator.fleet.plan import time_of
from dpstream.services.coordinator.fleet.pools import FleetFile, read_fleet
from dpstream.services.coordinator.views.campaign import CampaignView
from dpstream.shared import messages as m
from dpstream.shared.settings import PREFIX
from tests.support.deployments.deployed_cluster import NAME, WORKER_MODULE, Cluster, deployed
from tests.support.deployments.worker_without_engines import SEED

WORKERS = 8
LABEL = {"mean": 6.0, "sd": 4.0, "least": 0.5, "most": 20.0}
SHORT = 0.05
"""Seconds of every other task."""


@dataclass(frozen=True)
class Measured:
    """Seconds from the submission to the end of the campaign, from the first label to the last, and
    of all label tasks; from the launch of each worker to its first task."""

    whole: float
    labeling: float
    busy: float
    starts: tuple[float, ...]


def compare(labels: int) -> Iterator[Figure]:
    real, simulated = both(labels)
    starts = ", ".join(f"{each:.1f}" for each in real.starts)
    yield Figure(f"{labels} labels on {WORKERS} processes, which start in", f"{starts} s")
    yield _beside("first label to last", real.labeling, simulated.labeling, "within 10 %")
    yield _beside("submission to verdict", real.whole, simulated.outcome.seconds)
    yield _beside("time of the workers with a task", real.busy, 3600 * simulated.label_hours)


def both(labels: int) -> tuple[Measured, Run]:
    """The simulation is given the times that workers took to start: they depend on the machine's
    load, and are what a fleet file states."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fleet.yaml"
        with servers(Path(folder) / "servers", fsync=True) as on:
            real = _measured(deployed(on.node, on.server), path, labels)
        file = read_fleet(path)
    return real, run(queue(labels), _started_in(file, real.starts), SEED)


def _beside(what: str, real: float, simulated: float, wanted: str = "") -> Figure:
    share = f"{simulated / real - 1:+.1%}"
    return Figure(what, f"{real:.1f} s; simulated {simulated:.1f} s, {share}", wanted)


def _started_in(file: FleetFile, starts: tuple[float, ...]) -> FleetFile:
    assumed = PoolAssumptions(start=Times(values=starts))
    changed = file.simulation.model_copy(update={"pools": {"labels": assumed}})
    return file.model_copy(update={"simulation": changed})


def _measured(cluster: Cluster, path: Path, labels: int) -> Measured:
    _write_fleet(cluster, path)
    try:
        cluster.start_coordinator(fleet=str(path), lease_seconds="900", reissue_after="600")
        cluster.start_services(("trainer", "explorer"))
        for service in cluster.services.values():
            service.wait_for("ready")
        began = time.time()
        cluster.submit(queue(labels).spec, labels)
        finished = cluster.until(
            lambda: cluster.recorded(m.CampaignFinished), "the end of the campaign"
        )[0]
        spans = CampaignView.read(cluster.store, NAME).work.spans()
        claims = cluster.recorded(m.TaskClaimed)
    finally:
        for started in cluster.started:
            started.process.kill()
    spans = [span for span in spans if span.kind == "label"]
    first: dict[str, float] = {}
    for claim in sorted(claims, key=lambda claim: claim.time):
        if claim.process is not None:
            first.setdefault(claim.process, claim.time)
    return Measured(
        finished.time - began,
        max(span.end for span in spans) - min(span.start for span in spans),
        sum(span.end - span.start for span in spans),
        tuple(time - time_of(name.rpartition("-")[0]) for name, time in first.items()),
    )


def _write_fleet(cluster: Cluster, path: Path) -> None:
    environment = {
        **cluster.environment,
        f"{PREFIX}SIMULATED_LABELS": json.dumps(LABEL),
        "PYTHONPATH": str(ROOT),
    }
    lines = (f"export {key}={shlex.quote(value)}" for key, value in environment.items())
    (path.parent / "labeler.env").write_text("\n".join(lines) + "\n")
    pool: dict[str, Any] = {
        "engine": "process",
        "serves": [QUEUE],
        "command": [sys.executable, "-m", WORKER_MODULE, "labeler"],
        "max": WORKERS,
        "step": WORKERS,
        "start_time": 1,
        "worth": 0,
        "idle_exit": 5,
        "source": ["labeler.env"],
    }
    others = ("train", "explore", "judge", "select", "audit", "verify")
    assumed = {
        "tasks": {"label": LABEL, **dict.fromkeys(others, SHORT)},
    }
    document = {"deployment": "sleeping", "pools": {"labels": pool}, "simulation": assumed}
    path.write_text(yaml.safe_dump(document))
