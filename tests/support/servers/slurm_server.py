"""A private one-node Slurm for the session: munge, controller and node daemon on loopback, without
systemd. Where Slurm is not installed its tests are skipped; in CI they fail."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from dpstream.deploy.devcluster.free_ports import free_ports

PROGRAMS = ("sbatch", "squeue", "scancel", "sinfo", "munged", "slurmctld", "slurmd")
CPUS = 4
CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/builtin
ReturnToService=2
MpiDefault=none
MinJobAge=300
KillWait=5
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes={host} Default=NO MaxTime=01:00:00 State=UP
"""


@dataclass
class SlurmServer:
    """`environment`: what the commands need to find the server."""

    folder: Path

    @property
    def configuration(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.configuration)}

    @property
    def node(self) -> str:
        return socket.gethostname().partition(".")[0]

    def start(self) -> None:
        for name in ("state", "spool", "munge"):
            (self.folder / name).mkdir(mode=0o700, exist_ok=True)
        key = self.folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        controller, node = free_ports(2)
        self.configuration.write_text(
            CONFIGURATION.format(
                host=self.node,
                user=getpass.getuser(),
                folder=self.folder,
                controller=controller,
                node=node,
                cpus=CPUS,
            )
        )
        self._run(
            "munged",
            "--force",
            f"--key-file={key}",
            f"--socket={self.folder}/munge.sock",
            f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munge/seed",
        )
        self.start_controller()
        self._run("slurmd", "-f", str(self.configuration))
        self._wait_until_idle()

    def start_controller(self) -> None:
        self._run("slurmctld", "-f", str(self.configuration))

    def stop_controller(self) -> None:
        self._stop("slurmctld")

    def set_node_down(self) -> None:
        """Its jobs end with NODE_FAIL."""
        self._run("scontrol", "update", f"nodename={self.node}", "state=down", "reason=test")

    def resume_node(self) -> None:
        with suppress(subprocess.CalledProcessError):  # it has returned by itself
            self._run("scontrol", "update", f"nodename={self.node}", "state=resume")

    def stop(self) -> None:
        with suppress(subprocess.CalledProcessError):
            self._run("scancel", "--user", getpass.getuser())
        for daemon in ("slurmd", "slurmctld", "munged"):
            self._stop(daemon)

    def _wait_until_idle(self) -> None:
        deadline = time.monotonic() + 30
        while "idle" not in self._run("sinfo", "--noheader", "--format=%T"):
            assert time.monotonic() < deadline, (self.folder / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.1)

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [_found(program), *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout

    def _stop(self, daemon: str) -> None:
        path = self.folder / f"{daemon}.pid"
        if path.exists():
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(path.read_text()), signal.SIGTERM)
            deadline = time.monotonic() + 10
            while path.exists() and time.monotonic() < deadline:
                time.sleep(0.05)


@pytest.fixture(scope="session")
def slurm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmServer]:
    """A running Slurm. A test that stops its controller starts it again."""
    missing = [program for program in PROGRAMS if not _found(program)]
    if missing:
        reason = f"Slurm is not installed: {', '.join(missing)}"
        if os.environ.get("CI"):
            raise AssertionError(reason)
        pytest.skip(reason)
    server = SlurmServer(tmp_path_factory.mktemp("slurm"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _found(program: str) -> str:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") or ""
