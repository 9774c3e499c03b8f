"""What every fleet engine does: processes of this machine, a real Slurm and a real Grid Engine,
stand-ins for the commands of PBS, Torque and LSF, and Kubernetes: a small server of our own or,
with DPSTREAM_TEST_KUBECONFIG, any cluster."""

from __future__ import annotations

import shlex
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from dpstream.services.coordinator.fleet.engines import ENGINES
from dpstream.services.coordinator.fleet.engines.schedulers.batch import BatchFleet
from dpstream.services.coordinator.fleet.pools import PASSES, PoolSettings
from dpstream.shared.errors import FleetError, FleetLimit
from dpstream.shared.ports import Fleet
from tests.support.servers.batch_server import BatchServer
from tests.support.servers.fleets import (
    MADE,
    NAME,
    STAYING,
    USUAL,
    aws_batch_pool,
    end_all,
    engines,
    environment_of,
    until,
)
from tests.support.servers.grid_engine_server import GridEngineServer
from tests.support.servers.kube_namespace import KUBECONFIG, Namespace
from tests.support.servers.slurm_server import CPUS, SlurmServer

SECRET = "amqp://labeler:it s@host"
SETTINGS: dict[str, Any] = {"serves": ("train",), "max": 9, "memory": "100M"}

Make = Callable[[Mapping[str, PoolSettings]], Fleet]
MakePools = Callable[..., dict[str, PoolSettings]]
pytestmark = pytest.mark.server


@pytest.fixture(params=engines())
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def pools(engine: str, request: pytest.FixtureRequest) -> MakePools:
    """Makes one pool, `cpu`, whose workers run a command."""
    if engine == "kubernetes":
        kube: Namespace = request.getfixturevalue("kube")
        return lambda *command, **changes: {"cpu": kube.pool(*command, **changes)}
    if engine == "aws_batch":
        return lambda *command, **changes: {
            "cpu": PoolSettings(**aws_batch_pool(*command, **(SETTINGS | changes)))
        }
    return lambda *command, **changes: {
        "cpu": PoolSettings(engine=engine, command=command, **(SETTINGS | changes))
    }


@pytest.fixture
def make(
    engine: str,
    pools: MakePools,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Make]:
    """Makes one more connection to the engine, for one deployment."""
    deployment = f"d{uuid.uuid4().hex[:8]}"
    monkeypatch.chdir(tmp_path)
    for key, value in environment_of(engine, request, tmp_path).items():
        monkeypatch.setenv(key, value)
    made: list[Fleet] = []

    def connect(pools: Mapping[str, PoolSettings]) -> Fleet:
        made.append(ENGINES[engine](deployment, pools, tmp_path))
        return made[-1]

    yield connect
    for fleet in made:
        end_all(fleet)


def test_a_launch_runs_as_many_workers_as_asked_for(pools: MakePools, make: Make) -> None:
    fleet = make(pools(*STAYING))
    assert list(fleet.running()) == []
    fleet.launch("cpu", 2, NAME)
    launch = until(fleet, lambda each: each.running == 2)
    assert (launch.pool, launch.alive, launch.ended) == ("cpu", 2, {})
    assert launch.since == pytest.approx(MADE, abs=1e-3)


def test_a_name_is_launched_once(pools: MakePools, make: Make) -> None:
    """The reply to the first call may have been lost, or its coordinator may have died."""
    fleet, other = (make(pools(*STAYING)) for _ in range(2))
    fleet.launch("cpu", 2, NAME)
    until(fleet, lambda each: each.running == 2)
    fleet.launch("cpu", 2, NAME)
    other.launch("cpu", 2, NAME)
    assert [(each.name, each.pool, each.alive) for each in other.running()] == [(NAME, "cpu", 2)]


@pytest.mark.parametrize("status", [0, 2, 75])
def test_how_workers_ended_is_known(pools: MakePools, make: Make, status: int) -> None:
    """Kubernetes starts failed pods again, so that there may be more of them."""
    fleet = make(pools("bash", "-c", f"exit {status}"))
    fleet.launch("cpu", 2, NAME)
    launch = until(fleet, lambda each: sum(each.ended.values()) >= 2)
    assert launch.ended.keys() == {str(status)}


def test_workers_that_are_asked_to_stop_may_give_back_their_task(
    engine: str, pools: MakePools, make: Make, tmp_path: Path
) -> None:
    fleet, other = (make(pools(*STAYING)) for _ in range(2))
    fleet.launch("cpu", 2, NAME)
    launch = until(fleet, lambda each: each.running == 2)
    if engine == "kubernetes":
        time.sleep(1)  # until the workers are up: their files may be elsewhere
    else:
        until(fleet, lambda _: len(list(tmp_path.glob("up.*"))) == 2)
    other.end(launch)
    ended: set[str] = set()
    alive = True
    while alive:
        launches = fleet.running()
        ended.update(*(each.ended for each in launches))
        alive = any(each.alive for each in launches)
    assert ended <= {"75"}  # a Job may be deleted before this is seen


