"""PBS Professional and OpenPBS: job arrays, through `qsub`, `qselect`, `qstat`, `qsig` and `qdel`.

At the walltime and for `qdel`, PBS sends SIGTERM to every process of a job, and SIGKILL after the
queue's `kill_delay` (10 s). One of the processes is the login shell, to which PBS passes the name
of a script: it would die of SIGTERM, and the job end with it. With `qsub … -- PROGRAM` there is no
such shell: the program is `bash`, and the script its argument.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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

OURS = """\
set -f; me=$(id -un) && since=$(date -d '10 minutes ago' +%Y%m%d%H%M) &&
now=$(qselect -u "$me") && ended=$(qselect -x -u "$me" -tm.gt."$since") &&
set -- $(printf '%s\\n' $now $ended | sort -u) &&
{ test $# = 0 || qstat -x -t -f -F json "$@"; }"""
"""Shell lines that list the user's own jobs, and those that ended in the last minutes if the server
keeps a history; `qstat` alone lists the jobs of all users, and its whole history."""
SOME_ARE_GONE = (0, 35, 153)
"""Exit statuses of `qstat`: 35, a job has finished; 153, a job is unknown."""
PLACES: Mapping[str, Place] = {
    **dict.fromkeys("QHWTM", "waiting"),
    **dict.fromkeys("XF", "ended"),
}
"""By `job_state`; a job in any other state is running."""
ARRAY = "B"
"""The state of an array of which a part has started."""
KILLED = {-26: "OUT_OF_MEMORY", -27: "OUT_OF_MEMORY", -29: "TIMEOUT"}
"""Negative values of `Exit_status`, in the words of the other batch systems."""
NUMBER = re.compile(r"(\d+)\[(\d*)\]")


def _submit(job_name: str, pool: PoolSettings, count: int) -> list[str]:
    """An array has at least two members: a single worker is a plain job."""
    pbs = pool.pbs
    parts = {
        "ncpus": pool.cpus,
        "mpiprocs": pool.cpus,
        "ngpus": pool.gpus or None,
        "mem": f"{pool.memory.lower()}b" if pool.memory else None,
    }
    chunk = [f"{key}={value}" for key, value in parts.items() if value is not None]
    options = {
        "-N": job_name,
        "-J": f"0-{count - 1}" if count > 1 else None,
        "-j": "oe",
        "-l": ":".join([f"select={pbs.nodes}", *chunk]),
        "-q": pbs.queue,
        "-A": pbs.account,
        "-P": pbs.project,
    }
    limit = [] if pbs.time_limit is None else ["-l", f"walltime={round(pbs.time_limit)}"]
    return ["qsub", *options_of(options), *limit, *pbs.flags, "--", "/bin/bash", "-lc"]


def _listed(run: Run, prefix: str) -> Iterator[ListedProcess]:
    for name, job in _jobs(run(["sh", "-c", OURS], accept=SOME_ARE_GONE)).items():
        found = NUMBER.match(name)
        state = str(job.get("job_state", ""))
        if state == ARRAY or (found and not found[2]):
            continue
        place = PLACES.get(state, "running")
        yield ListedProcess(
            name,
            found[1] if found else name.partition(".")[0],
            found[2] if found else "0",
            str(job.get("Job_Name", "")),
            place,
            ending=_ending(job) if place == "ended" else "",
            reason=str(job.get("comment", "")) if place == "waiting" else "",
        )


def _jobs(listed: str) -> Mapping[str, Mapping[str, Any]]:
    try:
        found: Mapping[str, Mapping[str, Any]] = json.loads(listed or "{}").get("Jobs", {})
    except ValueError as error:
        raise FleetError(f"qstat: {error}") from error
    return found


def _ending(job: Mapping[str, Any]) -> str:
    if "Exit_status" not in job:
        return CANCELLED
    return exit_status(int(job["Exit_status"]))


def exit_status(status: int) -> str:
    """256 and more: a signal."""
    return f"signal {status - 256}" if status >= 256 else KILLED.get(status, str(status))


def queue_status(queue: str | None) -> list[str]:
    """`qsub` cannot submit for trial: whether server and queue exist."""
    return ["qstat", "-Q", *([queue] if queue else [])]


def signal_term(job_name: str, ids: Sequence[str]) -> list[str]:
    """SIGTERM alone: `qdel` would kill after `kill_delay`."""
    return ["qsig", "-s", "SIGTERM", *ids]


OVER = re.compile(r"Unknown Job|has finished|invalid state", re.IGNORECASE)
LIMITS = re.compile(r"Maximum number of jobs|would exceed .*limit|size limit|quota", re.IGNORECASE)
"""Not `Job exceeds queue resource limits`: no worker of the pool would be accepted."""
PBS = Scheduler(
    submit=_submit,
    check=lambda pool, command: queue_status(pool.pbs.queue),
    listed=_listed,
    cancel=("qdel",),
    stop=signal_term,
    named='export DPSTREAM_PROCESS="${PBS_JOBNAME##*.}-${PBS_ARRAY_INDEX:-0}"',
    limits=LIMITS,
    script_is_argument=True,
    over=OVER,
)
