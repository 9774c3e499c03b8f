"""Torque: job arrays, through `qsub`, `qstat`, `qsig` and `qdel`.

It ends jobs as PBS does: SIGTERM, and SIGKILL after `kill_delay` (2 s). The login shell, which gets
the name of the script, has to survive SIGTERM without its children inheriting that: `trap : TERM`
in its start-up file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from xml.etree import ElementTree

from dpstream.services.coordinator.fleet.engines.schedulers.pbs import (
    LIMITS,
    NUMBER,
    OVER,
    exit_status,
    queue_status,
    signal_term,
)
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

PLACES: Mapping[str, Place] = {**dict.fromkeys("QHWT", "waiting"), "C": "ended"}
"""By `job_state`; a job in any other state is running."""


def _submit(job_name: str, pool: PoolSettings, count: int) -> list[str]:
    torque = pool.torque
    gpus = f":gpus={pool.gpus}" if pool.gpus else ""
    resources = [f"nodes={torque.nodes}:ppn={pool.cpus}{gpus}"]
    resources += [f"mem={pool.memory.lower()}b"] if pool.memory else []
    if torque.time_limit is not None:
        resources.append(f"walltime={round(torque.time_limit)}")
    options = {
        "-N": job_name,
        "-t": f"0-{count - 1}",
        "-j": "oe",
        "-r": "n",
        "-l": ",".join(resources),
        "-q": torque.queue,
        "-A": torque.account,
        "-W": f"group_list={torque.project}" if torque.project else None,
    }
    return ["qsub", *options_of(options), *torque.flags]


def _listed(run: Run, prefix: str) -> Iterator[ListedProcess]:
    """Also those that ended in the last minutes (`keep_completed`). A member of an array is named
    after the array and its number."""
    listed = run(["qstat", "-t", "-x"])
    try:
        jobs = list(ElementTree.fromstring(listed).iter("Job")) if listed.strip() else []
    except ElementTree.ParseError as error:
        raise FleetError(f"qstat: {error}") from error
    for job in jobs:
        name = job.findtext("Job_Id") or ""
        found = NUMBER.match(name)
        if found is None or not found[2]:
            continue
        place = PLACES.get(job.findtext("job_state") or "", "running")
        yield ListedProcess(
            name,
            found[1],
            found[2],
            re.sub(rf"-{found[2]}$", "", job.findtext("Job_Name") or ""),
            place,
            ending=_ending(job) if place == "ended" else "",
            reason=job.findtext("comment") or "" if place == "waiting" else "",
        )


def _ending(job: ElementTree.Element) -> str:
    status = job.findtext("exit_status")
    return CANCELLED if status is None else exit_status(int(status))


TORQUE = Scheduler(
    submit=_submit,
    check=lambda pool, command: queue_status(pool.torque.queue),
    listed=_listed,
    cancel=("qdel",),
    stop=signal_term,
    named='export DPSTREAM_PROCESS="${PBS_JOBNAME##*.}"',
    limits=LIMITS,
    over=OVER,
)
