"""Converts the machines of DP-GEN's machine file to the pools of a fleet file.

DP-GEN submits a job for a group of tasks. A worker of a pool is one such job that waits for tasks:
it gets what the job got, or its share where a job ran several tasks at once.
"""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dpstream.dpgen.machines.machine import FLAGS, Machine
from dpstream.dpgen.machines.sbatch_options import read_options
from dpstream.services.coordinator.fleet.pools import assigned
from dpstream.shared.environment import is_secret
from dpstream.shared.errors import SpecError, errors_at
from dpstream.shared.runtime.child_process import PINNED

Json = dict[str, Any]
ENGINES = {"slurm": "slurm", "slurmjobarray": "slurm", "shell": "process", "local": "process"}
"""Fleet engines by batch_type, in lower case."""
CLOUD = "the cloud service Bohrium, which runs jobs on machines of its own"
UNCONVERTED = ("pbs", "torque", "sge", "lsf")
"""Batch systems with a fleet engine of that name, whose directives are not converted."""
ELSEWHERE = {
    "fugaku": "the job system of Fugaku",
    "jh_unischeduler": "JH UniScheduler",
    "distributedshell": "applications of a Hadoop cluster (YARN)",
    **dict.fromkeys(("bohrium", "dpcloudserver", "lebesgue", "openapi"), CLOUD),
}
"""Batch systems that no fleet engine uses."""
MOST = {"slurm": 20, "process": 1}
"""`max` of a pool; DP-GEN's files have no limit."""
MARGIN = 0.95
"""Lifetime of a worker as a share of its walltime."""
MOST_BUNDLED = 100
"""Largest labels.bundle."""
HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OWN_INPUT = {"cp2k", "qe"}
"""Codes whose worker adds the input file to the command."""
INPUT = re.compile(r"\s+(<|-i|-in|-inp|-input)\s*\S+")
OUTPUT = re.compile(r"\s+(1?>|2>|&>|\|\||\|\s*tee\b).*")
SHELL = re.compile(r"[<>|&;`$()]")
HEAD = """\
# Pools of workers, converted from DP-GEN's {file}. Every key: dpstream fleet schema
#
# To do before use:
# - Append to `source` of each pool a file that exports the access of its workers: DPSTREAM_BROKER,
#   DPSTREAM_STORE and its keys.
# - Set `max`, the largest number of workers: DP-GEN's file has no limit.
# Then run: dpstream fleet check

deployment: {deployment}
pools:
"""
REMOTE = """\
    # command: [/path/to/python, -m, dpstream.services.{service}]   # of dpstream on that machine
"""


@dataclass(frozen=True)
class Labels:
    """The campaign's labeling code; `is_own`: the one of fp_style, to which the machine file's
    command belongs."""

    code: str
    is_own: bool


@dataclass(frozen=True)
class Pool:
    """One pool. `notes`: what it does not take over, and why."""

    name: str
    machine: Machine
    settings: Json
    notes: tuple[str, ...]


def read_pools(machines: Sequence[Machine], labels: Labels) -> tuple[list[Pool], list[str]]:
    """The pools of `machines`, and a line for each of the machines without one. Raises
    `SpecError`."""
    pools: list[Pool] = []
    without: list[str] = []
    numbers: Counter[str] = Counter()
    for machine in machines:
        reason = _reason_for_none(machine)
        if reason:
            without.append(
                f"{machine.where}: no pool: {reason}; start its workers yourself: "
                f"python -m dpstream.services.{machine.service}"
            )
            continue
        numbers[machine.service] += 1
        number = numbers[machine.service]
        name = f"{machine.service}s" + (f"-{number}" if number > 1 else "")
        with errors_at(machine.where, ValueError):  # e.g. quotes that are not closed
            settings, notes = _Conversion(machine, labels).pool()
        pools.append(Pool(name, machine, settings, tuple(notes)))
    return pools, without


