"""The campaigns and fleets of the benchmarks, and runs of them in fresh processes."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpstream.services.coordinator.fleet import reconciler
from dpstream.services.coordinator.fleet.pools import FleetFile
from dpstream.services.coordinator.garbage import collect_rarely
from dpstream.services.coordinator.simulation.outcome import SimulationOutcome
from dpstream.services.coordinator.simulation.simulation import Simulation, Submission
from dpstream.shared.logs import configure
from tests.support.campaigns.campaign_simulator import ref, spec, submission

LABEL = {"mean": 355, "sd": 291, "least": 7.6, "most": 1034}
"""Seconds of a label: measured by others on 2,000 DFT calculations, log-normal."""
TRAINING, MEMBERS = 260, 4
"""Seconds of a training, and trainers."""
QUEUE = "label.tblite"
ONLY = {"name": "only", "systems": ["methane"], "temperatures": [300.0]}
TRAJECTORIES, CHECKS = 40, 100
"""Of each round."""


def loop(mode: str, wave: int, labels: int) -> Submission:
    """A campaign that never converges and takes `labels` labels: in lockstep `wave` in each round,
    in streaming mode a new committee after as many, while four times as many may wait."""
    of = spec(
        mode=mode,
        stages=[ONLY],
        training={"members": MEMBERS},
        md={"steps": 10 * CHECKS, "every": 10, "trajectories": TRAJECTORIES, "chunk": CHECKS // 2},
        selection={
            "per_round": wave if mode == "lockstep" else 4 * wave,
            "per_trajectory": 1_000_000,
            "select_every": wave,
        },
        labels={"bundle": 1},
        audit={"per_round": 0},
        budget={"labels": labels, "rounds": 10_000},
        streaming={"retrain_after": wave},
        verification={"nve_ps": 0},
        max_attempts=1000,
    )
    event = submission(of, 0).model_copy(update={"packs": (ref("pack"),), "pack_frames": wave})
    return Submission(of, event)


def queue(labels: int) -> Submission:
    """A campaign of so many labels, which all wait from the beginning."""
    of = spec(
        mode="streaming",
        stages=[ONLY],
        training={"members": 2},
        labels={"bundle": 1},
        audit={"per_round": 0},
        budget={"labels": labels, "rounds": 1},
        verification={"nve_ps": 0},
        max_attempts=1000,
    )
    return Submission(of, submission(of, labels))


def fleet(pools: Mapping[str, Mapping[str, Any]], /, **assumed: Any) -> FleetFile:
    """`assumed`: of the section `simulation`, beside what all benchmarks assume."""
    usual = {"engine": "process", "serves": [QUEUE], "lifetime": "60d", "price": 1.0}
    data = {
        "deployment": "simulated",
        "pools": {name: {**usual, **pool} for name, pool in pools.items()},
        "simulation": {
            "tasks": {
                "label": LABEL,
                "train": TRAINING,
                "explore": 20,
                "judge": 1,
                "select": 1,
                "verify": 1,
            },
            "workers": {"train": MEMBERS, "explore": TRAJECTORIES, "judge": 4},
            **assumed,
        },
    }
    return FleetFile.model_validate(data)


def fixed(workers: int, **changes: Any) -> dict[str, dict[str, Any]]:
    """A pool that is always full."""
    return {"labels": {"max": workers, "min": workers, "step": workers, **changes}}


@dataclass(frozen=True)
class Run:
    """A simulated campaign, and what the coordinator needed for it: processor time of its loop and
    of the turns of its reconciler, s; the longest `plan`, s; peak memory of the whole process,
    bytes; wall time, s."""

    outcome: SimulationOutcome
    loop: float
    turns: float
    longest_plan: float
    memory: int
    wall: float

    @property
    def span(self) -> tuple[float, float]:
        """When the first label was begun and the last one was finished, s."""
        moments = self.outcome.moments
        first = next(each.time for each in moments if each.busy)
        last = next(each.time for each in moments if each.labels == moments[-1].labels)
        return first, last

    @property
    def labeling(self) -> float:
        """Seconds from the first label to the last."""
        first, last = self.span
        return last - first

    def until(self, share: float) -> float:
        """Seconds from the first label to this share of the labels."""
        moments = self.outcome.moments
        wanted = share * moments[-1].labels
        return next(each.time for each in moments if each.labels >= wanted) - self.span[0]

    @property
    def label_hours(self) -> float:
        return self.outcome.busy_hours

    def use(self, workers: int) -> float:
        """Share of `workers` that has a task, from the first label to the last."""
        return 3600 * self.label_hours / (workers * self.labeling)

    def use_in_waves(self, workers: int) -> float:
        """The same, without the time in which none has."""
        first, last = self.span
        inside = [each for each in self.outcome.moments if first <= each.time <= last]
        busy = [each.busy for each in inside if each.busy]
        return sum(busy) / (workers * len(busy))


def run(campaign: Submission, pools: FleetFile, seed: int = 1) -> Run:
    """In a fresh process, so that its memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run, (campaign, pools, seed))


def _run(campaign: Submission, pools: FleetFile, seed: int) -> Run:
    configure("error")
    collect_rarely()  # as a coordinator does
    plan, longest = reconciler.plan, 0.0

    def timed(*arguments: Any) -> Any:
        nonlocal longest
        began = time.thread_time()  # snapshots are written by another thread
        found = plan(*arguments)
        longest = max(longest, time.thread_time() - began)
        return found

    reconciler.plan = timed
    simulation, began = Simulation(campaign, pools, seed), time.monotonic()
    outcome = simulation.run()
    return Run(
        outcome,
        simulation.costs.loop,
        simulation.costs.turns,
        longest,
        1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        time.monotonic() - began,
    )
