"""Divides the wall time of an arm into polling, idle time, barriers and cold starts."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.vs_dpgen.outcome import Outcome

SLOTS = 2
"""Processes that can work at the same time: the number of cores."""
REPEATS = 2


@dataclass(frozen=True)
class Share:
    """Parts of the wall time until the committee is ready, s.

    polling: both slots idle, because the end of a stage was not detected yet. between: both slots
    idle for other reasons. barrier: half the time in which one slot worked and the other waited.
    cold: process starts and imports, two at a time; this is part of the time in which slots worked.
    """

    polling: float
    between: float
    barrier: float
    cold: float


def occupancy(
    busy: Sequence[tuple[float, float]], start: float, end: float
) -> tuple[float, float, float]:
    """Time between `start` and `end` with no, one, and two or more intervals open, s."""
    steps = [(max(a, start), 1) for a, b in busy if b > start and a < end]
    steps += [(min(b, end), -1) for a, b in busy if b > start and a < end]
    seconds, running, now = [0.0, 0.0, 0.0], 0, start
    for moment, change in sorted(steps):
        seconds[min(running, SLOTS)] += moment - now
        running, now = running + change, moment
    seconds[min(running, SLOTS)] += end - now
    return seconds[0], seconds[1], seconds[2]


def share(outcome: Outcome, cold: Mapping[str, float]) -> Share:
    """`cold`: time to start a process, by kind, s. dpstream's engines start once, in parallel with
    the first tasks; their cost is part of `between`."""
    none, one, _ = occupancy(outcome.busy, outcome.started, outcome.ready)
    starting = sum(count * cold.get(kind, 0.0) for kind, count in outcome.processes.items())
    return Share(
        polling=outcome.polling,
        between=none - outcome.polling,
        barrier=one / SLOTS,
        cold=starting / SLOTS,
    )


def cold_starts(venv: Path, environment: Mapping[str, str]) -> dict[str, float]:
    """Time to start each of DP-GEN's programs with its imports, s: two at a time as in the run, the
    shorter of two measurements."""
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
