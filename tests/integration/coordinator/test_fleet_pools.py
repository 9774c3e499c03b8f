"""Pools on real fleet engines: one that cannot start beside a good one, a budget, an upper limit.

The workers are shell scripts that drain a folder of tasks: each takes one file after the other.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpstream.services.coordinator.fleet.plan import Demand
from dpstream.services.coordinator.fleet.reconciler import Reconciler
from dpstream.services.coordinator.fleet.status import FleetStatus, PoolStatus
from dpstream.shared.store.folder import FolderStore
from tests.support.servers.fleets import aws_batch_pool, engines, environment_of
from tests.support.servers.kube_namespace import IMAGE, Namespace

pytestmark = pytest.mark.server
QUEUE = "label.toy"
SECONDS = 120.0


@dataclass
class Drain:
    """A folder of tasks, the reconciler whose pools drain it, and what was seen of the pools."""

    folder: Path
    engine: str
    section: dict[str, Any]
    seconds_per_turn: float | None = None
    """Of the reconciler's clock; None: those that pass."""
    most: dict[str, int] = field(default_factory=dict)
    """Most workers that were alive at once, by pool."""
    reasons: set[str] = field(default_factory=set)

    def pool(self, script: str, **changes: Any) -> dict[str, Any]:
        pool = {
            "engine": self.engine,
            "serves": [QUEUE],
            "command": ["bash", "-c", script],
            "max": 4,
            "memory": "50M",
            "start_time": 1,
            "worth": 0,
            "cool_down": 1,
            **self.section,
            **changes,
        }
        if self.engine == "aws_batch":
            return aws_batch_pool(*pool.pop("command"), **pool)
        return pool

    def draining(self, seconds: float) -> str:
        """A worker that takes `seconds` for each task. Others may be faster: that is no failure."""
        return (
            f'cd {self.folder}/tasks; while f=$(ls | head -1) && test -n "$f"; '
            f"do mv $f ../done/$f.$$ 2>/dev/null && sleep {seconds}; done; true"
        )

    def write(self, tasks: int, budget: object = None, **pools: dict[str, Any]) -> None:
        for name in ("tasks", "done"):
            (self.folder / name).mkdir()
        for number in range(tasks):
            (self.folder / "tasks" / f"{number:03d}").touch()
        data = {"deployment": "drain", "budget": budget or {}, "pools": pools}
        (self.folder / "fleet.yaml").write_text(yaml.safe_dump(data))

    def run(self, ended: Callable[[FleetStatus], bool]) -> FleetStatus:
        """Turns until `ended` and no worker is left."""
        began, turns = time.time(), itertools.count()
        now = began
        reconciler = Reconciler(
            self.folder / "fleet.yaml", FolderStore(self.folder / "store"), clock=lambda: now
        )
        reconciler.start()
        deadline = time.monotonic() + SECONDS
        while True:
            step = self.seconds_per_turn
            now = time.time() if step is None else began + step * next(turns)
            waiting = len(os.listdir(self.folder / "tasks"))
            reconciler.post({QUEUE: Demand(waiting=waiting, running=0, seconds=0.1)})
            reconciler.turn()
            status = reconciler.status
            assert status is not None
            for name, pool in status.pools.items():
                self.most[name] = max(self.most.get(name, 0), alive(pool))
                self.reasons.add(f"{name}: {pool.reason}")
            if ended(status) and not any(map(alive, status.pools.values())):
                return status
            assert time.monotonic() < deadline, status
            time.sleep(0.1)

    @property
    def done(self) -> list[str]:
        """The tasks that were taken; twice if two workers took one."""
        return sorted(name.partition(".")[0] for name in os.listdir(self.folder / "done"))


def alive(pool: PoolStatus) -> int:
    return pool.waiting + pool.starting + pool.running


@pytest.fixture(params=engines())
def drain(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drain:
    section: dict[str, Any] = {}
    for key, value in environment_of(request.param, request, tmp_path).items():
        monkeypatch.setenv(key, value)
    if request.param == "kubernetes":
        kube: Namespace = request.getfixturevalue("kube")
        section = {"image": IMAGE, "kubernetes": {"namespace": kube.name}}
    return Drain(tmp_path, request.param, section)


def test_a_pool_that_cannot_start_leaves_the_work_to_another(drain: Drain) -> None:
    """The broken pool is the cheaper one. It is paused after three failures."""
    drain.write(
        40,
        broken=drain.pool("exit 2", price=1, max=3),
        good=drain.pool(drain.draining(0.2), price=2),
    )
    status = drain.run(lambda _: len(drain.done) == 40)
    assert drain.done == [f"{number:03d}" for number in range(40)]
    broken, good = status.pools["broken"], status.pools["good"]
    assert broken.ended.keys() - {"CANCELLED"} == {"2"}  # what waits in a paused pool
    assert 3 <= broken.ended["2"] <= 9
    assert broken.launched <= 6
    assert set(good.ended) == {"0"}
    assert any("failures in a row (ended with 2); paused" in each for each in drain.reasons)


@pytest.mark.soak
def test_no_more_workers_than_the_maximum_whatever_the_demand(drain: Drain) -> None:
    drain.write(500, cpu=drain.pool(drain.draining(0.01), max=3))
    drain.run(lambda _: len(drain.done) == 500)
    assert drain.most == {"cpu": 3}
    assert drain.done == [f"{number:03d}" for number in range(500)]


@pytest.mark.soak
def test_a_used_up_budget_ends_launches(drain: Drain) -> None:
    """0.05 worker-hours are 30 turns of three workers, however long a turn takes."""
    drain.seconds_per_turn = 2.0
    worker = f"cd {drain.folder}/tasks; f=$(ls | head -1); mv $f ../done/$f.$$ && sleep 1"
    drain.write(100, budget={"worker_hours": 0.05}, cpu=drain.pool(worker, max=3))
    status = drain.run(lambda status: status.budget_used >= 1)
    assert 0.05 <= status.worker_hours < 0.1
    assert 0 < len(drain.done) < 40
    assert "cpu: the budget is used up" in drain.reasons
