"""The rows of the batch systems: what is submitted, how lists are read, and how the stop becomes
one SIGTERM. dpdispatcher's directives show what people of these systems request."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dpstream.services.coordinator.fleet.engines.schedulers.scheduler import ListedProcess
from dpstream.services.coordinator.fleet.engines.schedulers.table import SCHEDULERS
from dpstream.services.coordinator.fleet.engines.script import worker_script
from dpstream.services.coordinator.fleet.pools import BATCH, PoolSettings
from dpstream.shared.errors import FleetError

ENGINES = {"Slurm": "slurm", "SlurmJobArray": "slurm"} | {
    "SGE": "sge",
    "PBS": "pbs",
    "Torque": "torque",
    "LSF": "lsf",
}
"""Engines by dpdispatcher's batch types."""
NO_BATCH_SYSTEM = {"Shell", "DistributedShell", "Bohrium", "DpCloudServer", "Lebesgue", "OpenAPI"}
NO_ENGINE = {"Fugaku", "JH_UniScheduler"}
PREFIXES = {"slurm": "#SBATCH", "sge": "#$", "pbs": "#PBS", "torque": "#PBS", "lsf": "#BSUB"}
OWN = {
    *("--parsable", "--no-requeue", "--job-name", "--array", "--signal", "--output", "-terse"),
    *("-notify", "-N", "-t", "-J", "-o", "-e", "-r", "-rn", "-j"),
}
"""What each needs for itself: names and arrays by which launches are found, and the output."""
FLAGS = {"-terse", "-notify", "-cwd", "-rn", "--parsable", "--no-requeue"}
"""Options without a value."""


@pytest.fixture(scope="module", autouse=True)
def _log_of_dpdispatcher(tmp_path_factory: pytest.TempPathFactory) -> None:
    """dpdispatcher opens its log in the working folder when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("dpdispatcher"))
        importlib.import_module("dpdispatcher")


def pool(engine: str, **changes: Any) -> PoolSettings:
    settings = {"engine": engine, "serves": ["label.vasp"], "max": 9} | changes
    return PoolSettings.model_validate(settings)


def options(words: Sequence[str]) -> list[tuple[str, ...]]:
    """The options of a command or of directives, without each side's own."""
    found: list[tuple[str, ...]] = []
    left = [part for word in words for part in (word.split("=", 1) if word[:2] == "--" else [word])]
    while left and left[0] != "--":
        name, values = left.pop(0), []
        while name not in FLAGS and left and not left[0].startswith("-"):
            values.append(left.pop(0))
        if name not in OWN:
            found.append((name, *values))
    return sorted(found)


def theirs(batch_type: str, folder: Path, **resources: Any) -> list[tuple[str, ...]]:
    from dpdispatcher import Machine, Resources, Task
    from dpdispatcher.submission import Job

    connection = {"batch_type": batch_type, "context_type": "LocalContext"}
    machine = Machine.load_from_dict(
        {**connection, "local_root": str(folder), "remote_root": str(folder)}
    )
    given = Resources.load_from_dict({"group_size": 1, **resources})
    job = Job([Task(command="true", task_work_path=".")], resources=given, machine=machine)
    prefix = PREFIXES[ENGINES[batch_type]]
    lines = machine.gen_script_header(job).splitlines()
    rows = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
    return options([word for row in rows for word in shlex.split(row)])


def test_every_batch_type_of_dpdispatcher_is_known(tmp_path: Path) -> None:
    from dpdispatcher import Machine

    names = {name for name in Machine.subclasses_dict if name not in {"Machine"}}
    known = {*ENGINES, *NO_BATCH_SYSTEM, *NO_ENGINE}
    assert {name.lower() for name in names} <= {name.lower() for name in known}
    assert set(ENGINES.values()) == set(BATCH) == set(SCHEDULERS)


