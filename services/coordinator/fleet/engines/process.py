"""Workers as processes of this machine: the fleet engine of laptops and tests.

A process carries its launch in its environment, so that a restarted coordinator finds the workers
of the one before. The name of a launch begins with its pool.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from dpstream.services.coordinator.fleet.engines.script import check_source, worker_script
from dpstream.services.coordinator.fleet.plan import time_of
from dpstream.services.coordinator.fleet.pools import PoolSettings
from dpstream.shared.environment import passed_environment
from dpstream.shared.errors import FleetError
from dpstream.shared.ports import Launch

LAUNCH, PROCESS = "DPSTREAM_LAUNCH", "DPSTREAM_PROCESS"
"""The variables with the names of a worker's launch and of the worker itself."""


@dataclass
class ProcessFleet:
    """`logs`: a folder for the output of the workers. Launches are named `DEPLOYMENT/NAME`."""

    deployment: str
    pools: Mapping[str, PoolSettings]
    logs: Path
    _children: dict[str, list[subprocess.Popen[bytes]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def running(self) -> Sequence[Launch]:
        """Launches with living processes, and ended ones that this process has started."""
        alive: dict[str, list[str]] = defaultdict(list)
        for label, name, _ in self._processes():
            alive[label].append(name)
        labels = sorted({*alive, *self._children})
        launches = [self._launch(label, alive[label]) for label in labels]
        for launch in launches:
            if not launch.alive:  # how its workers ended is known now
                self._children.pop(f"{self.deployment}/{launch.name}", None)
        return launches

    def launch(self, pool: str, count: int, name: str, *, warm: bool = False) -> None:
        label = f"{self.deployment}/{name}"
        if label in self._children or any(label == each for each, *_ in self._processes()):
            return
        script = worker_script(pool, self.pools[pool], warm=warm)
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                process = f"{name}-{number}"
                with (self.logs / f"{process}.log").open("ab") as log:
                    child = subprocess.Popen(
                        ["bash", "-c", script],
                        env=passed_environment() | {LAUNCH: label, PROCESS: process},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                self._children[label].append(child)
        except OSError as error:
            raise FleetError(f"workers cannot be started: {error}") from error

    def retire(self, launch: Launch, most: int) -> int:
        """Nothing: processes start at once."""
        return 0

    def end(self, launch: Launch) -> None:
        for label, _, process in self._processes():
            if label == f"{self.deployment}/{launch.name}":
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGTERM)

    def check(self, pool: str) -> None:
        program = self.pools[pool].arguments[0]
        if shutil.which(program) is None:
            raise FleetError(f"command: {program}: no such program")
        check_source(self.pools[pool])

    def render(self, pool: str) -> str:
        return worker_script(pool, self.pools[pool])

    def _launch(self, label: str, alive: Sequence[str]) -> Launch:
        """`alive`: names of the workers that are seen; a child replacing its program is not,
        because its environment cannot be read meanwhile."""
        name = label.partition("/")[2]
        children = enumerate(self._children.get(label, ()))
        own = {f"{name}-{number}": child.poll() for number, child in children}
        ended = {each: _ending(status) for each, status in own.items() if status is not None}
        up = {*alive, *own} - ended.keys()
        return Launch(
            name,
            pool=name.rpartition("-")[0],
            running=len(up),
            ended=Counter(ended.values()),
            up=frozenset(filter(None, up)),
            gone=frozenset(ended),
            since=time_of(name),
        )

    def _processes(self) -> Iterator[tuple[str, str, psutil.Process]]:
        """The workers of this deployment with the labels of their launches and their own names: the
        first processes of their sessions."""
        try:
            labelled = [(*_names_of(process), process) for process in psutil.process_iter()]
        except OSError as error:
            raise FleetError(f"processes cannot be listed: {error}") from error
        for label, name, process in labelled:
            if label.startswith(f"{self.deployment}/"):
                with suppress(psutil.NoSuchProcess, ProcessLookupError):
                    is_first = os.getsid(process.pid) == process.pid
                    if is_first and process.status() != psutil.STATUS_ZOMBIE:
                        yield label, name, process


def _ending(status: int) -> str:
    return str(status) if status >= 0 else signal.Signals(-status).name


def _names_of(process: psutil.Process) -> tuple[str, str]:
    """Launch and name in the environment of a process; empty for zombies and other users'
    processes."""
    with suppress(psutil.Error, OSError):
        if process.uids().real == os.getuid():
            environment = process.environ()
            return environment.get(LAUNCH, ""), environment.get(PROCESS, "")
    return "", ""
