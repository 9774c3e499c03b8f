"""A private one-node Grid Engine for the session: its own cell in a folder, master and execution
daemon on loopback, without systemd. Where it is not installed its tests are skipped."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dpstream.deploy.devcluster.free_ports import free_ports

PROGRAMS = ("qsub", "qstat", "qdel", "qacct", "qconf", "sge_qmaster", "sge_execd")
DEBIAN = Path("/usr/share/gridengine")
ROOT = Path("/var/lib/gridengine")
CPUS = 4
NOTIFY = "0:0:20"
"""Between SIGUSR2 and SIGKILL."""
BOOTSTRAP = """\
admin_user              none
default_domain          none
ignore_fqdn             false
spooling_method         berkeleydb
spooling_lib            libspoolb
spooling_params         {folder}/spool
binary_path             /usr/sbin
qmaster_spool_dir       {folder}/qmaster
security_mode           none
listener_threads        2
worker_threads          2
scheduler_threads       1
"""
PARALLEL_ENVIRONMENT = """\
pe_name            smp
slots              999
user_lists         NONE
xuser_lists        NONE
start_proc_args    NONE
stop_proc_args     NONE
allocation_rule    $pe_slots
control_slaves     TRUE
job_is_first_task  TRUE
urgency_slots      min
accounting_summary FALSE
qsort_args         NONE
"""


@dataclass
class GridEngineServer:
    """`environment`: what the commands need to find the server."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        master, execution = free_ports(2)
        self.environment = {
            "SGE_ROOT": str(self.folder),
            "SGE_CELL": "default",
            "SGE_QMASTER_PORT": str(master),
            "SGE_EXECD_PORT": str(execution),
        }
        common = self.folder / "default" / "common"
        for folder in (common, self.folder / "spool", self.folder / "qmaster"):
            folder.mkdir(parents=True)
        for name in ("bin", "lib", "util", "utilbin"):
            (self.folder / name).symlink_to(ROOT / name)
        host = socket.gethostname()
        (common / "bootstrap").write_text(BOOTSTRAP.format(folder=self.folder))
        (common / "act_qmaster").write_text(f"{host}\n")
        (common / "host_aliases").write_text(f"{host} localhost\n")  # 127.0.0.1 is localhost first
        spool = str(self.folder / "spool")
        initialize = str(DEBIAN / "scripts" / "init_cluster")
        self._run(initialize, str(self.folder), "default", spool, getpass.getuser())
        self.start_master()
        self._configure(host)
        self._start("sge_execd")
        deadline = time.monotonic() + 30
        while "lx-" not in self._run("qhost"):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def start_master(self) -> None:
        self._start("sge_qmaster")
        deadline = time.monotonic() + 30
        while True:
            with suppress(subprocess.CalledProcessError):
                self._run("qconf", "-sh")
                return
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def stop_master(self) -> None:
        self._run("qconf", "-km")
        deadline = time.monotonic() + 30
        with suppress(subprocess.CalledProcessError):
            while time.monotonic() < deadline:
                self._run("qconf", "-sh")
                time.sleep(0.1)

    def running(self, prefix: str) -> list[str]:
        """Ids of the running tasks of jobs whose names have the prefix."""
        listed = self._run("qstat", "-s", "r", "-g", "d", "-r", "-xml")
        found = re.findall(
            r"<JB_job_number>(\d+)<.*?<tasks>(\d+)<.*?<full_job_name>(.*?)<", listed, re.DOTALL
        )
        return [f"{job}.{task}" for job, task, name in found if name.startswith(prefix)]

    def stop(self) -> None:
        for arguments in (("qdel", "-f", "-u", "*"), ("qconf", "-ke", "all"), ("qconf", "-km")):
            with suppress(subprocess.CalledProcessError):
                self._run(*arguments)

    def _configure(self, host: str) -> None:
        self._run("qconf", "-as", host)
        self._set("-Ahgrp", f"group_name @allhosts\nhostlist {host}\n")
        self._set("-Ap", PARALLEL_ENVIRONMENT)
        accounting = "flush_time=00:00:15 accounting_flush_time=00:00:00"
        changes = {
            r"^(min_[ug]id\s+)\S+": r"\g<1>0",
            r"^(execd_spool_dir\s+)\S+": rf"\g<1>{self.folder}/execd",
            r"flush_time=00:00:15": accounting,
        }
        self._set("-Mconf", self._changed(changes, "-sconf", "global"), name="global")
        self._set(
            "-Msconf",
            self._changed(
                {
                    r"^(schedule_interval\s+)\S+": r"\g<1>0:0:1",
                    r"^(flush_(submit|finish)_sec\s+)\S+": r"\g<1>1",
                },
                "-ssconf",
            ),
        )
        queue = {
            "qname": "main.q",
            "hostlist": "@allhosts",
            "slots": str(CPUS),
            "pe_list": "smp",
            "load_thresholds": "NONE",
            "notify": NOTIFY,
        }
        self._set(
            "-Aq",
            self._changed(
                {rf"^({key}\s+).*": rf"\g<1>{value}" for key, value in queue.items()}, "-sq"
            ),
        )

    def _changed(self, changes: Mapping[str, str], *shown: str) -> str:
        text = self._run("qconf", *shown)
        for pattern, value in changes.items():
            text = re.sub(pattern, value, text, flags=re.MULTILINE)
        return text

    def _set(self, option: str, text: str, name: str = "object") -> None:
        path = self.folder / name
        path.write_text(text)
        self._run("qconf", option, str(path))

    def _start(self, daemon: str) -> None:
        """It goes to the background by itself."""
        subprocess.run(
            [_found(daemon)],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            check=True,
            timeout=60,
        )

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self.environment}

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [_found(program) or program, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout


@pytest.fixture(scope="session")
def grid_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GridEngineServer]:
    """A running Grid Engine. A test that stops its master starts it again."""
    missing = [program for program in PROGRAMS if not _found(program)]
    if missing:
        reason = f"Grid Engine is not installed: {', '.join(missing)}"
        if os.environ.get("CI"):
            raise AssertionError(reason)
        pytest.skip(reason)
    server = GridEngineServer(tmp_path_factory.mktemp("sge"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _found(program: str) -> str:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") or ""
