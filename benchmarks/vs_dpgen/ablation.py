"""Where the time goes: waiting to be noticed, starting cold, standing at barriers."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.vs_dpgen.outcome import Outcome

SLOTS = 2
"""Cores, and so the number of processes that can work at once."""
REPEATS = 2


@dataclass(frozen=True)
class Share:
    """s of wall time until the committee is ready. polling: nobody worked, because the end of a
    stage had not been noticed; between: nobody worked for other reasons; barrier: one slot of two
    worked while the other waited, half of that time; cold: process starts and imports, two at a
    time; it lies inside the time that slots worked."""

    polling: float
    between: float
    barrier: float
    cold: float


def occupancy(
    busy: Sequence[tuple[float, float]], start: float, end: float
) -> tuple[float, float, float]:
    """s between `start` and `end` with none, with one and with two or more intervals open."""
    steps = [(max(a, start), 1) for a, b in busy if b > start and a < end]
    steps += [(min(b, end), -1) for a, b in busy if b > start and a < end]
    seconds, running, now = [0.0, 0.0, 0.0], 0, start
    for moment, change in sorted(steps):
        seconds[min(running, SLOTS)] += moment - now
        running, now = running + change, moment
    seconds[min(running, SLOTS)] += end - now
    return seconds[0], seconds[1], seconds[2]


def share(outcome: Outcome, cold: Mapping[str, float]) -> Share:
    """`cold`: s to start a process, by kind. Warm engines start beside one another and beside the
    first tasks; what that costs shows as `between`."""
    none, one, _ = occupancy(outcome.busy, outcome.started, outcome.ready)
    starting = sum(count * cold.get(kind, 0.0) for kind, count in outcome.processes.items())
    return Share(
        polling=outcome.polling,
        between=none - outcome.polling,
        barrier=one / SLOTS,
        cold=starting / SLOTS,
    )


def cold_starts(venv: Path, environment: Mapping[str, str]) -> dict[str, float]:
    """s to start each of DP-GEN's programs and import what it needs, doing nothing else; two at a
    time as in the run, the best of two tries."""
    python, lmp = str(venv / "bin" / "python"), str(venv / "bin" / "lmp")
    commands = {
        "dp": [python, "-c", "import deepmd.tf.entrypoints"],
        "lmp": [lmp, "-h"],
        "fp": [python, "-c", "from pyscf import dft, gto"],
    }
    return {
        kind: min(_pair(command, environment) for _ in range(REPEATS))
        for kind, command in commands.items()
    }


def _pair(command: Sequence[str], environment: Mapping[str, str]) -> float:
    started = time.monotonic()
    quiet = subprocess.DEVNULL
    pair = [
        subprocess.Popen(command, env=dict(environment), stdout=quiet, stderr=quiet)
        for _ in range(SLOTS)
    ]
    for process in pair:
        process.wait()
    return time.monotonic() - started
