"""The reconciler, with a fleet engine in memory: failures, limits, budgets, takeovers."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from dpstream.services.coordinator.fleet.engines import engines_of
from dpstream.services.coordinator.fleet.memory import LAUNCHES_PER_MINUTE
from dpstream.services.coordinator.fleet.plan import Demand
from dpstream.services.coordinator.fleet.pools import LIST_LAG, FleetFile, PoolSettings
from dpstream.services.coordinator.fleet.reconciler import Reconciler, pause_after
from dpstream.services.coordinator.fleet.spending import spending_by_deployment
from dpstream.services.coordinator.http.api import make_app
from dpstream.services.coordinator.http.metrics import CoordinatorMetrics
from dpstream.services.coordinator.http.read_access import ReadAccess
from dpstream.services.coordinator.service import Coordinator
from dpstream.shared import messages as m
from dpstream.shared.bus.memory import Broker, InProcessBus
from dpstream.shared.codec import encode, topic_of
from dpstream.shared.errors import FleetError, FleetLimit, SpecError, StoreError
from dpstream.shared.logs import configure
from dpstream.shared.ports import Launch, Outgoing
from dpstream.shared.programs import BACKENDS
from dpstream.shared.store.folder import FolderStore

QUEUE = "label.toy"
POOL: dict[str, object] = {
    "engine": "process",
    "serves": [QUEUE],
    "max": 8,
    "start_time": 10,
    "step": 4,
}
LAGGING: dict[str, object] = {
    **POOL,
    "engine": "aws_batch",
    "image": "labeler:1",
    "memory": "1G",
    "aws_batch": {"queue": "main"},
}
"""A pool of an engine whose list lags behind."""


class MemoryFleet:
    """A fleet engine whose workers do what a test says."""

    def __init__(self) -> None:
        self.launches: dict[str, Launch] = {}
        self.now = 0.0
        self.error: FleetError | None = None
        self.calls: list[str] = []

    @property
    def names(self) -> list[str]:
        """Of the running processes."""
        return [name for launch in self.launches.values() for name in launch.up]

    def running(self) -> Sequence[Launch]:
        if self.error is not None:
            raise self.error
        return list(self.launches.values())

    def launch(self, pool: str, count: int, name: str, *, warm: bool = False) -> None:
        self.calls.append(f"launch {pool} {count}" + " warm" * warm)
        if self.error is not None:
            raise self.error
        up = frozenset(f"{name}-{number}" for number in range(count))
        self.launches[name] = Launch(name, pool, running=count, since=self.now, up=up)

    def retire(self, launch: Launch, most: int) -> int:
        self.calls.append(f"retire {launch.pool} {most}")
        self.launches[launch.name] = replace(launch, waiting=launch.waiting - most)
        return most

    def end(self, launch: Launch) -> None:
        self.calls.append(f"end {launch.pool}")

    def all_end(self, status: str) -> None:
        for name, launch in self.launches.items():
            ended = {**launch.ended, status: launch.ended.get(status, 0) + launch.running}
            gone = frozenset(f"{name}-{number}" for number in range(launch.running))
            self.launches[name] = replace(launch, running=0, ended=ended, up=frozenset(), gone=gone)


class Harness:
    def __init__(self, folder: Path) -> None:
        self.fleet, self.path = MemoryFleet(), folder / "fleet.yaml"
        self.store, self.now = FolderStore(folder / "store"), 1_000_000.0
        self.write(cpu=POOL)
        self.wanted: dict[str, int] = {}
        self.silent = False
        """Whether the workers send no messages."""

    def write(self, budget: object = None, **pools: object) -> None:
        data = {"deployment": "lab", "pools": pools, **({"budget": budget} if budget else {})}
        self.path.write_text(yaml.safe_dump(data))

    def start(self) -> Reconciler:
        made = Reconciler(
            self.path,
            self.store,
            lambda w: self.wanted.update(w),
            lambda: self.now,
            make_engines=lambda file, path, before: dict.fromkeys(file.pools, self.fleet),
        )
        made.start()
        return made

    def turn(self, reconciler: Reconciler, seconds: float = 5.0, passes: bool = True) -> list[str]:
        """The calls of the fleet engine in one turn. `passes`: the loop posts the same demand."""
        self.now += seconds
        for name in () if self.silent else self.fleet.names:
            reconciler.processes.take_in(heartbeat(process=name), self.now)
        if passes and reconciler._demand is not None:
            reconciler.post(reconciler._demand)
        self.fleet.now, before = self.now, len(self.fleet.calls)
        reconciler.turn()
        return self.fleet.calls[before:]


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


def test_from_zero_to_what_is_wanted_and_back(harness: Harness) -> None:
    reconciler = harness.start()
    assert harness.turn(reconciler) == []
    reconciler.post({QUEUE: Demand(waiting=6, seconds=60.0)})
    assert harness.turn(reconciler) == ["launch cpu 4"]
    assert harness.turn(reconciler) == ["launch cpu 2"]
    assert harness.turn(reconciler) == []
    assert harness.wanted == {QUEUE: 6}
    harness.fleet.all_end("0")
    reconciler.post({})
    assert harness.turn(reconciler) == []
    assert reconciler.status is not None
    assert reconciler.status.pools["cpu"].wanted == 0


def test_workers_that_cannot_start_pause_their_pool_ever_longer(harness: Harness) -> None:
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=6, seconds=60.0)})
    assert harness.turn(reconciler) == ["launch cpu 4"]
    harness.fleet.all_end("2")
    assert harness.turn(reconciler) == []
    assert reconciler.status is not None
    assert "4 failures in a row (ended with 2); paused" in reconciler.status.pools["cpu"].reason
    assert harness.turn(reconciler, 61) == ["launch cpu 4"]
    harness.fleet.all_end("2")
    assert harness.turn(reconciler) == []
    assert harness.turn(reconciler, 61) == []
    assert harness.turn(reconciler, 61) == ["launch cpu 4"]
    harness.fleet.all_end("0")
    harness.turn(reconciler)
    assert reconciler.status.pools["cpu"].reason == ""


@pytest.mark.slow
def test_a_pool_whose_workers_decline_everything_makes_way_for_the_next_one(
    harness: Harness,
) -> None:
    """Such workers end with status 69; one task waits for a worker that can serve it."""
    harness.write(near=POOL, far=POOL | {"price": 1.0})
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=1, declined=1)})
    calls: list[str] = []
    for _ in range(720):  # an hour
        calls += harness.turn(reconciler)
        for name, launch in harness.fleet.launches.items():
            if launch.pool == "near" and launch.running:
                gone = frozenset(launch.up)
                harness.fleet.launches[name] = replace(
                    launch, running=0, ended={"69": 1}, up=frozenset(), gone=gone
                )
    assert calls[:4] == [*["launch near 1"] * 3, "launch far 1"]
    assert calls.count("launch far 1") == 1
    assert calls.count("launch near 1") < 10


def test_a_pool_that_declines_one_campaign_still_serves_the_others(harness: Harness) -> None:
    harness.write(near=POOL, far=POOL | {"price": 1.0})
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=3, seconds=60.0, declined=3)})
    assert harness.turn(reconciler) == ["launch near 3"]
    harness.fleet.all_end("69")
    reconciler.post({QUEUE: Demand(waiting=5, seconds=60.0, declined=3)})
    assert harness.turn(reconciler) == ["launch near 2", "launch far 3"]
    assert reconciler.status is not None
    near = reconciler.status.pools["near"]
    assert near.reason == "3 workers in a row declined every task; none for it for 60 s"
    assert not near.paused
    reconciler.post({QUEUE: Demand(waiting=2, seconds=60.0)})
    harness.turn(reconciler)
    assert reconciler.status.pools["near"].reason == ""


@pytest.mark.parametrize("status", ["0", "75", "CANCELLED", "NODE_FAIL", "143"])
def test_a_worker_that_was_taken_away_has_not_failed(harness: Harness, status: str) -> None:
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=6, seconds=60.0)})
    harness.turn(reconciler)
    harness.fleet.all_end(status)
    assert harness.turn(reconciler) == ["launch cpu 4"]


def test_before_the_first_pass_of_the_loop_nothing_is_taken_back(harness: Harness) -> None:
    """The demand of a coordinator that has just started is not zero: it is not known yet."""
    old = Launch("cpu-1", "cpu", waiting=6)
    harness.fleet.launches[old.name] = old
    reconciler = harness.start()
    assert harness.turn(reconciler, 999) == []
    reconciler.post({})
    assert harness.turn(reconciler) == ["retire cpu 6"]


def test_a_pool_whose_launches_are_refused_pauses_and_the_next_one_takes_over(
    harness: Harness,
) -> None:
    harness.write(bad=POOL, good=POOL | {"price": 1.0})
    reconciler = harness.start()
    launch = harness.fleet.launch

    def refuse(pool: str, count: int, name: str, *, warm: bool) -> None:
        if pool == "bad":
            raise FleetError("invalid partition specified: nowhere")
        launch(pool, count, name)

    harness.fleet.launch = refuse  # type: ignore[method-assign]
    reconciler.post({QUEUE: Demand(waiting=3, seconds=60.0)})
    calls = [call for _ in range(4) for call in harness.turn(reconciler)]
    assert calls == ["launch good 3"]
    assert reconciler.status is not None
    assert "invalid partition" in reconciler.status.pools["bad"].reason


def test_refused_launches_take_nothing_back_that_waits(harness: Harness) -> None:
    """Slurm jobs may have waited for hours when `sbatch` fails for some seconds."""
    reconciler = harness.start()
    harness.fleet.launches["cpu-1"] = Launch("cpu-1", "cpu", waiting=2, since=harness.now - 99)
    reconciler.post({QUEUE: Demand(waiting=8, seconds=60.0)})

    def refuse(pool: str, count: int, name: str, *, warm: bool) -> None:
        raise FleetError("Socket timed out")

    harness.fleet.launch = refuse  # type: ignore[method-assign]
    assert [call for _ in range(5) for call in harness.turn(reconciler)] == []
    assert reconciler.status is not None
    assert "3 failures in a row (Socket timed out)" in reconciler.status.pools["cpu"].reason


def test_a_launch_whose_reply_was_lost_keeps_its_name(harness: Harness) -> None:
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=3, seconds=60.0)})
    names: list[str] = []

    def lose(pool: str, count: int, name: str, *, warm: bool) -> None:
        names.append(name)
        raise FleetError("timed out")

    harness.fleet.launch = lose  # type: ignore[method-assign]
    harness.turn(reconciler)
    harness.turn(reconciler)
    assert len(names) == 2
    assert len(set(names)) == 1
    harness.turn(reconciler, 301)
    assert len(set(names)) == 2  # it does not exist: its name would be that of an old launch


def test_a_launch_whose_reply_was_lost_and_that_is_listed_is_not_made_again(
    harness: Harness,
) -> None:
    """Processes of a second launch of that name would have the names of those that have ended."""
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=3, seconds=60.0)})
    launch = harness.fleet.launch

    def lose(pool: str, count: int, name: str, *, warm: bool) -> None:
        launch(pool, count, name, warm=warm)
        raise FleetError("timed out")

    harness.fleet.launch = lose  # type: ignore[method-assign]
    harness.turn(reconciler)
    harness.fleet.launch = launch  # type: ignore[method-assign]
    harness.fleet.all_end("0")
    reconciler.post({})
    harness.turn(reconciler)
    reconciler.post({QUEUE: Demand(waiting=3, seconds=60.0)})
    assert harness.turn(reconciler) == ["launch cpu 3"]
    assert len(harness.fleet.launches) == 2


def test_a_launch_whose_reply_was_lost_and_that_is_listed_has_not_failed(harness: Harness) -> None:
    reconciler = harness.start()
    launch = harness.fleet.launch

    def lose(pool: str, count: int, name: str, *, warm: bool) -> None:
        launch(pool, count, name, warm=warm)
        raise FleetError("timed out")

    harness.fleet.launch = lose  # type: ignore[method-assign]
    for wanted in (2, 4, 6):
        reconciler.post({QUEUE: Demand(waiting=wanted, seconds=60.0)})
        assert harness.turn(reconciler) == ["launch cpu 2"]
    harness.turn(reconciler)
    assert reconciler.status is not None
    assert not reconciler.status.pools["cpu"].paused


@pytest.mark.parametrize("pool", [LAGGING, POOL | {"engine": "lsf"}], ids=["aws_batch", "lsf"])
def test_a_launch_that_the_engine_does_not_list_yet_is_not_made_again(
    harness: Harness, pool: dict[str, object]
) -> None:
    """The lists of AWS Batch and of LSF lag behind what was submitted."""
    harness.write(cpu=pool)
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=4, seconds=60.0)})
    with patch.object(harness.fleet, "running", return_value=[]):
        calls = [harness.turn(reconciler, seconds=60.0) for _ in range(5)]
    assert calls == [["launch cpu 4"], [], [], [], []]
    assert reconciler.status is not None
    assert reconciler.status.pools["cpu"].waiting == 4
    assert harness.turn(reconciler) == []  # it is listed now
    harness.fleet.launches.clear()
    assert harness.turn(reconciler) == ["launch cpu 4"]


def test_a_launch_that_is_never_listed_is_given_up(harness: Harness) -> None:
    harness.write(cpu=LAGGING)
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=4, seconds=60.0)})
    with patch.object(harness.fleet, "running", return_value=[]):
        assert harness.turn(reconciler) == ["launch cpu 4"]
        assert harness.turn(reconciler, seconds=LIST_LAG["aws_batch"] - 1) == []
        assert harness.turn(reconciler, seconds=1) == ["launch cpu 4"]


def test_a_launch_that_ended_between_two_lists_leaves_its_place_to_the_next_one(
    harness: Harness,
) -> None:
    """PBS without its history lists no job that has ended; a worker may take one task only."""
    harness.write(cpu=POOL | {"max": 4})
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=4, seconds=60.0)})
    with patch.object(harness.fleet, "running", return_value=[]):
        calls = [harness.turn(reconciler) for _ in range(3)]
    assert calls == [["launch cpu 4"]] * 3
    assert reconciler.status is not None
    assert reconciler.status.pools["cpu"].waiting == 0


def test_what_ran_while_no_coordinator_did_costs_as_well(harness: Harness) -> None:
    harness.write({"worker_hours": 100}, cpu=POOL)
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=4, seconds=60.0)})
    harness.turn(reconciler)
    harness.turn(reconciler, 36)
    again = harness.start()
    again.post({QUEUE: Demand(running=4, seconds=60.0)})
    harness.turn(again, 3600)
    assert again.status is not None
    assert again.status.worker_hours == pytest.approx(4.04, abs=0.05)


def test_while_the_engine_is_silent_nothing_happens(harness: Harness) -> None:
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=6, seconds=60.0)})
    harness.turn(reconciler)
    harness.fleet.error = FleetError("no answer")
    assert harness.turn(reconciler, 30) == []
    assert reconciler.status is not None
    assert reconciler.status.pools["cpu"].stale_since == harness.now
    harness.fleet.error = None
    assert harness.turn(reconciler) == ["launch cpu 2"]


def test_while_the_loop_makes_no_pass_nothing_is_launched(harness: Harness) -> None:
    """Broker or store do not answer: idle workers leave, and new ones would do the same."""
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=4, seconds=60.0)})
    assert harness.turn(reconciler) == ["launch cpu 4"]
    harness.fleet.all_end("0")
    assert harness.turn(reconciler, 61, passes=False) == []
    assert harness.turn(reconciler) == ["launch cpu 4"]


def test_a_quota_is_learned_and_tried_again_after_a_while(harness: Harness) -> None:
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=6, seconds=60.0)})
    harness.turn(reconciler)

    def refuse(pool: str, count: int, name: str, *, warm: bool) -> None:
        harness.fleet.calls.append("refused")
        raise FleetLimit("QOSMaxSubmitJobPerUserLimit")

    launch, harness.fleet.launch = harness.fleet.launch, refuse  # type: ignore[method-assign]
    assert harness.turn(reconciler) == ["refused"]  # two
    assert harness.turn(reconciler) == ["refused"]  # one
    assert harness.turn(reconciler) == []
    harness.fleet.launch = launch  # type: ignore[method-assign]
    assert harness.turn(reconciler, 601) == ["launch cpu 2"]


def test_a_used_up_budget_launches_nothing_and_survives_a_restart(
    harness: Harness, log_stream: io.StringIO
) -> None:
    configure(form="json", stream=log_stream)
    harness.write({"worker_hours": 0.05}, cpu=POOL)
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=8, seconds=60.0)})
    harness.turn(reconciler)
    harness.turn(reconciler, 10)
    assert harness.turn(reconciler, 30) == []  # 8 workers for 20 s and more
    assert "most of the budget is used" in log_stream.getvalue()
    again = harness.start()
    again.post({QUEUE: Demand(waiting=8, seconds=60.0)})
    harness.fleet.all_end("0")
    assert harness.turn(again) == []
    assert again.status is not None
    assert again.status.pools["cpu"].reason == "the budget is used up"


def test_a_pool_whose_own_budget_is_used_up_passes_its_tasks_on(harness: Harness) -> None:
    budget = {"worker_hours": 1, "hard": True}
    harness.write(near=POOL | {"budget": budget}, far=POOL | {"price": 1.0})
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=4, seconds=60.0)})
    assert harness.turn(reconciler) == ["launch near 4"]
    harness.turn(reconciler)
    assert harness.turn(reconciler, 1000) == ["end near"]
    harness.fleet.all_end("75")
    assert harness.turn(reconciler) == ["launch far 4"]
    assert reconciler.status is not None
    near, far = reconciler.status.pools["near"], reconciler.status.pools["far"]
    assert near.reason == "the budget is used up"
    assert near.budget_used == pytest.approx(1.12, abs=0.02)
    assert (far.budget_used, reconciler.status.budget_used) == (0.0, 0.0)


def test_a_hard_budget_asks_the_busy_ones_to_stop(harness: Harness) -> None:
    harness.write({"worker_hours": 0.01, "hard": True}, cpu=POOL)
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=8, running=4, seconds=60.0)})
    harness.turn(reconciler)
    assert harness.turn(reconciler, 60) == ["end cpu"]


def test_tasks_in_a_queue_that_no_pool_serves_are_warned_of_once(harness: Harness) -> None:
    harness.write(explorers={**POOL, "serves": ["explore", "judge"]})
    reconciler, waiting = harness.start(), Demand(waiting=1)
    with capture_logs() as logged:
        for demand in (
            {"explore": waiting, "screen": Demand(waiting=1, running=1), "train": waiting},
            {"screen": waiting},
            {"screen": Demand(waiting=2)},
        ):
            reconciler.post(demand)
            harness.turn(reconciler)
    warned = [line["queue"] for line in logged if "no pool serves" in line["event"]]
    assert warned == ["screen"]


def test_the_older_of_two_reconcilers_launches_nothing_more(harness: Harness) -> None:
    older, newer = harness.start(), harness.start()
    for reconciler in (older, newer):
        reconciler.post({QUEUE: Demand(waiting=3, seconds=60.0)})
    assert harness.turn(older) == []
    assert harness.turn(newer) == ["launch cpu 3"]


def test_a_demand_gone_wild_is_bounded(harness: Harness) -> None:
    harness.write(cpu=POOL | {"max": 10**6, "step": 1})
    reconciler = harness.start()
    calls: list[str] = []
    for number in range(40):
        reconciler.post({QUEUE: Demand(waiting=10**6 + number, seconds=60.0)})
        harness.fleet.all_end("0")
        calls += harness.turn(reconciler, 0.5)
    assert len(calls) == LAUNCHES_PER_MINUTE


def test_the_loop_learns_which_processes_have_ended(harness: Harness) -> None:
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=2, seconds=60.0)})
    harness.turn(reconciler)
    (name,) = harness.fleet.launches
    assert reconciler.processes.ended == frozenset()
    harness.fleet.all_end("NODE_FAIL")
    harness.turn(reconciler)
    harness.fleet.launches.clear()  # no longer listed
    harness.turn(reconciler)
    assert reconciler.processes.ended == {f"{name}-0", f"{name}-1"}


def test_what_workers_say_of_themselves_is_shown_with_their_pool(harness: Harness) -> None:
    coordinator = Coordinator(InProcessBus(Broker()), harness.store)
    reconciler = harness.start()
    reconciler.processes = coordinator.processes
    started = m.WorkerStarted(
        id="1",
        time=0.0,
        worker="w",
        host="node1",
        process="cpu-1-0",
        pool="cpu",
        slots=1,
        queues=(QUEUE,),
        programs={"tblite": "0.4.0"},
        devices=("NVIDIA H200",),
    )
    coordinator.bus.publish([Outgoing(encode(started), topic=topic_of(started))] * 2)
    next(iter(coordinator._passes(threading.Event())))
    reconciler.post({})
    harness.turn(reconciler)
    assert reconciler.status is not None
    assert reconciler.status.pools["cpu"].programs == {"tblite": "0.4.0"}
    assert reconciler.status.pools["cpu"].devices == ("NVIDIA H200",)
    coordinator.processes.end({"cpu-1-0"}, harness.now)
    harness.turn(reconciler)
    assert reconciler.status.pools["cpu"].programs == {}


def heartbeat(**process: str | None) -> m.TaskHeartbeat:
    about = {"id": "1", "campaign": "c", "time": 0.0, "task": "t", "attempt": 1}
    return m.TaskHeartbeat(**about, worker="w", **process)  # type: ignore[arg-type]


def test_a_process_that_is_listed_as_up_again_has_not_ended(harness: Harness) -> None:
    """A list may lack it for a time, or its claims would be taken as those of a dead one."""
    reconciler = harness.start()
    up = Launch("cpu-1", "cpu", running=1, up=frozenset({"cpu-1-0"}))
    for gone in (True, False):
        lost = replace(up, running=0, up=frozenset(), ended={"UNKNOWN": 1}, gone=up.up)
        harness.fleet.launches["cpu-1"] = lost if gone else up
        harness.turn(reconciler)
        assert reconciler.processes.ended == (up.up if gone else frozenset())


def test_workers_that_run_and_take_no_task_have_failed_to_start(harness: Harness) -> None:
    """The next pool gets the tasks; what one of them has said counts, however it says it."""
    harness.write(near=POOL | {"idle_exit": 60}, far=POOL | {"price": 1.0})
    harness.silent = True
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=4, seconds=60.0)})
    assert harness.turn(reconciler) == ["launch near 4"]
    (name,) = harness.fleet.launches
    harness.turn(reconciler)
    reconciler.processes.take_in(heartbeat(process=f"{name}-0"), harness.now)
    assert harness.turn(reconciler, 655) == []
    assert reconciler.status is not None
    assert reconciler.status.pools["near"].reason == ""
    assert harness.turn(reconciler, 10) == ["launch far 3"]
    reason = reconciler.status.pools["near"].reason
    assert reason.startswith("3 failures in a row (not up within 600 s); paused for")
    harness.turn(reconciler, 5)
    assert reconciler.status.pools["near"].reason.startswith("3 failures"), "each counts once"


def test_no_more_than_step_workers_are_launched_until_they_are_up(harness: Harness) -> None:
    harness.silent = True
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=8, seconds=60.0)})
    assert [harness.turn(reconciler) for _ in range(3)] == [["launch cpu 4"], [], []]
    harness.silent = False
    assert harness.turn(reconciler) == ["launch cpu 4"]


def test_launches_that_fail_now_and_then_do_not_pause_a_pool(harness: Harness) -> None:
    """Between three failed calls in a week, others succeed."""
    reconciler = harness.start()
    for tasks in (1, 2, 3, 4):
        reconciler.post({QUEUE: Demand(waiting=tasks, seconds=60.0)})
        with patch.object(harness.fleet, "launch", side_effect=FleetError("timed out")):
            harness.turn(reconciler)
        assert harness.turn(reconciler, 400) == ["launch cpu 1"]


def test_a_refused_file_is_used_once_its_pool_has_no_workers(harness: Harness) -> None:
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=1, seconds=60.0)})
    harness.turn(reconciler)
    harness.write(other=POOL)
    harness.turn(reconciler)
    assert reconciler.status is not None
    assert set(reconciler.status.pools) == {"cpu"}
    harness.fleet.all_end("0")
    harness.turn(reconciler)
    harness.turn(reconciler)
    assert set(reconciler.status.pools) == {"other"}


def test_how_long_workers_take_to_start_is_measured(harness: Harness) -> None:
    """Tasks of a second are then worth a worker only in hundreds."""
    harness.silent = True
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=40, seconds=1.0)})
    assert harness.turn(reconciler) == ["launch cpu 2"]
    (name,) = harness.fleet.launches
    harness.turn(reconciler)
    for seconds, number in ((55, 0), (45, 1)):
        harness.turn(reconciler, seconds)
        reconciler.processes.take_in(heartbeat(process=f"{name}-{number}"), harness.now)
    harness.turn(reconciler)
    reconciler.post({QUEUE: Demand(waiting=400, seconds=1.0)})
    harness.turn(reconciler)
    assert harness.wanted == {QUEUE: 3}  # for 155 s each: two start times of 77.5 s


def test_warm_workers_that_a_new_coordinator_finds_have_not_failed(harness: Harness) -> None:
    """They send nothing while they have no task."""
    harness.write(cpu=POOL | {"min": 2})
    harness.silent = True
    first = harness.start()
    first.post({})
    harness.turn(first)
    assert harness.turn(first) == []
    assert harness.fleet.calls == ["launch cpu 2 warm"]
    second = harness.start()
    second.post({})
    harness.turn(second)
    harness.turn(second, 9000)
    assert second.status is not None
    assert (second.status.pools["cpu"].idle, second.status.pools["cpu"].reason) == (2, "")


def test_workers_of_an_earlier_release_are_not_judged_by_their_silence(harness: Harness) -> None:
    harness.silent = True
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=4, seconds=60.0)})

    def reasons(message: m.Message) -> set[str]:
        """What holds the pool while a worker sends this message once a minute."""
        found = set()
        for _ in range(20):
            reconciler.processes.take_in(message, harness.now)
            harness.turn(reconciler, 60)
            assert reconciler.status is not None
            found.add(reconciler.status.pools["cpu"].reason.partition(";")[0])
        return found

    assert reasons(heartbeat()) == {""}
    started_by_hand = heartbeat(process=None)
    assert "4 failures in a row (not up within 600 s)" in reasons(started_by_hand)


def test_a_changed_machine_file_is_read_again_and_a_bad_one_refused(
    harness: Harness, log_stream: io.StringIO
) -> None:
    configure(form="json", stream=log_stream)
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=6, seconds=60.0)})
    harness.write(cpu=POOL | {"max": 2})
    assert harness.turn(reconciler) == ["launch cpu 2"]
    harness.write(cpu=POOL | {"maxx": 2})
    assert harness.turn(reconciler) == []
    harness.write(gpu=POOL)
    assert harness.turn(reconciler) == []
    assert "pools.cpu: still has workers; set its max to 0 first" in log_stream.getvalue()
    assert "did you mean 'max'?" in log_stream.getvalue()
    assert "the old one stays" in log_stream.getvalue()


@pytest.mark.parametrize(
    "pools",
    [
        {"gpu": POOL},
        {"cpu": {**POOL, "engine": "slurm"}},
        {"cpu": {**POOL, "engine": "slurm", "slurm": {"submit_prefix": ["ssh", "login1"]}}},
    ],
)
def test_a_pool_with_workers_is_neither_removed_nor_moved(
    harness: Harness, pools: dict[str, object]
) -> None:
    """Its workers would no longer be listed, and as many would be launched again."""
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=4, seconds=60.0)})
    assert harness.turn(reconciler) == ["launch cpu 4"]
    harness.write(**pools)
    harness.turn(reconciler)
    assert reconciler.status is not None
    assert list(reconciler.status.pools) == ["cpu"]
    assert reconciler._file.pools["cpu"].engine == "process"


def test_an_earlier_limit_is_not_believed_again(harness: Harness) -> None:
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=1, seconds=60.0)})

    def refuse(pool: str, count: int, name: str, *, warm: bool) -> None:
        raise FleetLimit("exceeded quota")

    launch, harness.fleet.launch = harness.fleet.launch, refuse  # type: ignore[method-assign]
    harness.turn(reconciler)  # not even one
    reconciler.post({QUEUE: Demand(waiting=4, seconds=60.0)})
    assert harness.turn(reconciler, 601) == []  # four are too many
    harness.fleet.launch = launch  # type: ignore[method-assign]
    assert harness.turn(reconciler) == ["launch cpu 2"]


def test_a_bad_machine_file_is_refused_at_the_start(harness: Harness) -> None:
    harness.write(cpu=POOL | {"serves": ["label.a", "train"]})
    with pytest.raises(SpecError, match=r"fleet\.yaml: pools\.cpu: serves: queues of labeler and"):
        harness.start()


def test_the_status_is_for_the_api_and_metrics(harness: Harness) -> None:
    coordinator = Coordinator(InProcessBus(Broker()), harness.store)
    read_access = ReadAccess(coordinator)
    app = make_app(read_access, CoordinatorMetrics(read_access), None)
    client = TestClient(app, base_url="http://127.0.0.1")
    assert client.get("/fleet").status_code == 404
    reconciler = harness.start()
    coordinator.fleet_status = lambda: reconciler.status
    reconciler.post({QUEUE: Demand(waiting=9, seconds=60.0)})
    harness.turn(reconciler)
    harness.turn(reconciler)
    found = client.get("/fleet").json()
    pool = found["pools"]["cpu"]
    assert (found["deployment"], pool["wanted"]) == ("lab", 8)
    assert (pool["busy"], pool["idle"]) == (0, 4)
    assert (pool["launched"], pool["reason"], pool["stale_since"]) == (4, "max", None)
    metrics = client.get("/metrics").text
    assert 'dpstream_fleet_wanted{pool="cpu"} 8.0' in metrics
    assert 'dpstream_fleet_workers{pool="cpu",status="idle"} 4.0' in metrics
    assert 'dpstream_fleet_launched_total{pool="cpu"} 4.0' in metrics


def test_a_status_whose_turns_fail_is_soon_not_current(harness: Harness) -> None:
    """KEDA would go on creating workers for it."""
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=4, seconds=60.0)})
    harness.turn(reconciler)
    harness.turn(reconciler)

    def fail(key: str, data: bytes) -> None:
        raise StoreError("no space left on device")

    harness.store.put = fail  # type: ignore[method-assign]
    for current in (True, False):
        assert reconciler.status is not None
        assert reconciler.status.is_current == current
        with pytest.raises(StoreError):
            harness.turn(reconciler, 61)


def test_cost_idle_time_and_labels_are_counted_across_restarts(harness: Harness) -> None:
    """Four workers for an hour at a price of 0.5, one of which has no task; five labels."""
    harness.write(cpu=POOL | {"price": 0.5, "max": 4})
    for hours in (0.25, 0.75):
        reconciler = harness.start()
        reconciler.post({QUEUE: Demand(waiting=9, running=3, seconds=60.0)})
        harness.turn(reconciler)
        harness.turn(reconciler)
        labels = reconciler.labels() + (5 if hours == 0.75 else 0)
        reconciler.labels = partial(int, labels)
        harness.now += 3600 * hours
        harness.turn(reconciler)
    assert reconciler.status is not None
    pool = reconciler.status.pools["cpu"]
    assert (pool.busy, pool.idle) == (3, 1)
    assert pool.worker_hours == pytest.approx(4.0, abs=0.05)
    assert pool.idle_hours == pytest.approx(1.0, abs=0.05)
    assert reconciler.status.idle_share == pytest.approx(0.25, abs=0.01)
    assert reconciler.status.cost_per_label == pytest.approx(2.0 / 5, abs=0.01)
    (spent,) = spending_by_deployment(harness.store).values()
    assert re.fullmatch(
        r"4\.0\d worker-hours, 25% of them idle; cost 2\.0\d, 0\.40\d per computed label",
        spent.describe(),
    )
    history = reconciler.status.history
    assert [each.workers for each in history][-1] == 4
    assert history[-1].tasks == 9


def test_workers_with_slots_are_busy_with_one_task_and_idle_by_their_other_slots(
    harness: Harness,
) -> None:
    """Two workers with four slots for an hour; three tasks, spread over both."""
    harness.write(cpu=POOL | {"slots": 4, "price": 1.0})
    reconciler = harness.start()
    reconciler.post({QUEUE: Demand(waiting=8, seconds=60.0)})
    assert harness.turn(reconciler) == ["launch cpu 2"]
    reconciler.post({QUEUE: Demand(running=3, seconds=60.0)})
    reconciler.processes.occupied = frozenset(harness.fleet.names)
    harness.turn(reconciler)
    harness.turn(reconciler, 3600)
    assert reconciler.status is not None
    pool = reconciler.status.pools["cpu"]
    assert (pool.wanted, pool.busy, pool.idle, pool.idle_slots) == (1, 2, 0, 5)
    assert pool.worker_hours == pool.cost == pytest.approx(2.0, abs=0.01)
    assert pool.idle_hours == pytest.approx(2.0 * 5 / 8, abs=0.01)
    assert harness.wanted[QUEUE] == 4
    reconciler.processes.occupied = frozenset()  # workers that do not name their process
    harness.turn(reconciler)
    assert (reconciler.status.pools["cpu"].busy, reconciler.status.pools["cpu"].idle) == (1, 1)


def test_a_changed_fleet_file_keeps_its_engines(tmp_path: Path) -> None:
    """A new engine would not know how its workers ended."""
    path, pool = tmp_path / "fleet.yaml", PoolSettings.model_validate(POOL)
    first = engines_of(FleetFile(deployment="lab", pools={"a": pool}), path)
    larger = pool.model_copy(update={"max": 9})
    second = engines_of(FleetFile(deployment="lab", pools={"a": larger, "b": pool}), path, first)
    assert second["a"] is second["b"] is first["a"]
    assert first["a"].pools["a"].max == 9


@pytest.mark.parametrize(("seconds", "pause"), [(0.01, 1.0), (2.0, 20.0), (30.0, 30.0)])
def test_long_lists_are_read_less_often_but_a_timeout_delays_nothing_for_minutes(
    seconds: float, pause: float
) -> None:
    assert pause_after(seconds) == pytest.approx(pause)


def test_a_pool_of_trainers_with_a_gpu_is_known_before_they_start(harness: Harness) -> None:
    gpu = {"engine": "slurm", "max": 1, "gpus": 1}
    harness.write(gpu={**gpu, "serves": ["explore"]})
    assert not harness.start().processes.gpu_trainers
    harness.write(gpu={**gpu, "serves": ["train"]})
    why = "the trainers of pool gpu have a GPU"
    assert harness.start().processes.gpu_trainers == dict.fromkeys(BACKENDS, why)
