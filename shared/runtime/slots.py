"""How many tasks a worker process has in hand at once: its slots.

Each slot is a worker of its own, with an engine of its own. `auto` takes as many as the cores and
the memory that the process may use allow, and a GPU's memory where tasks use one.
"""

from __future__ import annotations

from dataclasses import dataclass

from dpstream.shared.logs import logger
from dpstream.shared.runtime import machine
from dpstream.shared.settings import Slots

log = logger()


@dataclass(frozen=True)
class Capacity:
    """What a process may use: cores, memory in MiB, and the memory of its GPU in MiB, None without
    a GPU."""

    cores: float
    memory: float
    gpu_memory: float | None = None


@dataclass(frozen=True)
class Need:
    """What one task takes: threads, memory in MiB, and memory of a GPU in MiB where it uses one."""

    threads: int
    memory: float
    gpu_memory: float = 0.0


def fitting(capacity: Capacity, need: Need) -> int:
    """Tasks that fit at once; at least one."""
    counts = [capacity.cores / need.threads, capacity.memory / need.memory]
    if capacity.gpu_memory is not None and need.gpu_memory:
        counts.append(capacity.gpu_memory / need.gpu_memory)
    return max(1, int(min(counts)))


def this_process(gpu_memory: float | None = None) -> Capacity:
    """The capacity of this process; `gpu_memory`: of the GPU that its tasks use, MiB."""
    return Capacity(machine.cores(), machine.memory(), gpu_memory)


def slots_of(setting: Slots, capacity: Capacity, need: Need, beside: int = 0) -> int:
    """The number of slots that the setting means; `auto` leaves room for `beside` workers of the
    process that are no slots."""
    if setting != "auto":
        return setting
    count = max(1, fitting(capacity, need) - beside)
    log.info(
        "slots chosen",
        slots=count,
        cores=round(capacity.cores, 2),
        memory_mib=round(capacity.memory),
        gpu_memory_mib=None if capacity.gpu_memory is None else round(capacity.gpu_memory),
    )
    return count
