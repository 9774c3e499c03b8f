"""Stand-ins for the commands of PBS, Torque and LSF, which no package has.

They run the jobs on this machine, four at a time, and answer as the manuals say: the forms of ids
and lists, exit statuses, and which processes get which signals. Every call reads the jobs from a
folder, starts what has room, and writes them back; there is no daemon.

    python stand_in_scheduler.py KIND COMMAND ARGUMENT...    # KIND: pbs, torque or lsf
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CPUS = 4
INTERVAL = 3.0
"""Seconds of LSF between two signals, and of PBS before SIGKILL; 10 by default."""
HERE = Path(os.environ["STAND_IN_FOLDER"]) if "STAND_IN_FOLDER" in os.environ else Path()
Job = dict[str, Any]


def installed(folder: Path, kind: str) -> dict[str, str]:
    """Writes the commands to a folder; returns the variables that select them."""
    commands = folder / "bin"
    commands.mkdir(parents=True)
    for name in COMMANDS[kind]:
        path = commands / name
        words = shlex.join([sys.executable, "-S", str(Path(__file__).resolve()), kind, name])
        path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        path.chmod(0o755)
    return {"PATH": f"{commands}:{os.environ['PATH']}", "STAND_IN_FOLDER": str(folder)}


@contextmanager
def _jobs() -> Iterator[list[Job]]:
    with (HERE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = HERE / "jobs.json"
        jobs: list[Job] = json.loads(path.read_text()) if path.exists() else []
        _advance(jobs)
        yield jobs
        _advance(jobs)
        path.write_text(json.dumps(jobs))


def _advance(jobs: list[Job]) -> None:
    """Notes what has ended, and starts what has room."""
    for job in jobs:
        path = HERE / f"{job['key']}.status"
        if job["state"] == "running" and path.exists() and path.read_text():
            job["state"], job["status"] = "ended", int(path.read_text())
    for job in jobs:
        if job["state"] == "waiting" and sum(j["state"] == "running" for j in jobs) < CPUS:
            job["state"] = "running"
            _start(job)


def _start(job: Job) -> None:
    """A process in a session of its own starts the job's in another one, and notes its status."""
    subprocess.Popen(
        [sys.executable, "-S", __file__, "run", job["key"], *job["words"]],
        cwd=job["folder"],
        env={**os.environ, **job["variables"]},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 10
    while not (HERE / f"{job['key']}.pid").exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def _run(key: str, *words: str) -> None:
    with (HERE / f"{key}.log").open("ab") as log:
        child = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
    path = HERE / f"{key}.pid"
    path.with_suffix(".new").write_text(str(child.pid))
    path.with_suffix(".new").rename(path)
    status = child.wait()
    (HERE / f"{key}.status").write_text(str(status))


def _signal(job: Job, number: int) -> None:
    """To every process of the job."""
    with suppress(ProcessLookupError):
        os.killpg(int((HERE / f"{job['key']}.pid").read_text()), number)


def _signals(job: Job, *numbers: int) -> None:
    """One after the other, with an interval, by a process of its own."""
    if os.fork() == 0:
        os.setsid()
        for stream in range(3):
            os.close(stream)
        for number in numbers:
            if not (HERE / f"{job['key']}.status").exists():
                _signal(job, number)
            time.sleep(INTERVAL)
        os._exit(0)


def _add(jobs: list[Job], name: str, numbers: Sequence[int], **more: Any) -> int:
    array = 1 + max((job["array"] for job in jobs), default=100)
    for number in numbers:
        own = {
            key: value(array, number) if callable(value) else value for key, value in more.items()
        }
        key = f"{array}.{number}"
        jobs.append(
            {"array": array, "number": number, "name": name, "key": key, "state": "waiting"}
            | {"folder": os.getcwd()}
            | own
        )
    return array


def _options(
    arguments: Sequence[str], plain: Sequence[str] = ()
) -> tuple[dict[str, list[str]], list[str]]:
    """Options with their values, and what follows `--` or is no option."""
    found: dict[str, list[str]] = {}
    left = list(arguments)
    while left and left[0].startswith("-") and left[0] != "--":
        name = left.pop(0)
        found.setdefault(name, []).append("" if name in plain else left.pop(0))
    return found, left[1:] if left[:1] == ["--"] else left


def _script(text: str) -> str:
    path = HERE / f"{time.time_ns()}.sh"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def _find(jobs: list[Job], names: Sequence[str], name_of: Callable[[Job], str]) -> Iterator[Job]:
    """The jobs of these ids; a message and status 153 for others."""
    by_name = {name_of(job): job for job in jobs}
    for name in names:
        if name in by_name:
            yield by_name[name]
        else:
            print(f"qstat: Unknown Job Id {name}", file=sys.stderr)
            PROBLEMS.append(153)


PROBLEMS: list[int] = []

# --------------------------------------------------------------------------------- PBS Professional


def _pbs_name(job: Job) -> str:
    single = job["single"]
    return f"{job['array']}.server" if single else f"{job['array']}[{job['number']}].server"


def pbs_qsub(arguments: Sequence[str]) -> None:
    options, words = _options(arguments)
    if options.get("-q") == ["nowhere"]:
        sys.exit("qsub: Unknown queue")
    first, last = map(int, options.get("-J", ["0-0"])[0].split("-"))
    if "-J" in options and first >= last:
        sys.exit("qsub: illegal -J value")
    name = options["-N"][0]
    single = "-J" not in options

    def variables(array: int, number: int) -> dict[str, str]:
        return {"PBS_JOBNAME": name} | ({} if single else {"PBS_ARRAY_INDEX": str(number)})

    with _jobs() as jobs:
        numbers = range(first, last + 1)
        array = _add(jobs, name, numbers, variables=variables, words=words, single=single)
    print(f"{array}.server" if single else f"{array}[].server")


def pbs_qselect(arguments: Sequence[str]) -> None:
    with _jobs() as jobs:
        alive = [job for job in jobs if job["state"] != "ended" or "-x" in arguments]
        names = [_pbs_name(job) if job["single"] else f"{job['array']}[].server" for job in alive]
    print("\n".join(dict.fromkeys(names)))


def pbs_qstat(arguments: Sequence[str]) -> None:
    options, names = _options(arguments, plain=("-t", "-f", "-x", "-Q"))
    if "-Q" in options:
        return _queues(names, "qstat: Unknown queue")
    with _jobs() as jobs:
        shown = {int(re.split(r"[\[.]", name)[0]) for name in names}
        found = [job for job in jobs if job["array"] in shown]  # with -t also members of arrays
        listed = {_pbs_name(job): _pbs_job(job) for job in found}
        arrays = {job["array"]: job for job in found if not job["single"]}
    for array, job in arrays.items():
        if "-t" in options:
            listed[f"{array}[].server"] = {"Job_Name": job["name"], "job_state": "B"}
    print(json.dumps({"timestamp": 1, "pbs_server": "server", "Jobs": listed}))


def _pbs_job(job: Job) -> dict[str, Any]:
    states = {"waiting": "Q", "running": "R", "ended": "F" if job["single"] else "X"}
    found: dict[str, Any] = {"Job_Name": job["name"], "job_state": states[job["state"]]}
    if job["state"] == "waiting":
        found["comment"] = "Not Running: Insufficient amount of resource: ncpus"
    if job.get("status") is not None:
        found["Exit_status"] = job["status"] if job["status"] >= 0 else 256 - job["status"]
    return found


def pbs_qdel(arguments: Sequence[str]) -> None:
    with _jobs() as jobs:
        for job in _find(jobs, arguments, _pbs_name):
            if job["state"] == "running":
                _signals(job, signal.SIGTERM, signal.SIGKILL)
            elif job["state"] == "waiting":
                job["state"] = "ended"


def pbs_qsig(arguments: Sequence[str]) -> None:
    options, names = _options(arguments)
    with _jobs() as jobs:
        for job in _find(jobs, names, _pbs_name):
            if job["state"] == "running":
                _signal(job, getattr(signal, options["-s"][0]))
            else:
                print("qsig: Request invalid for state of job", file=sys.stderr)
                PROBLEMS.append(18)


def _queues(names: Sequence[str], refusal: str) -> None:
    if "nowhere" in names:
        sys.exit(f"{refusal} {names[0]}")
    print("Queue  Max  Tot Ena Str\nmain     0    0 yes yes")


# ----------------------------------------------------------------------------------------- Torque


def _torque_name(job: Job) -> str:
    return f"{job['array']}[{job['number']}].server"


def torque_qsub(arguments: Sequence[str]) -> None:
    """The login shell gets the name of the script; its start-up file has `trap : TERM`."""
    options, _ = _options(arguments)
    if options.get("-q") == ["nowhere"]:
        sys.exit("qsub: submit error (Unknown queue MSG=cannot locate queue)")
    first, last = map(int, options["-t"][0].split("-"))
    name, script = options["-N"][0], _script(sys.stdin.read())

    def variables(array: int, number: int) -> dict[str, str]:
        return {"PBS_JOBNAME": f"{name}-{number}", "PBS_ARRAYID": str(number)}

    with _jobs() as jobs:
        words = ["bash", "-c", f"trap : TERM; {script}; exit $?"]
        array = _add(jobs, name, range(first, last + 1), variables=variables, words=words)
    print(f"{array}[].server")


def torque_qstat(arguments: Sequence[str]) -> None:
    options, names = _options(arguments, plain=("-t", "-x", "-Q"))
    if "-Q" in options:
        return _queues(names, "qstat: Unknown queue")
    states = {"waiting": "Q", "running": "R", "ended": "C"}
    rows = []
    with _jobs() as jobs:
        for job in jobs:
            status = job.get("status")
            done = "" if status is None else status if status >= 0 else 256 - status
            rows.append(
                f"<Job><Job_Id>{_torque_name(job)}</Job_Id>"
                f"<Job_Name>{job['name']}-{job['number']}</Job_Name>"
                f"<job_state>{states[job['state']]}</job_state>"
                + (f"<exit_status>{done}</exit_status>" if done != "" else "")
                + "</Job>"
            )
    print(f"<Data>{''.join(rows)}</Data>" if rows else "", end="")


def torque_qdel(arguments: Sequence[str]) -> None:
    with _jobs() as jobs:
        for job in _find(jobs, arguments, _torque_name):
            if job["state"] == "running":
                _signals(job, signal.SIGTERM, signal.SIGKILL)
            elif job["state"] == "waiting":
                job["state"] = "ended"


def torque_qsig(arguments: Sequence[str]) -> None:
    options, names = _options(arguments)
    with _jobs() as jobs:
        for job in _find(jobs, names, _torque_name):
            if job["state"] == "running":
                _signal(job, getattr(signal, options["-s"][0]))


# -------------------------------------------------------------------------------------------- LSF


def _lsf_name(job: Job) -> str:
    return f"{job['array']}[{job['number']}]"


def lsf_bsub(arguments: Sequence[str]) -> None:
    options, _ = _options(arguments, plain=("-rn",))
    if options.get("-q") == ["nowhere"]:
        sys.exit("nowhere: No such queue. Job not submitted.")
    name, first, last = re.fullmatch(r"(.*)\[(\d+)-(\d+)\]", options["-J"][0]).groups()  # type: ignore[union-attr]
    script = _script(sys.stdin.read())

    def variables(array: int, number: int) -> dict[str, str]:
        return {"LSB_JOBNAME": f"{name}[{number}]", "LSB_JOBINDEX": str(number)}

    with _jobs() as jobs:
        numbers = range(int(first), int(last) + 1)
        array = _add(jobs, name, numbers, variables=variables, words=[script])
    print(f"Job <{array}> is submitted to default queue <normal>.")


def lsf_bjobs(arguments: Sequence[str]) -> None:
    options, _ = _options(arguments, plain=("-a", "-noheader"))
    prefix = options["-J"][0].rstrip("*")
    with _jobs() as jobs:
        found = [job for job in jobs if job["name"].startswith(prefix)]
    if not found:
        print(f"Job <{prefix}*> is not found", file=sys.stderr)
        sys.exit(255)
    for job in found:
        fields = options["-o"][0].partition(" delimiter")[0].split()
        print("|".join(_lsf_values(job)[field] for field in fields))


def _lsf_values(job: Job) -> dict[str, str]:
    status = job.get("status")
    ended = "DONE" if status == 0 else "EXIT"
    reason = job.get("reason", "-")
    waits = "Job slot limit reached;" if job["state"] == "waiting" else "-"
    return {
        "jobid": str(job["array"]),
        "jobindex": str(job["number"]),
        "job_name": f"{job['name']}[{job['number']}]",
        "stat": {"waiting": "PEND", "running": "RUN", "ended": ended}[job["state"]],
        "exit_code": "-" if not status else str(status if status > 0 else 128 - status),
        "exit_reason": reason,
        "pend_reason": waits,
    }


def lsf_bkill(arguments: Sequence[str]) -> None:
    options, names = _options(arguments)
    with _jobs() as jobs:
        for job in _find(jobs, names, _lsf_name):
            if job["state"] == "waiting":
                job["state"], job["reason"] = "ended", "TERM_OWNER: job killed by owner"
            elif job["state"] == "running" and "-s" in options:
                _signal(job, getattr(signal, f"SIG{options['-s'][0]}"))
            elif job["state"] == "running":
                job["reason"] = "TERM_OWNER: job killed by owner"
                _signals(job, signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


def lsf_bqueues(arguments: Sequence[str]) -> None:
    _queues(arguments, "No such queue:")


COMMANDS: dict[str, dict[str, Callable[[Sequence[str]], None]]] = {
    "pbs": {
        "qsub": pbs_qsub,
        "qselect": pbs_qselect,
        "qstat": pbs_qstat,
        "qdel": pbs_qdel,
        "qsig": pbs_qsig,
    },
    "torque": {
        "qsub": torque_qsub,
        "qstat": torque_qstat,
        "qdel": torque_qdel,
        "qsig": torque_qsig,
    },
    "lsf": {"bsub": lsf_bsub, "bjobs": lsf_bjobs, "bkill": lsf_bkill, "bqueues": lsf_bqueues},
}

if __name__ == "__main__":
    if sys.argv[1] == "run":
        _run(*sys.argv[2:])
    else:
        COMMANDS[sys.argv[1]][sys.argv[2]](sys.argv[3:])
        sys.exit(PROBLEMS[0] if PROBLEMS else 0)
