"""Reads DP-GEN's machine file, in dpdispatcher's format or an older one.

DP-GEN submits jobs to machines; dpstream's workers are started once and wait for tasks. Of the
machine file only the command, cores and environment of a worker apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpstream.dpgen.key_table import KeyLine, account, mapped, unused
from dpstream.shared.errors import SpecError

SERVICES = {"train": "trainer", "model_devi": "explorer", "fp": "labeler"}
"""The service that replaces each part."""
TRANSPORT = "workers connect to broker and store; nothing is copied to machines"
REQUESTED = "request it where the worker is started"
WAITING = "workers wait for tasks; nothing is polled"

TOP = (
    unused("api_version", "both forms are read"),
    unused("deepmd_version", "given by the trainer's installation and stated in every report"),
    unused("handlers", "use `dpstream logs` and /metrics"),
    unused("deepmd_path", "the trainer uses its installed DeePMD-kit"),
    unused("python_path", "the trainer uses its installed DeePMD-kit"),
    *(mapped(part, f"how each {service} is started") for part, service in SERVICES.items()),
)
PART = (
    mapped(
        "command", "fp: the labeler's command; trainer and explorer use their installed programs"
    ),
    unused("export_command", "the trainer freezes its models"),
    unused("deepmd_path", "the trainer uses its installed DeePMD-kit"),
    unused("python_path", "the trainer uses its installed DeePMD-kit"),
    unused("machine", TRANSPORT),
    mapped("resources", "cores, modules and environment of a worker"),
    unused("group_size", "labels.bundle sets the frames per label task"),
    unused("user_forward_files", "each worker has the files of its codes in a folder of its own"),
    unused(
        "user_backward_files", "workers return energy, forces and virial, and a log of failures"
    ),
)
SCHEDULED = (
    *("number_node", "numb_node", "gpu_per_node", "numb_gpu", "queue_name", "partition"),
    *("custom_flags", "exclude_list", "time_limit", "mem_limit", "account", "qos"),
    *("license_list", "node_cpu", "batch_type", "kwargs", "strategy", "para_deg"),
)
"""Keys for the batch system."""
CORES, LOADED = "cores of a worker", "run before the worker is started"
RESOURCES = (
    mapped("cpu_per_node", CORES),
    mapped("task_per_node", CORES),
    mapped("module_list", LOADED),
    mapped("source_list", LOADED),
    mapped("envs", LOADED),
    mapped("prepend_script", LOADED),
    unused("append_script", "a worker continues with the next task; nothing runs after a task"),
    unused("module_unload_list", REQUESTED),
    unused("module_purge", REQUESTED),
    *(unused(key, REQUESTED) for key in SCHEDULED),
    unused("with_mpi", "part of the labeler's command"),
    unused("group_size", "labels.bundle sets the frames per label task"),
    unused("wait_time", WAITING),
    unused("allow_failure", "a label that fails is a rejection with its reason"),
    unused("cvasp", "use labels.settings.retries"),
)


@dataclass(frozen=True)
class WorkerCommand:
    """How to start one worker of `service`. `before`: shell lines to run first."""

    service: str
    command: str | None
    cores: int | None
    before: tuple[str, ...]


def read_machine(values: Mapping[str, Any]) -> tuple[list[WorkerCommand], list[KeyLine]]:
    """The workers that a machine file describes, and a line for each key. Values of `machine` are
    not shown, because they may contain passwords. Raises `SpecError`."""
    top, parts = _parted(values)
    lines = account({key: value for key, value in top.items() if key not in SERVICES}, TOP)
    workers = []
    for name, part in parts.items():
        shown = {**part, **({"machine": "…"} if "machine" in part else {})}
        resources = _mapping(part.get("resources", {}), f"{name}.resources")
        shown.pop("resources", None)
        lines += account(shown, PART, f"{name}.")
        lines += account(resources, RESOURCES, f"{name}.resources.")
        workers.append(_worker(SERVICES[name], part.get("command"), resources))
    return workers, lines


def _parted(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Split the file into common keys and the keys of each part. The oldest format has keys such as
    `fp_command` instead of parts; of a list of machines the first counts, as in DP-GEN."""
    top: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        name = next((part for part in SERVICES if key.startswith(f"{part}_")), None)
        if key in SERVICES:
            first = value[0] if isinstance(value, list) and value else value
            parts.setdefault(key, {}).update(_mapping(first, key))
        elif name is not None:
            parts.setdefault(name, {})[key.removeprefix(f"{name}_")] = value
        else:
            top[key] = value
    return top, parts


def _mapping(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SpecError(f"{key}: {type(value).__name__}: must be a mapping")
    return value


def _worker(service: str, command: Any, resources: Mapping[str, Any]) -> WorkerCommand:
    cores = resources.get("cpu_per_node", resources.get("task_per_node"))
    modules = [str(module) for module in resources.get("module_list") or ()]
    before = [f"module load {' '.join(modules)}"] if modules else []
    before += [f"source {path}" for path in resources.get("source_list") or ()]
    before += [f"export {key}={value}" for key, value in (resources.get("envs") or {}).items()]
    before += [str(line) for line in resources.get("prepend_script") or ()]
    return WorkerCommand(
        service,
        None if command is None else str(command),
        cores if isinstance(cores, int) else None,
        tuple(before),
    )