@pytest.mark.parametrize("batch_type", ENGINES)
@pytest.mark.parametrize(
    ("nodes", "gpus", "queue"), [(1, 0, ""), (1, 2, "large"), (2, 0, "large"), (2, 4, "")]
)
def test_a_worker_requests_what_a_job_of_dpdispatcher_does(
    batch_type: str, nodes: int, gpus: int, queue: str, tmp_path: Path
) -> None:
    engine = ENGINES[batch_type]
    kwargs = {"SGE": {"pe_name": "smp"}, "LSF": {"gpu_usage": True, "gpu_new_syntax": True}}
    expected = theirs(
        batch_type,
        tmp_path,
        number_node=nodes,
        cpu_per_node=8,
        gpu_per_node=gpus,
        queue_name=queue,
        kwargs=kwargs.get(batch_type, {}),
    )
    section: dict[str, Any] = {} if engine == "sge" else {"nodes": nodes}
    section |= {"partition" if engine == "slurm" else "queue": queue} if queue else {}
    settings = pool(engine, cpus=8, gpus=gpus, **{engine: section})
    found = options(SCHEDULERS[engine].submit("dps.d.cpu.cpu-1", settings, 3)[1:])
    assert found == in_our_words(engine, expected, gpus)


def in_our_words(engine: str, expected: list[tuple[str, ...]], gpus: int) -> list[tuple[str, ...]]:
    """Where dpdispatcher requests the same in another form, or nothing."""
    found = []
    for name, *values in expected:
        if engine == "pbs" and name == "-l":
            # Its programs start as many ranks as there are `mpiprocs`.
            values = [values[0].replace(":ncpus=8", ":ncpus=8:mpiprocs=8")]
        if engine == "lsf" and name == "-gpu":
            values = [values[0].partition(":")[0]]  # the mode is the cluster's
        found.append((name, *values))
    if engine == "sge" and gpus:
        found.append(("-l", f"gpu={gpus}"))
    return sorted(found)


def test_limits_and_memory_are_requested_in_the_form_of_each(tmp_path: Path) -> None:
    found = {
        engine: shlex.join(
            SCHEDULERS[engine].submit(
                "dps.d.cpu.cpu-1",
                pool(engine, memory="120G", grace=90, **{engine: {"time_limit": "24h"}}),
                2,
            )
        )
        for engine in ("sge", "pbs", "torque", "lsf")
    }
    assert "-l mem_free=120G,h_rt=86400,s_rt=86310" in found["sge"], "SIGUSR1 before the end"
    assert "-l select=1:ncpus=1:mpiprocs=1:mem=120gb -l walltime=86400" in found["pbs"]
    assert "-l nodes=1:ppn=1,mem=120gb,walltime=86400" in found["torque"]
    assert "-W 1440 -wt 2 -wa TERM" in found["lsf"]
    assert "'rusage[mem=120G]'" in found["lsf"]


def test_a_single_worker_of_pbs_is_no_array() -> None:
    words = [SCHEDULERS["pbs"].submit("dps.d.cpu.cpu-1", pool("pbs"), count) for count in (1, 2)]
    assert ["-J" in each for each in words] == [False, True]


# ----------------------------------------------------------------------------- what is a limit


@pytest.mark.parametrize(
    ("engine", "words", "is_limit"),
    [
        ("pbs", "would exceed queue small's per-user limit of jobs in 'Q' state", True),
        ("pbs", "would exceed complex's per-group limit", True),
        ("pbs", "would exceed user me's limit on resource ncpus in queue small", True),
        ("pbs", "Maximum number of jobs for user me already in queue small", True),
        ("pbs", "Array job exceeds server or queue size limit", True),
        ("pbs", "Job exceeds queue resource limits", False),
        ("pbs", "Job violates queue and/or server resource limits", False),
        ("torque", "submit error (Maximum number of jobs already in queue MSG=8 in main)", True),
        ("torque", "submit error (Job exceeds queue resource limits MSG=no such memory)", False),
        ("lsf", "User <me>: Pending job threshold reached. Retrying in 60 seconds...", True),
        ("lsf", "Job array index too large. Job not submitted.", True),
        ("lsf", "RUNLIMIT: Cannot exceed queue's hard limit(s). Job not submitted.", False),
        ("lsf", "Too many processors requested. Job not submitted.", False),
    ],
)
def test_a_job_that_no_queue_takes_is_no_quota(engine: str, words: str, is_limit: bool) -> None:
    """A quota makes launches smaller; a pool whose jobs are refused pauses."""
    assert bool(SCHEDULERS[engine].limits.search(words)) == is_limit