def test_only_what_waits_is_taken_back(pools: MakePools, make: Make, engine: str) -> None:
    if engine == "kubernetes" and KUBECONFIG:
        pytest.skip("how many workers find room depends on the cluster")
    fleet = make(pools(*STAYING))
    fleet.launch("cpu", CPUS + 2, NAME)
    expected = (CPUS + 2, 0) if engine == "process" else (CPUS, 2)
    launch = until(fleet, lambda each: (each.running, each.waiting) == expected)
    taken = fleet.retire(launch, 1)
    assert taken == (engine != "process")
    left = until(fleet, lambda each: each.waiting == expected[1] - taken)
    assert left.running == expected[0]
    words = {"slurm": "Resources", "kubernetes": "Unschedulable: 0/1 nodes"}
    assert left.reason.startswith(words.get(engine, ""))


def test_a_worker_sees_its_settings(
    engine: str, pools: MakePools, make: Make, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Its script compares them, because its files may be elsewhere."""
    (tmp_path / "secrets.env").write_text(f"export DPSTREAM_BROKER={shlex.quote(SECRET)}\n")
    expected = {
        "DPSTREAM_BROKER": SECRET,
        "GREETING": "two words; $HOME",
        "DPSTREAM_LABELER_CODES": "cp2k,vasp",
        "DPSTREAM_LIFETIME": "82800",
        "DPSTREAM_THREADS": "1",
        "DPSTREAM_LABELER_SLOTS": "2",
        "DPSTREAM_POOL": "cpu",
        "DPSTREAM_IDLE_EXIT": "120",
    }
    changes: dict[str, Any] = {"source": (tmp_path / "secrets.env",)}
    if engine == "kubernetes":
        kube: Namespace = request.getfixturevalue("kube")
        kube.secret("dpstream-labeler", DPSTREAM_BROKER=SECRET)
        changes = {"kubernetes": {"secret": "dpstream-labeler"}}
    if engine == "aws_batch":
        server: BatchServer = request.getfixturevalue("aws_batch")
        server.secrets["arn:broker"] = SECRET
        changes = {"aws_batch": {"secrets": {"DPSTREAM_BROKER": "arn:broker"}}}
    if engine in PASSES:
        expected["DPSTREAM_PASS"] = ",".join([*PASSES[engine], "GREETING"])
    tests = [f'test "${key}" = {shlex.quote(value)}' for key, value in expected.items()]
    fleet = make(
        pools(
            "bash",
            "-c",
            "; ".join(f"{each} || exit {number}" for number, each in enumerate(tests, 10)),
            serves=("label.cp2k", "label.vasp"),
            envs={"GREETING": "two words; $HOME"},
            lifetime="23h",
            cpus=2,
            slots=2,
            **changes,
        )
    )
    fleet.launch("cpu", 1, NAME)
    launch = until(fleet, lambda each: bool(each.ended))
    assert launch.ended == {"0": 1}, tests


def test_a_warm_worker_does_not_leave_when_it_is_idle(pools: MakePools, make: Make) -> None:
    fleet = make(pools("bash", "-c", 'test -z "$DPSTREAM_IDLE_EXIT"'))
    fleet.launch("cpu", 1, NAME, warm=True)
    assert until(fleet, lambda each: bool(each.ended)).ended == {"0": 1}


def test_ended_workers_are_named(pools: MakePools, make: Make, engine: str, tmp_path: Path) -> None:
    """Their leases then end at once."""
    seconds = 1 if engine in USUAL else 5  # longer than a list takes
    writing = f'touch "{tmp_path}/$DPSTREAM_PROCESS.name"; sleep {seconds}'
    fleet = make(pools("bash", "-c", writing))
    fleet.launch("cpu", 2, NAME)
    launch = until(fleet, lambda each: each.running == 2)
    assert (len(launch.up), launch.gone) == (2, frozenset())
    gone = until(fleet, lambda each: each.alive == 0).gone
    assert len(gone) == 2
    if engine != "kubernetes" or not KUBECONFIG:
        assert gone == {path.stem for path in tmp_path.glob("*.name")}


def test_workers_of_a_pool_that_exists_no_more_can_be_ended(pools: MakePools, make: Make) -> None:
    found = pools(*STAYING)
    make(found).launch("cpu", 1, NAME)
    later = make({"gpu": found["cpu"]})
    assert until(later, lambda each: each.running == 1).pool == "cpu"
    end_all(later)


@pytest.mark.parametrize("engine", engines("kubernetes"))  # it starts another pod
def test_a_killed_worker_is_named_while_others_of_its_launch_run(
    pools: MakePools, make: Make, tmp_path: Path
) -> None:
    dying = (
        f"mkdir {tmp_path}/killed && touch {tmp_path}/killed/$DPSTREAM_PROCESS && sleep 1 && "
        "kill -9 $$; sleep 300 & wait"
    )
    fleet = make(pools("bash", "-c", dying))
    fleet.launch("cpu", 2, NAME)
    launch = until(fleet, lambda each: bool(each.gone))
    (killed,) = (tmp_path / "killed").iterdir()
    assert (launch.gone, launch.running) == ({killed.name}, 1)


# --------------------------------------------------------------------------------- Slurm alone


@pytest.fixture
def slurm(
    slurm_server: SlurmServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> SlurmServer:
    monkeypatch.setenv("SLURM_CONF", str(slurm_server.configuration))
    monkeypatch.chdir(tmp_path)
    return slurm_server


def slurm_pools(*command: str, **changes: Any) -> dict[str, PoolSettings]:
    return {"cpu": PoolSettings(engine="slurm", command=command, **(SETTINGS | changes))}


@pytest.mark.soak
def test_while_slurm_is_away_nothing_is_known(slurm: SlurmServer, tmp_path: Path) -> None:
    fleet = BatchFleet("away", slurm_pools(*STAYING), tmp_path)
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
    nowhere = slurm_pools(*STAYING, slurm={"partition": "nowhere"})
    with pytest.raises(FleetError, match="invalid partition") as caught:
        BatchFleet("x", nowhere, tmp_path).launch("cpu", 1, NAME)
    assert not isinstance(caught.value, FleetLimit)


def test_a_walltime_sends_one_sigterm(slurm: SlurmServer, tmp_path: Path) -> None:
    counting = (
        "n=0; trap 'n=$((n+1))' TERM; touch up; "
        "for i in $(seq 40); do sleep 0.1; done; echo $n > seen"
    )
    fleet = BatchFleet("once", slurm_pools("bash", "-c", counting), tmp_path)
    fleet.launch("cpu", 1, NAME)
    launch = until(fleet, lambda each: each.running == 1 and (tmp_path / "up").exists())
    fleet.end(launch)
    until(fleet, lambda each: each.alive == 0)
    assert (tmp_path / "seen").read_text() == "1\n"


# -------------------------------------------------------------------------- Grid Engine alone


@pytest.fixture
def sge(
    grid_engine: GridEngineServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> GridEngineServer:
    for key, value in grid_engine.environment.items():
        monkeypatch.setenv(key, value)
    return grid_engine


def sge_pools(*command: str, **changes: Any) -> dict[str, PoolSettings]:
    return {"cpu": PoolSettings(engine="sge", command=command, **(SETTINGS | changes))}


@pytest.mark.soak
def test_what_grid_engine_refuses_is_told_in_its_words(
    sge: GridEngineServer, tmp_path: Path
) -> None:
    BatchFleet("x", sge_pools(*STAYING), tmp_path).check("cpu")
    nowhere = BatchFleet("x", sge_pools(*STAYING, sge={"queue": "nowhere"}), tmp_path)
    for refused in (lambda: nowhere.check("cpu"), lambda: nowhere.launch("cpu", 1, NAME)):
        with pytest.raises(FleetError, match='unknown queue "nowhere"'):
            refused()
    none_fits = BatchFleet("x", sge_pools(*STAYING, cpus=CPUS + 1), tmp_path)
    with pytest.raises(FleetError, match="no suitable queues"):
        none_fits.check("cpu")


@pytest.mark.soak
def test_a_time_limit_of_grid_engine_sends_one_sigterm(
    sge: GridEngineServer, tmp_path: Path
) -> None:
    counting = (
        "n=0; trap 'n=$((n+1))' TERM; for i in $(seq 600); do sleep 0.1; "
        "test $n = 0 || break; done; sleep 1; echo $n > seen; exit 75"
    )
    limits: dict[str, Any] = {"grace": 115, "sge": {"time_limit": "2m"}}
    fleet = BatchFleet("once", sge_pools("bash", "-c", counting, **limits), tmp_path)
    fleet.launch("cpu", 1, NAME)
    launch = until(fleet, lambda each: each.alive == 0 and bool(each.ended))
    assert launch.ended == {"75": 1}
    assert (tmp_path / "seen").read_text() == "1\n"
