"""Processes that outlive whoever started them, and are found again by whoever comes later."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dpstream.devcluster.waiting import within

BOOT = Path("/proc/sys/kernel/random/boot_id")
STARTED = 19
"""Place of the time of its start in what /proc/PID/stat says of a process after its name."""
DEATH_SECONDS = 10.0


class Process(BaseModel):
    """A process id may have passed on to another process; with its start time it has not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    started: str
    """Boot, and clock ticks since."""

    @staticmethod
    def find(pid: int) -> Process | None:
        """None where there is none; one that has died and waits for its parent is none."""
        try:
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        except OSError:
            return None
        if words[0] in "ZX":
            return None
        return Process(pid=pid, started=f"{BOOT.read_text().strip()}/{words[STARTED]}")

    @property
    def is_running(self) -> bool:
        return Process.find(self.pid) == self

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


def end(processes: Sequence[Process], grace: float) -> None:
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
