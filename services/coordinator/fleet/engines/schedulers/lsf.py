"""LSF: job arrays, through `bsub`, `bjobs` and `bkill`.

To end a job LSF sends SIGINT, after `JOB_TERMINATE_INTERVAL` (10 s) SIGTERM, and after another 10 s
SIGKILL; at the run limit first SIGUSR2. `-wt` minutes before the limit it sends the signal of
`-wa`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

from dpstream.services.coordinator.fleet.engines.schedulers.scheduler import (
    CANCELLED,
    ListedProcess,
    Place,
    Run,
    Scheduler,
    options_of,
)
from dpstream.services.coordinator.fleet.pools import PoolSettings
from dpstream.shared.errors import FleetError

FIELDS = ("jobid", "jobindex", "job_name", "stat", "exit_code", "exit_reason", "pend_reason")
PLACES: Mapping[str, Place] = {
    **dict.fromkeys(("PEND", "PSUSP", "WAIT"), "waiting"),
    "PROV": "starting",
    **dict.fromkeys(("DONE", "EXIT"), "ended"),
}
"""A job in any other state is running."""
ENDINGS = {
    "TERM_RUNLIMIT": "TIMEOUT",
    "TERM_PREEMPT": "PREEMPTED",
    "TERM_RC_RECLAIM": "PREEMPTED",
    "TERM_ADMIN": CANCELLED,
    "TERM_OWNER": CANCELLED,
    "TERM_FORCE": CANCELLED,
    "TERM_REMOVE_HUNG_JOB": "NODE_FAIL",
    "TERM_MEMLIMIT": "OUT_OF_MEMORY",
}
"""Beginnings of LSF's reasons, in the words of the other batch systems."""
NONE = re.compile(r"\bNo (\w+ )?job found|Job <.*> is not found")
"""Words of `bjobs` if there is no job. Its exit status, 255, is also that of an LSF that is down,
and of `ssh` without a connection."""


def _submit(job_name: str, pool: PoolSettings, count: int) -> list[str]:
    lsf = pool.lsf
    limit = None if lsf.time_limit is None else max(1, round(lsf.time_limit / 60))
    given = {
        "-J": f"{job_name}[1-{count}]",
        "-n": str(pool.cpus * lsf.nodes),
        "-o": f"{job_name}.%I.log",
        "-gpu": f"num={pool.gpus}" if pool.gpus else None,
        "-q": lsf.queue,
        "-P": lsf.project,
        "-W": None if limit is None else str(limit),
        "-wt": None if limit is None else str(math.ceil(pool.grace / 60)),
        "-wa": None if limit is None else "TERM",
    }
    memory = ["-R", f"rusage[mem={pool.memory}]"] if pool.memory else []
    return [
        "bsub",
        "-rn",
        *options_of(given),
        "-R",
        f"span[ptile={pool.cpus}]",
        *memory,
        *lsf.flags,
    ]


def _listed(run: Run, prefix: str) -> Iterator[ListedProcess]:
    """Also those that ended in the last hour (CLEAN_PERIOD)."""
    form = f"{' '.join(FIELDS)} delimiter='|'"
    try:
        listed = run(["bjobs", "-a", "-noheader", "-o", form, "-J", f"{prefix}*"])
    except FleetError as error:
        if NONE.search(str(error)):
            return
        raise
    for line in listed.splitlines():
        values = [value.strip() for value in line.split("|", len(FIELDS) - 1)]
        job = dict(zip(FIELDS, ("" if each == "-" else each for each in values), strict=False))
        if "pend_reason" not in job:
            continue
        place = PLACES.get(job["stat"], "running")
        array = job["jobid"].partition("[")[0]
        yield ListedProcess(
            f"{array}[{job['jobindex']}]",
            array,
            job["jobindex"],
            job["job_name"].partition("[")[0],
            place,
            ending=_ending(job) if place == "ended" else "",
            reason=job["pend_reason"].rstrip(";") if place == "waiting" else "",
        )


def _ending(job: Mapping[str, str]) -> str:
    """The exit status, or why LSF ended a process that a signal killed or that never started."""
    if job["stat"] == "DONE":
        return "0"
    status = job["exit_code"]
    if status.isdigit() and int(status) < 128:
        return status
    words = (word for begin, word in ENDINGS.items() if job["exit_reason"].startswith(begin))
    return next(words, status or CANCELLED)


def _stop(job_name: str, ids: Sequence[str]) -> list[str]:
    """SIGTERM alone: a plain `bkill` would kill after 20 s."""
    return ["bkill", "-s", "TERM", *ids]


LSF = Scheduler(
    submit=_submit,
    check=lambda pool, command: ["bqueues", *([pool.lsf.queue] if pool.lsf.queue else [])],
    listed=_listed,
    cancel=("bkill",),
    stop=_stop,
    named='export DPSTREAM_PROCESS="${LSB_JOBNAME##*.}"; export DPSTREAM_PROCESS='
    '"${DPSTREAM_PROCESS%%\\[*}-$LSB_JOBINDEX"',
    limits=re.compile(r"job threshold reached|array index too large|quota", re.IGNORECASE),
    announced_by=("INT", "USR2"),
    over=re.compile(r"Job <.*>.*(is not found|already finished|No matching job)", re.IGNORECASE),
)
