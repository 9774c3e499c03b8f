"""Workers as Slurm job arrays, through `sbatch`, `squeue` and `scancel`.

The commands run here or, with `submit_prefix`, elsewhere: `[ssh, login1]` uses the user's own
OpenSSH settings. The script goes to standard input. With `B:` in `--signal` and `exec` in the
script, the worker gets exactly one SIGTERM before its time ends.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from dpstream.services.coordinator.fleet.plan import time_of
from dpstream.services.coordinator.fleet.pools import PoolSettings
from dpstream.services.coordinator.fleet.script import check_source, worker_script
from dpstream.shared.environment import is_secret
from dpstream.shared.errors import FleetError, FleetLimit
from dpstream.shared.ports import Launch

SECONDS = 30.0
"""Time limit of one command."""
LIMITS = re.compile(r"QOS\w*Limit|Assoc\w*Limit|policy|MaxArraySize|MaxJobCount", re.IGNORECASE)
"""Words of a refusal that another attempt at once would not change."""
FIELDS = ("ArrayJobID", "ArrayTaskID", "Name", "State", "Reason", "exit_code")
WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
STARTING = {"CONFIGURING", "STAGE_OUT"}
ENDED = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "DEADLINE", "PREEMPTED", "REVOKED"),
    *("NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED", "OUT_OF_MEMORY"),
}
"""A job in any other state, also in one that this module does not know, is running."""


@dataclass
class SlurmFleet:
    """Launches are arrays with the job name `dps.DEPLOYMENT.POOL.NAME`. All `pools` have the same
    `submit_prefix`; `logs`: a folder for the output of workers that are submitted from here."""

    deployment: str
    pools: Mapping[str, PoolSettings]
    logs: Path

    @property
    def _prefix(self) -> str:
        return f"dps.{self.deployment}."

    def _job_name(self, launch: Launch) -> str:
        return f"{self._prefix}{launch.pool}.{launch.name}"

    def running(self) -> Sequence[Launch]:
        arrays: dict[str, list[dict[str, str]]] = defaultdict(list)
        for job in self._jobs():
            arrays[job["Name"]].append(job)
        return [self._launch(name, jobs) for name, jobs in sorted(arrays.items())]

    def launch(self, pool: str, count: int, name: str, *, warm: bool = False) -> None:
        if any(launch.name == name for launch in self.running()):
            return
        script = worker_script(pool, self.pools[pool], warm=warm)
        self._run(self.options(pool, count, name), script)

    def check(self, pool: str) -> None:
        settings = self.pools[pool]
        if not settings.slurm.submit_prefix:
            check_source(settings)
        command = [*self.options(pool, 1, "check"), "--test-only"]
        self._run(command, worker_script(pool, self.pools[pool]))

    def render(self, pool: str) -> str:
        command = [*self.pools[pool].slurm.submit_prefix, *self.options(pool, 1, "LAUNCH")]
        return f"# {shlex.join(command)}\n{worker_script(pool, self.pools[pool])}"

    def options(self, pool: str, count: int, name: str) -> list[str]:
        """The command that submits a launch; its script goes to standard input.

        Each core is a task, because `mpirun` starts as many ranks as there are tasks and `srun` as
        many by default; the script itself runs once and may use all cores of its node.
        """
        settings = self.pools[pool]
        slurm = settings.slurm
        given = {
            "job-name": f"{self._prefix}{pool}.{name}",
            "array": f"0-{count - 1}",
            "signal": f"B:TERM@{round(settings.grace)}",
            "nodes": slurm.nodes,
            "ntasks-per-node": settings.cpus,
            "mem": settings.memory,
            "gres": f"gpu:{settings.gpus}" if settings.gpus else None,
            "partition": slurm.partition,
            "account": slurm.account,
            "qos": slurm.qos,
            "time": slurm.time_limit,
            "output": "%x.%a.log",
        }
        options = [f"--{key}={value}" for key, value in given.items() if value is not None]
        return ["sbatch", "--parsable", "--no-requeue", *options, *slurm.flags]

    def retire(self, launch: Launch, most: int) -> int:
        waiting = [
            f"{job['ArrayJobID']}_{job['ArrayTaskID']}"
            for job in reversed(self._jobs())
            if job["Name"] == self._job_name(launch) and job["State"] in WAITING
        ][:most]
        if waiting:
            # With --state, scancel would cancel all tasks of the array that wait. A task that has
            # started meanwhile gets SIGTERM and releases what it has.
            self._run(["scancel", *waiting])
        return len(waiting)

    def end(self, launch: Launch) -> None:
        name = f"--name={self._job_name(launch)}"
        try:
            self._run(["scancel", "--state=PENDING", name])
        finally:  # fails if one of them starts or ends meanwhile
            self._run(["scancel", "--batch", "--signal=TERM", "--state=RUNNING", name])

    def _jobs(self) -> list[dict[str, str]]:
        """Every process of our arrays, also those that ended in the last minutes."""
        form = ",".join(f"{each}:|" for each in FIELDS)
        listed = self._run(
            ["squeue", "--me", "--noheader", "--array", "--states=all", f"--Format={form}"]
        )
        rows = (line.split("|") for line in listed.splitlines())
        jobs = [dict(zip(FIELDS, map(str.strip, row), strict=False)) for row in rows]
        return [job for job in jobs if job.get("Name", "").startswith(self._prefix)]

    def _launch(self, job_name: str, jobs: Sequence[Mapping[str, str]]) -> Launch:
        pool, _, name = job_name.removeprefix(self._prefix).partition(".")
        states = Counter(job["State"] for job in jobs)
        running = [job for job in jobs if job["State"] not in WAITING | STARTING | ENDED]
        ended = [job for job in jobs if job["State"] in ENDED]
        reasons = [job["Reason"] for job in jobs if job["State"] in WAITING]
        return Launch(
            name,
            pool,
            waiting=sum(states[state] for state in WAITING),
            starting=sum(states[state] for state in STARTING),
            running=len(running),
            ended=Counter(map(_ending, ended)),
            up=frozenset(f"{name}-{job['ArrayTaskID']}" for job in running),
            gone=frozenset(f"{name}-{job['ArrayTaskID']}" for job in ended),
            since=time_of(name),
            reason=next((each for each in reasons if each not in ("None", "Priority")), ""),
        )

    def _run(self, command: Sequence[str], script: str = "") -> str:
        """Standard output of a command of Slurm. Raises FleetError with Slurm's words."""
        prefix = next(iter(self.pools.values())).slurm.submit_prefix
        remote = any(PurePath(word).name == "ssh" for word in prefix)  # passes it to a shell
        words = [shlex.join(command)] if remote else list(command)
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            done = subprocess.run(
                [*prefix, *words],
                cwd=self.logs,
                env=_environment(),
                input=script,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FleetError(f"{command[0]}: {error}") from error
        if done.returncode != 0:
            text = " ".join(done.stderr.split()).removeprefix(f"{command[0]}: ")[-300:]
            kind = FleetLimit if LIMITS.search(text) else FleetError
            raise kind(f"{command[0]}: {text or f'exit status {done.returncode}'}")
        return done.stdout


def _environment() -> dict[str, str]:
    """The environment of the commands, which `sbatch` hands on to the workers: without the secrets
    and settings of the coordinator, and without the job that it may run in."""
    return {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF"
        or not (name.startswith(("DPSTREAM_", "SLURM_", "SBATCH_")) or is_secret(name))
    }


def _ending(job: Mapping[str, str]) -> str:
    """The exit status of an ended process, its signal, or Slurm's word: CANCELLED,
    TIMEOUT, NODE_FAIL, …"""
    if job["State"] == "COMPLETED":
        return "0"
    if job["State"] != "FAILED" or not job["exit_code"].isdigit():
        return job["State"]
    status = int(job["exit_code"])  # as wait(2) returns it
    return f"signal {status & 127}" if status & 127 else str(status >> 8)
