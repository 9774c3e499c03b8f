"""Starts processes that keep running after their starter ends, and finds them again later."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from dpstream.deploy.devcluster.waiting import within

DEATH_SECONDS = 10.0


class ProcessRecord(BaseModel):
    """Identifies a process by id and start time, because ids are reused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    started: str
    """Seconds since boot, which do not change when the clock is set."""

    @staticmethod
    def find(pid: int) -> ProcessRecord | None:
        """The record of a running process; None if there is none, or only a zombie."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                seconds = process.create_time() - psutil.boot_time()
                return ProcessRecord(pid=pid, started=f"{seconds:.2f}")
        return None

    @property
    def is_running(self) -> bool:
        return ProcessRecord.find(self.pid) == self

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; no effect if the process has ended."""
        if self.is_running:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def spawn(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path
) -> subprocess.Popen[bytes]:
    """Start a process in `folder` in its own session, so that it outlives the terminal. Its output
    is appended to `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def end(processes: Sequence[ProcessRecord], grace: float) -> None:
    """Send SIGTERM, and SIGKILL to processes still running after `grace` seconds."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, DEATH_SECONDS)):
        for process in processes:
            process.signal(number)
        if within(seconds, lambda: not any(process.is_running for process in processes)):
            return


def last_line(log: Path) -> str:
    """The last line of a log, at most 300 characters."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no output"
