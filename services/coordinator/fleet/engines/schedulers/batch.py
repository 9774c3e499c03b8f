"""The fleet engine of batch systems: a launch is one job array, found again by its name.

The commands run here or, with `submit_prefix`, elsewhere: `[ssh, login1]` uses the user's own
OpenSSH settings.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from dpstream.services.coordinator.fleet.engines.schedulers.scheduler import (
    CANCELLED,
    UNKNOWN,
    ListedProcess,
    Scheduler,
)
from dpstream.services.coordinator.fleet.engines.schedulers.table import SCHEDULERS
from dpstream.services.coordinator.fleet.engines.script import check_source, worker_script
from dpstream.services.coordinator.fleet.plan import time_of
from dpstream.services.coordinator.fleet.pools import PoolSettings
from dpstream.shared.environment import is_secret
from dpstream.shared.errors import FleetError, FleetLimit
from dpstream.shared.ports import Launch

SECONDS = 30.0
"""Time limit of one command."""
RECORDED = 60.0
"""Seconds within which a batch system has recorded how a process ended."""
REMEMBERED = 300.0
"""Seconds for which an ended process is listed, as by Slurm."""
OWN_JOB = ("SLURM_", "SBATCH_", "PBS_JOB", "PBS_ARRAY", "LSB_", "JOB_", "SGE_TASK_")
"""Prefixes of the variables of the job that the coordinator may run in."""


@dataclass
class BatchFleet:
    """Jobs are named `dps.DEPLOYMENT.POOL.NAME`. All `pools` have the same engine and
    `submit_prefix`; `logs`: a folder for the output of workers that are submitted from here."""

    deployment: str
    pools: Mapping[str, PoolSettings]
    logs: Path
    _alive: dict[str, ListedProcess] = field(default_factory=dict)
    """Of the last list, by id."""
    _gone: dict[str, tuple[float, ListedProcess]] = field(default_factory=dict)
    """Ended processes whose ending the list does not say, and since when."""

    def running(self) -> Sequence[Launch]:
        launches: dict[str, list[ListedProcess]] = defaultdict(list)
        for process in self._processes():
            launches[process.job_name].append(process)
        return [self._launch(name, each) for name, each in sorted(launches.items())]

    def launch(self, pool: str, count: int, name: str, *, warm: bool = False) -> None:
        if any(launch.name == name for launch in self.running()):
            return
        command, script = self.options(pool, count, name), self._script(pool, warm=warm)
        if self._scheduler.script_is_argument:
            self._run([*command, script])
        else:
            self._run(command, script)

    def check(self, pool: str) -> None:
        settings = self.pools[pool]
        if not settings.batch.submit_prefix:
            check_source(settings)
        command = self._scheduler.check(settings, self.options(pool, 1, "check"))
        self._run(command, self._script(pool))

    def render(self, pool: str) -> str:
        command = [*self.pools[pool].batch.submit_prefix, *self.options(pool, 1, "LAUNCH")]
        return f"# {shlex.join(command)}\n{self._script(pool)}"

    def options(self, pool: str, count: int, name: str) -> list[str]:
        """The command that submits a launch."""
        return self._scheduler.submit(f"{self._prefix}{pool}.{name}", self.pools[pool], count)

    def retire(self, launch: Launch, most: int) -> int:
        waiting = [each for each in self._of(launch) if each.place == "waiting"]
        taken = waiting[::-1][:most]
        if taken:
            self._act([*self._scheduler.cancel, *(each.id for each in taken)])
        return len(taken)

    def end(self, launch: Launch) -> None:
        processes = self._of(launch)
        waiting = [each for each in processes if each.place == "waiting"]
        started = [each for each in processes if each.place in ("starting", "running")]
        try:
            if waiting:
                self._act([*self._scheduler.cancel, *(each.id for each in waiting)])
        finally:
            if started:
                ids = [each.id for each in started]
                self._act(self._scheduler.stop(self._job_name(launch), ids))

    def _act(self, command: Sequence[str]) -> None:
        """A process may end between the list and the command."""
        try:
            self._run(command)
        except FleetError as error:
            if not self._scheduler.over.search(str(error)):
                raise

    # ------------------------------------------------------------------------ what is submitted

    @property
    def _scheduler(self) -> Scheduler:
        return SCHEDULERS[next(iter(self.pools.values())).engine]

    @property
    def _prefix(self) -> str:
        return f"dps.{self.deployment}."

    def _job_name(self, launch: Launch) -> str:
        return f"{self._prefix}{launch.pool}.{launch.name}"

    def _script(self, pool: str, *, warm: bool = False) -> str:
        row = self._scheduler
        return worker_script(
            pool, self.pools[pool], warm=warm, named=row.named, announced_by=row.announced_by
        )

    # ---------------------------------------------------------------------- reading what stands

    def _of(self, launch: Launch) -> list[ListedProcess]:
        return [each for each in self._processes() if each.job_name == self._job_name(launch)]

    def _processes(self) -> list[ListedProcess]:
        """Every process of our jobs, also those that ended in the last minutes, in the order of
        the batch system."""
        now = time.monotonic()
        listed = [
            each
            for each in self._scheduler.listed(self._run, self._prefix)
            if each.job_name.startswith(self._prefix)
        ]
        names = {each.id for each in listed}
        unexplained = [each for each in listed if each.place == "ended" and not each.ending]
        absent = [each for name, each in self._alive.items() if name not in names]
        for process in (*unexplained, *absent):
            self._gone.setdefault(process.id, (now, process))
        self._alive = {each.id: each for each in listed if each.place != "ended"}
        still_listed = {each.id for each in unexplained}
        complete = [each for each in listed if each.id not in still_listed]
        return [*complete, *self._ended({each.id for each in complete}, still_listed, now)]

    def _ended(
        self, complete: set[str], still_listed: set[str], now: float
    ) -> Iterable[ListedProcess]:
        """The ended processes that the list does not have, or has without their ending: these stay
        as long as they are listed, or their endings would count again."""
        self._gone = {
            name: (since, each)
            for name, (since, each) in self._gone.items()
            if name in still_listed or (name not in complete and now - since < REMEMBERED)
        }
        endings = self._endings([each for _, each in self._gone.values() if not each.ending])
        for name, (since, each) in self._gone.items():
            ending = each.ending or endings.get(name, "")
            if not ending and now - since > RECORDED:
                ending = CANCELLED if each.place == "waiting" else UNKNOWN
            self._gone[name] = (since, replace(each, ending=ending))
        return [replace(each, place="ended") for _, each in self._gone.values()]

    def _endings(self, processes: Sequence[ListedProcess]) -> Mapping[str, str]:
        """Those that are recorded; none if the record cannot be read: the list is valid without."""
        try:
            return self._scheduler.endings(self._run, processes) if processes else {}
        except FleetError:
            return {}

    def _launch(self, job_name: str, processes: Sequence[ListedProcess]) -> Launch:
        pool, _, name = job_name.removeprefix(self._prefix).partition(".")
        at: dict[str, list[ListedProcess]] = defaultdict(list)
        for process in processes:
            at[process.place].append(process)
        return Launch(
            name,
            pool,
            waiting=len(at["waiting"]),
            starting=len(at["starting"]),
            running=len(at["running"]),
            ended=Counter(each.ending for each in at["ended"] if each.ending),
            up=frozenset(f"{name}-{each.number}" for each in at["running"]),
            gone=frozenset(f"{name}-{each.number}" for each in at["ended"] if each.ending),
            since=time_of(name),
            reason=next((each.reason for each in at["waiting"] if each.reason), ""),
        )

    # ------------------------------------------------------------------------------ the commands

    def _run(self, command: Sequence[str], script: str = "", accept: Sequence[int] = (0,)) -> str:
        """Standard output of a command. Raises FleetError with the command's words."""
        prefix = next(iter(self.pools.values())).batch.submit_prefix
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
        if done.returncode not in accept:
            text = " ".join((done.stderr or done.stdout).split())
            text = text.removeprefix(f"{command[0]}: ")[-300:]
            kind = FleetLimit if self._scheduler.limits.search(text) else FleetError
            raise kind(f"{command[0]}: {text or f'exit status {done.returncode}'}")
        return done.stdout


def _environment() -> dict[str, str]:
    """The environment of the commands, which some hand on to the workers: without the secrets and
    settings of the coordinator, and without the job that it may run in."""
    return {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or not (name.startswith(("DPSTREAM_", *OWN_JOB)) or is_secret(name))
    }