# ------------------------------------------------------------------------------ how lists are read


def listed(engine: str, text: str, status: int = 0) -> list[ListedProcess]:
    def run(command: Sequence[str], *, accept: Sequence[int] = (0,)) -> str:
        assert status in accept
        return text

    return list(SCHEDULERS[engine].listed(run, "dps.d."))


def test_lists_of_pbs() -> None:
    name = {"Job_Name": "dps.d.cpu.cpu-1"}
    jobs = {
        "7[].server": {**name, "job_state": "B"},
        "7[0].server": {**name, "job_state": "X", "Exit_status": 75},
        "7[1].server": {**name, "job_state": "X", "Exit_status": 271},
        "7[2].server": {**name, "job_state": "E"},
        "7[3].server": {**name, "job_state": "Q", "comment": "Not Running: no"},
        "8.server": {**name, "job_state": "F", "Exit_status": -29},
        "9.server": {**name, "job_state": "F"},
    }
    found = listed("pbs", json.dumps({"Jobs": jobs}), 153)
    assert [(each.id, each.number, each.place, each.ending, each.reason) for each in found] == [
        ("7[0].server", "0", "ended", "75", ""),
        ("7[1].server", "1", "ended", "signal 15", ""),
        ("7[2].server", "2", "running", "", ""),
        ("7[3].server", "3", "waiting", "", "Not Running: no"),
        ("8.server", "0", "ended", "TIMEOUT", ""),
        ("9.server", "0", "ended", "CANCELLED", ""),
    ]
    assert listed("pbs", "") == []


def test_lists_of_lsf() -> None:
    rows = """\
7|1|dps.d.cpu.cpu-1[1]|DONE|-|-|-
7|2|dps.d.cpu.cpu-1[2]|EXIT|75|TERM_RUNLIMIT: job killed after reaching LSF run time limit|-
7|3|dps.d.cpu.cpu-1[3]|EXIT|137|TERM_RUNLIMIT: job killed after reaching LSF run time limit|-
7|4|dps.d.cpu.cpu-1[4]|EXIT|139|-|-
7|5|dps.d.cpu.cpu-1[5]|UNKWN|-|-|-
7|6|dps.d.cpu.cpu-1[6]|PEND|-|-|Job slot limit reached;
7|7|dps.d.cpu.cpu-1[7]|EXIT|-|TERM_OWNER: job killed by owner|-
"""
    found = listed("lsf", rows)
    assert [(each.id, each.place, each.ending or each.reason) for each in found] == [
        ("7[1]", "ended", "0"),
        ("7[2]", "ended", "75"),
        ("7[3]", "ended", "TIMEOUT"),
        ("7[4]", "ended", "139"),
        ("7[5]", "running", ""),
        ("7[6]", "waiting", "Job slot limit reached"),
        ("7[7]", "ended", "CANCELLED"),
    ]
    assert {each.job_name for each in found} == {"dps.d.cpu.cpu-1"}


@pytest.mark.parametrize(
    ("words", "is_list"),
    [
        ("No unfinished job found", True),
        ("No job found", True),
        ("Job <dps.d.*> is not found", True),
        ("ssh: connect to host login1 port 22: Connection refused", False),
        ("ssh: Could not resolve hostname login1: Name or service not known", False),
        ("LSF is down. Please wait ...", False),
        ("sh: bjobs: command not found", False),
        ("exit status 255", False),
    ],
)
def test_an_outage_of_lsf_is_no_empty_list(words: str, is_list: bool) -> None:
    def run(command: Sequence[str], *, accept: Sequence[int] = (0,)) -> str:
        assert 255 not in accept
        raise FleetError(f"bjobs: {words}")

    if is_list:
        assert list(SCHEDULERS["lsf"].listed(run, "dps.d.")) == []
    else:
        with pytest.raises(FleetError, match=re.escape(words)):
            list(SCHEDULERS["lsf"].listed(run, "dps.d."))


