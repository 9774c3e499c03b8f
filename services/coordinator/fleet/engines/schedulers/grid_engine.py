"""Grid Engine: array jobs, through `qsub`, `qstat`, `qdel` and `qacct`.

It kills at once unless a job is submitted with `-notify`: then SIGUSR2 comes before, by the time
that the queue's `notify` says, and SIGUSR1 before a suspension and at the soft limit of run time
(queue_conf(5)). A suspended worker would only keep its tasks, so that both end it. `qstat` does not
show how jobs ended; `qacct` does, up to 15 s later (`flush_time` in sge_conf(5)).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree

from dpstream.services.coordinator.fleet.engines.schedulers.scheduler import (
    ListedProcess,
    Place,
    Run,
    Scheduler,
    options_of,
)
from dpstream.services.coordinator.fleet.pools import PoolSettings
from dpstream.shared.errors import FleetError


def _submit(job_name: str, pool: PoolSettings, count: int) -> list[str]:
    sge = pool.sge
    requests = {
        sge.memory_resource: pool.memory,
        sge.gpu_resource: pool.gpus or None,
        "h_rt": None if sge.time_limit is None else round(sge.time_limit),
        "s_rt": None if sge.time_limit is None else max(1, round(sge.time_limit - pool.grace)),
    }
    given = {
        "-N": job_name,
        "-t": f"1-{count}",
        "-S": "/bin/bash",
        "-j": "y",
        "-o": "$JOB_NAME.$TASK_ID.log",
        "-r": "n",
        "-pe": [sge.parallel_environment, str(pool.cpus)],
        "-q": sge.queue,
        "-P": sge.project,
        "-l": ",".join(f"{key}={value}" for key, value in requests.items() if value is not None),
    }
    return ["qsub", "-terse", "-cwd", "-notify", *options_of(given), *sge.flags]


def _verify(pool: PoolSettings, command: list[str]) -> list[str]:
    """A trial on an empty cluster without load values, so that no queue has free memory."""
    without_memory = pool.model_copy(update={"memory": None})
    return [*_submit("check", without_memory, 1), "-w", "v"]


def _listed(run: Run, prefix: str) -> Iterator[ListedProcess]:
    """Also the last ones that ended (`z`), of which Grid Engine keeps some."""
    listed = run(["qstat", "-s", "prsz", "-g", "d", "-r", "-xml"])
    try:
        jobs = list(ElementTree.fromstring(listed).iter("job_list"))
    except ElementTree.ParseError as error:
        raise FleetError(f"qstat: {error}") from error
    for job in jobs:
        for number in _numbers(job.findtext("tasks") or "1"):
            array, state = job.findtext("JB_job_number") or "", job.findtext("state") or ""
            yield ListedProcess(
                f"{array}.{number}",
                array,
                str(number),
                job.findtext("full_job_name") or job.findtext("JB_name") or "",
                _place(state),
                reason={"E": "error state; see qstat -explain E", "h": "held"}.get(
                    next((letter for letter in state if letter in "Eh"), ""), ""
                ),
            )


def _numbers(tasks: str) -> Iterator[int]:
    """The numbers of `1-3:1,7`."""
    for part in tasks.split(","):
        first, _, rest = part.partition("-")
        last, _, step = rest.partition(":")
        yield from range(int(first), int(last or first) + 1, int(step or 1))


def _place(state: str) -> Place:
    """`qw`, `hqw`, `Eqw` wait; `t` is being started; `z` has ended; `r`, `s`, `dr`, … run."""
    if "q" in state:
        return "waiting"
    return {"t": "starting", "z": "ended"}.get(state[-1:], "running")  # type: ignore[return-value]


def _endings(run: Run, processes: Sequence[ListedProcess]) -> Mapping[str, str]:
    """The exit statuses; none for those whose record is not written yet."""
    endings: dict[str, str] = {}
    for array in sorted({each.array for each in processes}):
        record: dict[str, str] = {}
        for line in run(["qacct", "-j", array], accept=(0, 1)).splitlines():
            key, _, value = line.partition(" ")
            record[key] = value.strip()
            if key == "exit_status" and record.get("taskid", "").isdigit():
                endings[f"{array}.{record['taskid']}"] = value.split()[0]
    return endings


GRID_ENGINE = Scheduler(
    submit=_submit,
    check=_verify,
    listed=_listed,
    cancel=("qdel",),
    stop=lambda job_name, ids: ["qdel", *ids],
    named='export DPSTREAM_PROCESS="${JOB_NAME##*.}-$SGE_TASK_ID"',
    limits=re.compile(r"not allowed to submit|max_u_jobs|max_jobs|max_aj_tasks|quota", re.I),
    announced_by=("USR1", "USR2"),
    endings=_endings,
    over=re.compile(r"does not exist|already in deletion", re.IGNORECASE),
)
