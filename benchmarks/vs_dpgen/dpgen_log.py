"""What DP-GEN's run says of its time: processes as the wrapper saw them, and when dpdispatcher
noticed that a stage's jobs had ended. Pure."""

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
    """One command: s since the epoch, and which program."""

    started: float
    ended: float
    kind: str


def processes(text: str) -> list[Process]:
    """From the wrapper's lines `started<TAB>ended<TAB>command`, in order of ending. ValueError for
    a command that is none of DP-GEN's three."""
    found = []
    for line in text.splitlines():
        started, ended, command = line.split("\t", 2)
        found.append(Process(float(started), float(ended), _kind(command)))
    return sorted(found, key=lambda process: process.ended)


def _kind(command: str) -> str:
    for words, kind in KINDS.items():
        if re.search(rf"(^|/){words}\b", command):
            return kind
    raise ValueError(f"not a command of the benchmark: {command}")


def by_kind(ran: Iterable[Process]) -> dict[str, int]:
    return dict(Counter(process.kind for process in ran))


def noticed(log: str) -> list[float]:
    """When dpdispatcher found a job finished, s since the epoch; its log is in local time."""
    return [
        datetime.strptime(day, "%Y-%m-%d %H:%M:%S").timestamp() + int(milliseconds) / 1000
        for day, milliseconds in FINISHED.findall(log)
    ]


def polling(ran: Sequence[Process], found: Sequence[float]) -> float:
    """s between the end of a stage's last process and its noticing, over all stages. Where a job
    is found finished while another still works, nobody waits for the finding."""
    total, earlier = 0.0, float("-inf")
    for moment in sorted(found):
        if any(process.started < moment < process.ended for process in ran):
            continue
        ends = [process.ended for process in ran if earlier < process.ended <= moment]
        if ends:  # the jobs of a stage are found one after the other, a moment apart
            total += moment - max(ends)
        earlier = moment
    return total