def test_lists_of_torque() -> None:
    row = "<Job><Job_Id>7[%d].s</Job_Id><Job_Name>dps.d.cpu.cpu-1-%d</Job_Name>%s</Job>"
    states = [
        "<job_state>C</job_state><exit_status>0</exit_status>",
        "<job_state>R</job_state>",
        "<job_state>Q</job_state>",
    ]
    rows = "".join(row % (number, number, state) for number, state in enumerate(states))
    found = listed("torque", f"<Data>{rows}</Data>")
    assert [(each.job_name, each.number, each.place, each.ending) for each in found] == [
        ("dps.d.cpu.cpu-1", "0", "ended", "0"),
        ("dps.d.cpu.cpu-1", "1", "running", ""),
        ("dps.d.cpu.cpu-1", "2", "waiting", ""),
    ]


def test_lists_of_grid_engine() -> None:
    row = (
        "<job_list><JB_job_number>7</JB_job_number><JB_name>dps.d.cpu.</JB_name>"
        "<state>%s</state><tasks>%s</tasks><full_job_name>dps.d.cpu.cpu-1</full_job_name></job_list>"
    )
    states = [("r", "1"), ("t", "2"), ("dr", "3"), ("Eqw", "4"), ("qw", "5"), ("z", "6-8:2,9")]
    rows = "".join(row % each for each in states)
    found = listed("sge", f"<job_info><queue_info>{rows}</queue_info></job_info>")
    assert [(each.id, each.place) for each in found] == [
        ("7.1", "running"),
        ("7.2", "starting"),
        ("7.3", "running"),
        ("7.4", "waiting"),
        ("7.5", "waiting"),
        ("7.6", "ended"),
        ("7.8", "ended"),
        ("7.9", "ended"),
    ]
    assert "error state" in found[3].reason


# ------------------------------------------------------------------------ how the stop is announced


COUNTING = """\
import signal, sys, time
seen = []
signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
print("up", flush=True)
deadline = time.monotonic() + 20
while not seen and time.monotonic() < deadline:
    time.sleep(0.01)
time.sleep(0.3)
print(len(seen), flush=True)
sys.exit(75)
"""


def started(engine: str, *command: str) -> subprocess.Popen[str]:
    """A job with one worker."""
    row, settings = SCHEDULERS[engine], pool(engine, command=command)
    script = worker_script("cpu", settings, named=row.named, announced_by=row.announced_by)
    return subprocess.Popen(
        ["bash", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "JOB_NAME": "dps.d.cpu.cpu-1"},
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "sent"),
    [
        ("slurm", [signal.SIGTERM]),
        ("sge", [signal.SIGUSR2]),
        ("sge", [signal.SIGUSR1]),
        ("sge", [signal.SIGUSR1, signal.SIGUSR2]),
        ("sge", [signal.SIGTERM]),
        ("pbs", [signal.SIGTERM]),
        ("torque", [signal.SIGTERM]),
        ("lsf", [signal.SIGINT]),
        ("lsf", [signal.SIGUSR2, signal.SIGINT]),
        ("lsf", [signal.SIGTERM]),
    ],
)
def test_whatever_announces_the_stop_is_one_sigterm_for_the_worker(
    engine: str, sent: Sequence[signal.Signals]
) -> None:
    """The signals go to every process of the job, and the exit status is the worker's."""
    job = started(engine, "python3", "-S", "-c", COUNTING)
    assert job.stdout is not None
    assert job.stdout.readline() == "up\n"
    for number in sent:
        os.killpg(job.pid, number)
        time.sleep(0.1)
    assert job.stdout.read() == "1\n"
    assert job.wait(timeout=10) == 75


@pytest.mark.parametrize("engine", ["sge", "pbs", "lsf"])
def test_the_status_of_a_worker_that_ends_at_once_is_not_lost(engine: str) -> None:
    """The signal reaches the shell and the worker together."""
    ends_at_once = "trap 'exit 75' TERM; echo up; sleep 20 >/dev/null & wait"
    for _ in range(10):
        with started(engine, "bash", "-c", ends_at_once) as job:
            assert job.stdout is not None
            assert job.stdout.readline() == "up\n"
            os.killpg(job.pid, signal.SIGTERM)
            assert job.wait(timeout=10) == 75