def read_bundle(machines: Sequence[Machine]) -> int | None:
    """Frames per label task as in DP-GEN: the tasks that a job of `fp` runs one after another. None
    if the file has no such limit."""
    fp = next((machine for machine in machines if machine.part == "fp"), None)
    if fp is None:
        return None
    size = _number(fp, "group_size", 0)
    if _batch(fp).lower() == "slurmjobarray":
        size = int(_section(fp, "kwargs").get("slurm_job_size", 1))
    return min(MOST_BUNDLED, math.ceil(size / _tasks_at_once(fp))) or None


def fleet_text(deployment: str, pools: Sequence[Pool], file: str) -> str:
    """The fleet file with comments. `file`: name of the machine file."""
    return HEAD.format(deployment=deployment, file=file) + "\n".join(map(_pool_text, pools))


def _pool_text(pool: Pool) -> str:
    title = f"  # {pool.machine.where}: {_batch(pool.machine)}"
    comments = [title, *(f"  # {note}" for note in pool.notes)]
    text = yaml.safe_dump(
        {pool.name: pool.settings},
        sort_keys=False,
        default_flow_style=None,
        width=1000,
        allow_unicode=True,
    )
    body = "".join(f"  {line}\n" for line in text.splitlines())
    is_remote = "submit_prefix" in pool.settings.get("slurm", {})
    command = REMOTE.format(service=pool.machine.service) if is_remote else ""
    return "\n".join(comments) + "\n" + body + command


# -------------------------------------------------------------------------------------- a machine


def _batch(machine: Machine) -> str:
    given = machine.connection
    for key in ("batch_type", "batch", "machine_type"):
        if given.get(key):
            return str(given[key])
    return str(machine.resources.get("batch_type") or "")


def _is_ssh(machine: Machine) -> bool:
    """Whether its jobs are submitted by ssh; the oldest files have no context_type."""
    context = machine.connection.get("context_type")
    if context is None:
        return bool(machine.connection.get("hostname"))
    return str(context).lower().startswith("ssh")


def _reason_for_none(machine: Machine) -> str:
    """Why a machine becomes no pool, or an empty string."""
    batch = _batch(machine)
    if not batch:
        return "it has no batch_type"
    engine = ENGINES.get(batch.lower())
    if batch.lower() in UNCONVERTED:
        return (
            "only the directives of Slurm are converted, and the engine "
            f"{batch.lower()} runs the pool that you write"
        )
    if engine is None:
        other = ELSEWHERE.get(batch.lower(), "unknown")
        same = other.lower() == batch.lower()
        return f"no fleet engine for {batch}" + ("" if same else f" ({other})")
    if engine == "process" and _is_ssh(machine):
        return "the engine process starts workers on the coordinator's machine only, not by ssh"
    return ""


def _number(machine: Machine, key: str, default: int) -> int:
    given = machine.resources.get(key)
    value = default if given is None else given
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SpecError(f"{machine.where}.resources.{key}: {value!r}: must be a whole number")
    return value


def _section(machine: Machine, key: str) -> Json:
    value = machine.resources.get(key) or {}
    if not isinstance(value, dict):
        raise SpecError(f"{machine.where}.resources.{key}: {value!r}: must be a mapping")
    return value


def _tasks_at_once(machine: Machine) -> int:
    """Tasks that a job runs at the same time."""
    strategy = _section(machine, "strategy")
    devices = _number(machine, "gpu_per_node", 0) if strategy.get("if_cuda_multi_devices") else 1
    return max(1, _number(machine, "para_deg", 1)) * max(1, devices)


