"""Reads DP-GEN's machine file, in dpdispatcher's format or an older one.

It lists machines for the three parts of an iteration; `pools` turns each into a pool of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpstream.dpgen.key_table import KeyLine, account, mapped, unused
from dpstream.shared.errors import SpecError

SERVICES = {"train": "trainer", "model_devi": "explorer", "fp": "labeler"}
"""The service that replaces each part."""
TRANSPORT = "workers connect to broker and store; nothing is copied to machines"
INSTALLED = "the trainer uses its installed DeePMD-kit"

TOP = (
    unused("api_version", "both forms are read"),
    unused("deepmd_version", "given by the trainer's installation and stated in every report"),
    unused("handlers", "use `dpstream logs` and /metrics"),
    unused("deepmd_path", INSTALLED),
    unused("python_path", INSTALLED),
    *(mapped(part, f"pools of {service}s, one per machine") for part, service in SERVICES.items()),
)
PART = (
    mapped(
        "command",
        "fp: DPSTREAM_LABELER_COMMANDS in envs; trainer and explorer use their installed programs",
    ),
    unused("export_command", "the trainer freezes its models"),
    unused("deepmd_path", INSTALLED),
    unused("python_path", INSTALLED),
    mapped("machine", "engine, slurm.submit_prefix: see below"),
    mapped("resources", "what a worker of the pool gets: see below"),
    mapped("group_size", "fp: labels.bundle"),
    mapped(
        "user_forward_files",
        "fp with fp_style custom: labels.settings.files; else each worker has the files of its "
        "codes in a folder of its own",
    ),
    unused(
        "user_backward_files", "workers return energy, forces and virial, and a log of failures"
    ),
)
SSH, OWN_SSH = "slurm.submit_prefix, with ssh", "belongs in ~/.ssh/config"
ROOT = "slurm.flags: --chdir, with ssh; DPSTREAM_SCRATCH in prepend, with several nodes"
NO_SECRETS = "secrets are never copied; ssh uses its keys"
MACHINE = (
    mapped("batch_type", "engine"),
    mapped("batch", "engine"),
    mapped("machine_type", "engine"),
    mapped("context_type", SSH),
    mapped("hostname", SSH),
    mapped("username", SSH),
    mapped("port", SSH),
    mapped("key_filename", SSH),
    mapped("remote_profile", SSH),
    mapped("remote_root", ROOT),
    mapped("work_path", ROOT),
    unused("local_root", TRANSPORT),
    unused("lazy_local", TRANSPORT),
    unused("create_remote_root", TRANSPORT),
    unused("clean_asynchronously", TRANSPORT),
    unused("tar_compress", TRANSPORT),
    unused("archive_chunk_size", TRANSPORT),
    unused("password", NO_SECRETS),
    unused("passphrase", NO_SECRETS),
    unused("totp_secret", NO_SECRETS),
    unused("timeout", OWN_SSH),
    unused("look_for_keys", OWN_SSH),
    unused("proxy_command", OWN_SSH),
    unused("execute_command", OWN_SSH),
    unused("retry_count", "a pool pauses after three failures in a row"),
)
"""Keys of `machine` and of its `remote_profile`."""
FLAGS = {
    "exclude_list": "--exclude",
    "license_list": "--licenses",
    "constraint_list": "--constraint",
    "cpus_per_task": "--cpus-per-task",
}
"""Older keys with the option of sbatch that they set."""
RESOURCES = (
    mapped("number_node", "fp: slurm.nodes"),
    mapped("numb_node", "fp: slurm.nodes"),
    mapped("cpu_per_node", "cpus"),
    mapped("task_per_node", "cpus"),
    mapped("node_cpu", "cpus"),
    mapped("gpu_per_node", "gpus"),
    mapped("numb_gpu", "gpus"),
    mapped("queue_name", "slurm.partition"),
    mapped("partition", "slurm.partition"),
    mapped("account", "slurm.account"),
    mapped("qos", "slurm.qos"),
    mapped("time_limit", "slurm.time_limit, and lifetime a little below it"),
    mapped("mem_limit", "memory"),
    mapped(
        "custom_flags",
        "slurm.partition, account, qos, nodes and time_limit, cpus, memory; the rest slurm.flags",
    ),
    *(mapped(key, f"slurm.flags: {option}") for key, option in FLAGS.items()),
    mapped("batch_type", "engine"),
    mapped("kwargs", "custom_gpu_line: slurm.flags; slurm_job_size: labels.bundle"),
    mapped("para_deg", "a worker has one task: cpus and gpus are its share of a job"),
    mapped("strategy", "if_cuda_multi_devices: gpus is 1, and cpus the share of one GPU"),
    mapped("module_purge", "module_purge"),
    mapped("module_unload_list", "module_unload"),
    mapped("module_list", "modules"),
    mapped("source_list", "source; prepend for entries with arguments"),
    mapped("envs", "envs, without secrets and thread counts"),
    mapped("prepend_script", "prepend, without lines that set secrets"),
    unused("append_script", "a worker replaces its script; nothing runs after it"),
    unused("with_mpi", "part of the labeler's command"),
    mapped("group_size", "fp: labels.bundle"),
    unused("wait_time", "a launch is one submission; a pool has at most 20 per minute"),
    unused("allow_failure", "a label that fails is a rejection with its reason"),
    unused("cvasp", "use labels.settings.retries"),
)
RENAMED = {
    "numb_node": "number_node",
    "task_per_node": "cpu_per_node",
    "node_cpu": "cpu_per_node",
    "numb_gpu": "gpu_per_node",
    "partition": "queue_name",
}
"""Older names of resources."""
EXPLORATION = {"lmp_command": "model_devi_command"}
"""Its name in the oldest files."""


@dataclass(frozen=True)
class Machine:
    """One machine of `part`. `where`: its place in the file, e.g. `fp[1]`; `connection`: the keys
    of `machine` and `remote_profile`; `resources`: by their present names; `files`: those of
    user_forward_files."""

    part: str
    where: str
    command: str | None
    connection: Mapping[str, Any]
    resources: Mapping[str, Any]
    files: tuple[str, ...] = ()

    @property
    def service(self) -> str:
        return SERVICES[self.part]


def read_machine(values: Mapping[str, Any]) -> tuple[list[Machine], list[KeyLine]]:
    """The machines of a file, and a line for each key. Values of `machine` are not shown, because
    they may contain passwords. Raises `SpecError`."""
    top, parts = _parted(values)
    lines = account(top, TOP)
    machines = []
    for part, given in parts.items():
        for number, one in enumerate(given):
            where = part if len(given) == 1 else f"{part}[{number}]"
            machines.append(_machine(part, where, one, lines))
    return machines, lines


def _machine(part: str, where: str, values: dict[str, Any], lines: list[KeyLine]) -> Machine:
    """One machine; its keys are added to `lines`."""
    machine = _mapping(values.pop("machine", {}), f"{where}.machine")
    profile = _mapping(machine.get("remote_profile") or {}, f"{where}.machine.remote_profile")
    resources = _mapping(values.pop("resources", {}), f"{where}.resources")
    connection = {**machine, **profile}
    connection.pop("remote_profile", None)
    lines += account(values, PART, f"{where}.")
    lines += _hidden(account(connection, MACHINE, f"{where}.machine."))
    lines += account(resources, RESOURCES, f"{where}.resources.")
    resources = {RENAMED.get(key, key): value for key, value in resources.items()}
    if "group_size" in values:
        resources.setdefault("group_size", values["group_size"])
    command = values.get("command")
    files = tuple(map(str, values.get("user_forward_files") or ()))
    command = None if command is None else str(command)
    return Machine(part, where, command, connection, resources, files)


def _hidden(lines: Sequence[KeyLine]) -> Iterator[KeyLine]:
    for line in lines:
        shown = line.key.endswith(("batch_type", "machine_type", "context_type", ".batch"))
        yield line if shown else KeyLine(line.key, "…", line.fate, line.words)


def _parted(
    values: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Split the file into common keys and the machines of each part. The oldest format has keys
    such as `fp_command` instead of parts."""
    top: dict[str, Any] = {}
    parts: dict[str, list[dict[str, Any]]] = {}
    for given, value in values.items():
        key = EXPLORATION.get(given, given)
        name = next((part for part in SERVICES if key.startswith(f"{part}_")), None)
        if key in SERVICES:
            several = value if isinstance(value, list) and value else [value]
            flat = parts.get(key, [{}])[0]
            parts[key] = [{**flat, **_mapping(one, key)} for one in several]
        elif name is not None:
            parts.setdefault(name, [{}])[0][key.removeprefix(f"{name}_")] = value
        else:
            top[key] = value
    return top, parts


def _mapping(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SpecError(f"{key}: {type(value).__name__}: must be a mapping")
    return value
