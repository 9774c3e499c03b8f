"""What every fleet engine does: processes of this machine, and a real Slurm."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from dpstream.services.coordinator.fleet.plan import name_of
from dpstream.services.coordinator.fleet.pools import PoolSettings
from dpstream.services.coordinator.fleet.process import ProcessFleet
from dpstream.services.coordinator.fleet.slurm import SlurmFleet
from dpstream.shared.errors import FleetError, FleetLimit
from dpstream.shared.ports import Fleet, Launch
from tests.support.slurm_server import CPUS, SlurmServer

PROMPT = 30.0
MADE = 1_700_000_000.0
NAME = name_of("cpu", MADE)
STAYING = ("bash", "-c", "trap 'exit 75' TERM; touch up.$$; sleep 300 & wait")
"""A worker that gives its task back when it is to stop; its file says that it is up."""
SETTINGS: dict[str, Any] = {"serves": ("train",), "max": 9, "memory": "100M"}

Make = Callable[[Mapping[str, PoolSettings]], Fleet]
pytestmark = pytest.mark.server


@pytest.fixture(params=["process", "slurm"])
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def make(
    engine: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Make]:
    """Makes one more connection to the engine, for one deployment."""
    deployment = f"d{uuid.uuid4().hex[:8]}"
    monkeypatch.chdir(tmp_path)
    if engine == "slurm":
        server: SlurmServer = request.getfixturevalue("slurm_server")
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
    made: list[Fleet] = []

    def connect(pools: Mapping[str, PoolSettings]) -> Fleet:
        fleet: Fleet = (
            ProcessFleet(deployment, pools, tmp_path)
            if engine == "process"
            else SlurmFleet(deployment, pools, tmp_path)
        )
        made.append(fleet)
        return fleet

    yield connect
    for fleet in made:
        for launch in fleet.running():
            fleet.end(launch)


def pools(engine: str, *command: str, **changes: Any) -> dict[str, PoolSettings]:
    return {"cpu": PoolSettings(engine=engine, command=command, **(SETTINGS | changes))}


def until(fleet: Fleet, test: Callable[[Launch], bool], name: str = NAME) -> Launch:
    """The launch, once it passes the test."""
    deadline = time.monotonic() + PROMPT
    while True:
        found = {launch.name: launch for launch in fleet.running()}
        if name in found and test(found[name]):
            return found[name]
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def test_a_launch_runs_as_many_workers_as_asked_for(engine: str, make: Make) -> None:
    fleet = make(pools(engine, *STAYING))
    assert list(fleet.running()) == []
    fleet.launch("cpu", 2, NAME)
    launch = until(fleet, lambda each: each.running == 2)
    assert (launch.pool, launch.alive, launch.ended) == ("cpu", 2, {})
    assert launch.since == pytest.approx(MADE, abs=1e-3)


def test_a_name_is_launched_once(engine: str, make: Make) -> None:
    """The reply to the first call may have been lost, or its coordinator may have died."""
    fleet, other = (make(pools(engine, *STAYING)) for _ in range(2))
    fleet.launch("cpu", 2, NAME)
    until(fleet, lambda each: each.running == 2)
    fleet.launch("cpu", 2, NAME)
    other.launch("cpu", 2, NAME)
    assert [(each.name, each.pool, each.alive) for each in other.running()] == [(NAME, "cpu", 2)]


@pytest.mark.parametrize("status", [0, 2, 75])
def test_how_workers_ended_is_known(engine: str, make: Make, status: int) -> None:
    fleet = make(pools(engine, "bash", "-c", f"exit {status}"))
    fleet.launch("cpu", 2, NAME)
    launch = until(fleet, lambda each: each.alive == 0)
    assert launch.ended == {str(status): 2}


def test_workers_that_are_asked_to_stop_may_give_back_their_task(
    engine: str, make: Make, tmp_path: Path
) -> None:
    fleet, other = (make(pools(engine, *STAYING)) for _ in range(2))
    fleet.launch("cpu", 2, NAME)
    launch = until(fleet, lambda each: each.running == 2 and len(list(tmp_path.glob("up.*"))) == 2)
    other.end(launch)
    ended = until(fleet, lambda each: each.alive == 0).ended
    assert ended == {"75": 2}


def test_only_what_waits_is_taken_back(engine: str, make: Make) -> None:
    fleet = make(pools(engine, *STAYING))
    fleet.launch("cpu", CPUS + 2, NAME)
    expected = {"process": (CPUS + 2, 0), "slurm": (CPUS, 2)}[engine]
    launch = until(fleet, lambda each: (each.running, each.waiting) == expected)
    taken = fleet.retire(launch, 1)
    assert taken == (engine == "slurm")
    left = until(fleet, lambda each: each.waiting == expected[1] - taken)
    assert left.running == expected[0]
    if engine == "slurm":
        assert left.reason == "Resources"


def test_a_worker_sees_its_settings_and_the_files_of_the_pool(
    engine: str, make: Make, tmp_path: Path
) -> None:
    (tmp_path / "secrets.env").write_text("export DPSTREAM_BROKER='amqp://labeler:it s@host'\n")
    changes = {
        "serves": ("label.cp2k", "label.vasp"),
        "source": (tmp_path / "secrets.env",),
        "envs": {"GREETING": "two words; $HOME"},
        "lifetime": "23h",
        "cpus": 2,
    }
    fleet = make(pools(engine, "bash", "-c", f"env > {tmp_path}/seen; exit 0", **changes))
    fleet.launch("cpu", 1, NAME)
    until(fleet, lambda each: each.alive == 0)
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines())
    assert seen["DPSTREAM_BROKER"] == "amqp://labeler:it s@host"
    assert seen["GREETING"] == "two words; $HOME"
    assert seen["DPSTREAM_LABELER_CODES"] == "cp2k,vasp"
    assert (seen["DPSTREAM_LIFETIME"], seen["DPSTREAM_THREADS"]) == ("82800", "2")
    assert (seen["DPSTREAM_POOL"], seen["DPSTREAM_IDLE_EXIT"]) == ("cpu", "120")
    assert ("SLURM_*" in seen.get("DPSTREAM_PASS", "")) == (engine == "slurm")


# --------------------------------------------------------------------------------- Slurm alone


@pytest.fixture
def slurm(
    slurm_server: SlurmServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> SlurmServer:
    monkeypatch.setenv("SLURM_CONF", str(slurm_server.configuration))
    monkeypatch.chdir(tmp_path)
    return slurm_server


def test_while_slurm_is_away_nothing_is_known(slurm: SlurmServer, tmp_path: Path) -> None:
    fleet = SlurmFleet("away", pools("slurm", *STAYING), tmp_path)
    fleet.launch("cpu", 1, NAME)
    until(fleet, lambda each: each.running == 1)
    slurm.stop_controller()
    try:
        with pytest.raises(FleetError, match="squeue"):
            fleet.running()
    finally:
        slurm.start_controller()
    launch = until(fleet, lambda each: each.running == 1)
    fleet.end(launch)


def test_what_slurm_refuses_is_told_in_its_words(slurm: SlurmServer, tmp_path: Path) -> None:
    nowhere = pools("slurm", *STAYING, slurm={"partition": "nowhere"})
    with pytest.raises(FleetError, match="invalid partition") as caught:
        SlurmFleet("x", nowhere, tmp_path).launch("cpu", 1, NAME)
    assert not isinstance(caught.value, FleetLimit)


def test_a_walltime_sends_one_sigterm(slurm: SlurmServer, tmp_path: Path) -> None:
    counting = (
        "n=0; trap 'n=$((n+1))' TERM; touch up; "
        "for i in $(seq 40); do sleep 0.1; done; echo $n > seen"
    )
    fleet = SlurmFleet("once", pools("slurm", "bash", "-c", counting), tmp_path)
    fleet.launch("cpu", 1, NAME)
    launch = until(fleet, lambda each: each.running == 1 and (tmp_path / "up").exists())
    fleet.end(launch)
    until(fleet, lambda each: each.alive == 0)
    assert (tmp_path / "seen").read_text() == "1\n"
