"""Processes that outlive whoever started them, and are found again by whoever comes later."""

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
    """A process id may have passed on to another process; with its start time it has not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    started: str
    """Seconds from the machine's boot, which do not change when its clock is set."""

    @staticmethod
    def find(pid: int) -> ProcessRecord | None:
        """None where no process has this id, or only one that has ended and awaits its parent."""
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
        """Nothing where it has ended."""
        if self.is_running:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def spawn(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path
) -> subprocess.Popen[bytes]:
    """Begin a process in `folder`, in a session of its own: it outlives the terminal. What it says
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
    """Ask them to go (SIGTERM); end at once (SIGKILL) those still there after `grace` seconds."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, DEATH_SECONDS)):
        for process in processes:
            process.signal(number)
        if within(seconds, lambda: not any(process.is_running for process in processes)):
            return


def last_line(log: Path) -> str:
    """The last that was said."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "without a word"
