"""`dpstream run --broker`: runs a campaign on a deployment with additional local workers.

The campaign is submitted to the deployment's broker and store. Services started here run as
separate processes against the same broker and store until the campaign ends or Ctrl-C.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from dpstream.commands.results.follow import look_on
from dpstream.commands.submit import handed_in
from dpstream.deploy.devcluster.processes import last_line, spawn
from dpstream.inputs.gather import Gathered
from dpstream.running.connection import (
    ANSWER_SECONDS,
    FollowedCampaign,
    once_taken_in,
    open_bus,
    open_store,
)
from dpstream.running.first_checks import FirstChecks
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Spec
from dpstream.shared.values import Recipe
from dpstream.terminal.console import notes, print_line
from dpstream.terminal.interrupt import INTERRUPTED, signals

GRACE = 30.0
"""Seconds that a service has to return its tasks before it is killed."""


@dataclass
class LocalWorkers:
    """Services in processes and sessions of their own, so that Ctrl-C reaches this process only."""

    logs: Path
    environment: Mapping[str, str]
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, workers: Mapping[str, int]) -> None:
        for service, count in workers.items():
            for number in range(count):
                name = f"{service}-{number}"
                command = [sys.executable, "-m", f"dpstream.services.{service}"]
                log = self.logs / f"{name}.log"
                self._processes[name] = spawn(command, self.environment, Path.cwd(), log)

    def check(self) -> None:
        """Raises `SpecError` with the last log line of a service that has ended."""
        for name, process in self._processes.items():
            status = process.poll()
            if status is not None:
                log = self.logs / f"{name}.log"
                raise SpecError(
                    f"{name} ended with exit status {status}: {last_line(log)}; see {log}"
                )

    def stop(self) -> None:
        for process in self._processes.values():
            process.terminate()
        until = time.monotonic() + GRACE
        for process in self._processes.values():
            try:
                process.wait(timeout=max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run_mixed(
    spec: Spec,
    gathered: Gathered,
    recipe: Recipe,
    checks: FirstChecks,
    root: str,
    broker: str,
    workers: Mapping[str, int],
    console: Console,
) -> int:
    """Submit the campaign, start local workers and follow it to its end. Returns the exit status
    of `dpstream run`."""
    with closing(open_bus(broker)) as bus:
        store = open_store(root)
        submitted = handed_in(spec, gathered, recipe, checks, store, bus)
        with ExitStack() as stack:
            crew = stack.enter_context(_running(root, broker, workers))
            stopping = stack.enter_context(signals(console))
            if once_taken_in(store, submitted, ANSWER_SECONDS, meanwhile=crew.check) is None:
                print_line(
                    console,
                    "no coordinator answers yet; start one: python -m "
                    "dpstream.services.coordinator (or rerun with --workers coordinator=1)",
                )
            followed = FollowedCampaign.open(store, spec.name, bus)

            def continues() -> bool:
                crew.check()
                return not stopping.is_set() and followed.goes_on()

            status = look_on(followed, continues)
            return INTERRUPTED if stopping.is_set() else status


@contextmanager
def _running(root: str, broker: str, workers: Mapping[str, int]) -> Iterator[LocalWorkers]:
    logs = Path(tempfile.mkdtemp(prefix="dpstream-logs-"))
    print_line(notes, f"{logs}: logs of the services on this machine")
    settings = {"DPSTREAM_STORE": root, "DPSTREAM_BROKER": broker, "DPSTREAM_HTTP_PORT": "0"}
    crew = LocalWorkers(logs, {**os.environ, **settings})
    try:
        crew.start(workers)
        yield crew
    finally:
        crew.stop()