class _Conversion:
    """Converts one machine to the settings of a pool, and collects the notes."""

    def __init__(self, machine: Machine, labels: Labels) -> None:
        self.machine, self.labels = machine, labels
        self.engine = ENGINES[_batch(machine).lower()]
        self.notes: list[str] = []
        self.options = read_options(self._texts("custom_flags"))
        self.nodes = self._nodes()

    def pool(self) -> tuple[Json, list[str]]:
        settings = {
            "engine": self.engine,
            "serves": self._serves(),
            **self._size(),
            "max": MOST[self.engine],
            **self._environment(),
        }
        if self.engine == "slurm":
            settings |= self._slurm()
        self._note_rest()
        return {key: value for key, value in settings.items() if value}, self.notes

    def _serves(self) -> list[str]:
        queues = {"trainer": ["train"], "explorer": ["explore", "judge", "screen"]}
        return queues.get(self.machine.service, [f"label.{self.labels.code}"])

    # ------------------------------------------------------------------------ cores, GPUs, memory

    def _nodes(self) -> int:
        given = int(self.options.keys.get("nodes", _number(self.machine, "number_node", 1)))
        if given > 1 and self.machine.service != "labeler":
            self.notes.append(f"{given} nodes: a {self.machine.service} uses one")
            return 1
        return max(1, given)

    def _size(self) -> Json:
        cpus = int(self.options.keys.get("cpus", _number(self.machine, "cpu_per_node", 1)))
        gpus = 0 if self._custom_gpu_line() else _number(self.machine, "gpu_per_node", 0)
        limit = int(self.machine.resources.get("mem_limit") or 0)
        memory = self.options.keys.get("memory", f"{limit}G" if limit > 0 else None)
        several = _tasks_at_once(self.machine)
        if several > 1 and self.nodes == 1:
            self.notes.append(f"{several} tasks shared a job; a worker has one and its share")
            cpus, gpus = cpus // several, min(gpus, 1)
            memory = None if memory is None else _part_of(memory, several)
        return {"cpus": max(1, cpus), "gpus": gpus, "memory": memory}

    def _custom_gpu_line(self) -> str:
        return str(_section(self.machine, "kwargs").get("custom_gpu_line") or "")

    # ------------------------------------------------------------------------ what is run first

    def _environment(self) -> Json:
        resources = self.machine.resources
        sources = [text for text in self._texts("source_list") if text.strip()]
        plain = [text for text in sources if re.fullmatch(r"(/|~/)\S+", text)]
        more = [f"source {text}" for text in sources if text not in plain]
        lines = [*self.options.lines, *more, *self._texts("prepend_script")]
        return {
            "module_purge": bool(resources.get("module_purge")),
            "module_unload": self._words("module_unload_list"),
            "modules": self._words("module_list"),
            "source": plain,
            "envs": dict(self._envs()),
            "prepend": [*self._without_secrets(lines), *self._scratch()],
        }

    def _envs(self) -> Iterator[tuple[str, str]]:
        for name, value in _section(self.machine, "envs").items():
            several = value if isinstance(value, list) else [value]
            if is_secret(name):
                self.notes.append(f"envs: {name}: a secret; export it in a file under source")
            elif not VARIABLE.fullmatch(name):
                self.notes.append(f"envs: {name!r}: no name of a variable")
            elif name in PINNED:
                self.notes.append(f"envs: {name}: the worker sets it, to 1 under mpirun and srun")
            elif several:
                yield name, str(several[-1])
        command = self._labeler_command()
        if command:
            yield "DPSTREAM_LABELER_COMMANDS", f"{self.labels.code}={command}"

    def _without_secrets(self, lines: Sequence[str]) -> Iterator[str]:
        for line in lines:
            names = [name for name in assigned(line) if is_secret(name)]
            if names:
                self.notes.append(
                    f"prepend_script: {names[0]}: a secret; export it in a file under source"
                )
            else:
                yield line

    def _labeler_command(self) -> str | None:
        """The command of the labeling program, without the files that its worker adds."""
        given = self.machine.command
        if given is None or self.machine.service != "labeler" or not self.labels.is_own:
            return None
        command = OUTPUT.sub("", given).strip()
        if self.labels.code in OWN_INPUT:
            command = INPUT.sub("", command)
        if SHELL.search(command):
            self.notes.append(
                f"command: {given!r}: not run by a shell; set DPSTREAM_LABELER_COMMANDS in envs"
            )
            return None
        return command

    def _scratch(self) -> list[str]:
        """With several nodes, the files of a task must be on a file system that all of them see."""
        if self.nodes == 1 or self.engine != "slurm":
            return []
        root = self._root()
        if root is None:
            self.notes.append(
                f"{self.nodes} nodes: set DPSTREAM_SCRATCH to a folder that they share"
            )
            return []
        return [f"export DPSTREAM_SCRATCH={shlex.quote(root)}/$SLURM_JOB_ID"]

    # ------------------------------------------------------------------------ Slurm

    def _slurm(self) -> Json:
        resources, keys = self.machine.resources, self.options.keys
        limit = keys.get("time_limit") or resources.get("time_limit")
        seconds = walltime(str(limit)) if limit else None
        slurm = {
            "partition": keys.get("partition") or resources.get("queue_name"),
            "account": keys.get("account") or resources.get("account"),
            "qos": keys.get("qos") or resources.get("qos"),
            "nodes": self.nodes if self.nodes > 1 else None,
            "time_limit": str(limit) if limit else None,
            "submit_prefix": self._ssh() if _is_ssh(self.machine) else [],
            "flags": self._flags(),
        }
        return {
            "lifetime": None if seconds is None else _lifetime(seconds),
            "slurm": {key: value for key, value in slurm.items() if value},
        }

    def _flags(self) -> list[str]:
        flags = []
        for key, option in FLAGS.items():
            value = self.machine.resources.get(key)
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value or "")
            flags += [f"{option}={text}"] if text not in ("", "0", "-1") else []
        root = self._root()
        if root is not None and _is_ssh(self.machine):
            flags.append(f"--chdir={root}")
            self.notes.append(f"logs of the workers are in {root}, which must exist")
        return [*flags, *read_options([self._custom_gpu_line()]).flags, *self.options.flags]

    def _root(self) -> str | None:
        """The folder in which DP-GEN's jobs ran on that machine."""
        given = self.machine.connection.get("remote_root", self.machine.connection.get("work_path"))
        return str(given) if str(given).startswith("/") else None

    def _ssh(self) -> list[str]:
        given = self.machine.connection
        host, user = str(given.get("hostname", "")), str(given.get("username") or "")
        if not HOST.fullmatch(host) or (user and not USER.fullmatch(user)):
            raise SpecError(
                f"{self.machine.where}.machine: hostname, username: must be plain names"
            )
        port = [] if given.get("port") in (None, 22) else ["-p", str(given["port"])]
        key = ["-i", str(given["key_filename"])] if given.get("key_filename") else []
        if given.get("password") or given.get("passphrase") or given.get("totp_secret"):
            self.notes.append("passwords are not copied: ssh needs a key, e.g. of ssh-agent")
        return ["ssh", *port, *key, f"{user}@{host}" if user else host]

    # ------------------------------------------------------------------------ the rest

    def _note_rest(self) -> None:
        self.notes += [f"custom_flags: {text}" for text in self.options.left_out]
        if self.machine.resources.get("append_script"):
            self.notes.append("append_script: nothing runs after a worker")
        if _section(self.machine, "strategy").get("customized_script_header_template_file"):
            self.notes.append(
                "strategy: copy the options of the header template to slurm.flags yourself"
            )

    def _texts(self, key: str) -> list[str]:
        given = self.machine.resources.get(key) or []
        return [str(text) for text in (given if isinstance(given, list) else [given])]

    def _words(self, key: str) -> list[str]:
        return [word for text in self._texts(key) for word in shlex.split(text)]


def _part_of(memory: str, tasks: int) -> str:
    units = "KMGT"
    amount, unit = int(memory[:-1]), units.index(memory[-1])
    while amount % tasks and unit:
        amount, unit = amount * 1024, unit - 1
    return f"{max(1, amount // tasks)}{units[unit]}"


def walltime(text: str) -> float | None:
    """Seconds of Slurm's `minutes`, `minutes:seconds`, `hours:minutes:seconds`, `days-hours` and so
    on; None for other texts, e.g. UNLIMITED."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if found is None:
        return None
    days, first, second, third = (int(part or 0) for part in found.groups())
    if found[1] is not None or found[4] is not None:
        return 86400.0 * days + 3600 * first + 60 * second + third
    return 60.0 * first + second


def _lifetime(walltime: float) -> str:
    """A time that leaves room for the end of a worker, in whole hours or minutes."""
    minutes = max(1, int(walltime * MARGIN / 60))
    return f"{minutes // 60}h" if minutes >= 120 else f"{minutes}m"
