"""Reads the times of a DP-GEN run: processes as the wrapper recorded them, and when dpdispatcher
detected that the jobs of a stage had ended."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

KINDS = {"dp train": "dp", "dp freeze": "dp", "dp compress": "dp", "lmp": "lmp", "pyscf_fp": "fp"}
FINISHED = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) .*job: \w+ \d+ finished", re.M)


@dataclass(frozen=True)
class Process:
    """One command: start and end, s since the epoch, and the kind of program."""

    started: float
    ended: float
    kind: str


def processes(text: str) -> list[Process]:
    """Processes from the wrapper's lines `started<TAB>ended<TAB>command`, sorted by their end.
    Raises ValueError for a command that is not one of DP-GEN's three."""
    ran = []
    for line in text.splitlines():
        started, ended, command = line.split("\t", 2)
        ran.append(Process(float(started), float(ended), _kind(command)))
    return sorted(ran, key=lambda process: process.ended)


def _kind(command: str) -> str:
    for words, kind in KINDS.items():
        if re.search(rf"(^|/){words}\b", command):
            return kind
    raise ValueError(f"unknown command: {command}")


def by_kind(ran: Iterable[Process]) -> dict[str, int]:
    return dict(Counter(process.kind for process in ran))


def detected(log: str) -> list[float]:
    """Times at which dpdispatcher detected that a job had finished, s since the epoch. Its log is
    in local time."""
    return [
        datetime.strptime(day, "%Y-%m-%d %H:%M:%S").timestamp() + int(milliseconds) / 1000
        for day, milliseconds in FINISHED.findall(log)
    ]


def polling(ran: Sequence[Process], detected: Sequence[float]) -> float:
    """Time between the end of a stage's last process and its detection, s, summed over all stages.
    A job whose end is detected while another one works does not count."""
    total, earlier = 0.0, float("-inf")
    for moment in sorted(detected):
        if any(process.started < moment < process.ended for process in ran):
            continue
        ends = [process.ended for process in ran if earlier < process.ended <= moment]
        if ends:  # the ends of a stage's jobs are detected shortly after one another
            total += moment - max(ends)
        earlier = moment
    return total
