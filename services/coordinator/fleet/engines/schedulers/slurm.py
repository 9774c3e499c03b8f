"""Slurm: job arrays, through `sbatch`, `squeue` and `scancel`.

With `B:` in `--signal` and `exec` in the script, the worker gets exactly one SIGTERM before its
time ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from dpstream.services.coordinator.fleet.engines.schedulers.scheduler import (
    ListedProcess,
    Place,
    Run,
    Scheduler,
)
from dpstream.services.coordinator.fleet.pools import PoolSettings

FIELDS = ("ArrayJobID", "ArrayTaskID", "Name", "State", "Reason", "exit_code")
WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
STARTING = {"CONFIGURING", "STAGE_OUT"}
ENDED = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "DEADLINE", "PREEMPTED", "REVOKED"),
    *("NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED", "OUT_OF_MEMORY"),
}
"""A job in any other state, also in one that this module does not know, is running."""
PLACES: Mapping[str, Place] = {
    **dict.fromkeys(WAITING, "waiting"),
    **dict.fromkeys(STARTING, "starting"),
    **dict.fromkeys(ENDED, "ended"),
}


def _submit(job_name: str, pool: PoolSettings, count: int) -> list[str]:
    """Each core is a task, because `mpirun` starts as many ranks as there are tasks and `srun` as
    many by default; the script itself runs once and may use all cores of its node."""
    slurm = pool.slurm
    given = {
        "job-name": job_name,
        "array": f"0-{count - 1}",
        "signal": f"B:TERM@{round(pool.grace)}",
        "nodes": slurm.nodes,
        "ntasks-per-node": pool.cpus,
        "mem": pool.memory,
        "gres": f"gpu:{pool.gpus}" if pool.gpus else None,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "time": slurm.time_limit,
        "output": "%x.%a.log",
    }
    options = [f"--{key}={value}" for key, value in given.items() if value is not None]
    return ["sbatch", "--parsable", "--no-requeue", *options, *slurm.flags]


def _listed(run: Run, prefix: str) -> Iterator[ListedProcess]:
    """Also those that ended in the last minutes."""
    form = ",".join(f"{each}:|" for each in FIELDS)
    listed = run(["squeue", "--me", "--noheader", "--array", "--states=all", f"--Format={form}"])
    for line in listed.splitlines():
        job = dict(zip(FIELDS, map(str.strip, line.split("|")), strict=False))
        if "exit_code" not in job:
            continue
        place = PLACES.get(job["State"], "running")
        yield ListedProcess(
            f"{job['ArrayJobID']}_{job['ArrayTaskID']}",
            job["ArrayJobID"],
            job["ArrayTaskID"],
            job["Name"],
            place,
            ending=_ending(job) if place == "ended" else "",
            reason="" if job["Reason"] in ("None", "Priority") else job["Reason"],
        )


def _ending(job: Mapping[str, str]) -> str:
    """The exit status of an ended process, its signal, or Slurm's word: CANCELLED,
    TIMEOUT, NODE_FAIL, …"""
    if job["State"] == "COMPLETED":
        return "0"
    if job["State"] != "FAILED" or not job["exit_code"].isdigit():
        return job["State"]
    status = int(job["exit_code"])  # as wait(2) returns it
    return f"signal {status & 127}" if status & 127 else str(status >> 8)


def _stop(job_name: str, ids: Sequence[str]) -> list[str]:
    return ["scancel", "--batch", "--signal=TERM", "--state=RUNNING", f"--name={job_name}"]


SLURM = Scheduler(
    submit=_submit,
    check=lambda pool, command: [*command, "--test-only"],
    listed=_listed,
    # With --state, scancel would cancel all tasks of the array that wait. A task that has started
    # meanwhile gets SIGTERM and releases what it has.
    cancel=("scancel",),
    stop=_stop,
    # A requeued job is another process.
    named='export DPSTREAM_PROCESS="${SLURM_JOB_NAME##*.}-$SLURM_ARRAY_TASK_ID'
    '${SLURM_RESTART_COUNT:+.$SLURM_RESTART_COUNT}"',
    limits=re.compile(r"QOS\w*Limit|Assoc\w*Limit|policy|MaxArraySize|MaxJobCount", re.IGNORECASE),
    over=re.compile(r"already complet|Invalid job id", re.IGNORECASE),
)
