"""What of this machine a process may use: cores and memory, within its limits.

Schedulers and container runtimes limit a process by affinity and by control groups; what the
machine has says little about either.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MIB = 2**20


def cores(root: Path = Path("/")) -> float:
    """Cores that this process may use, perhaps a fraction: the smallest of its affinity and of the
    quotas of its control groups."""
    allowed = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0)
    quotas = [_quota(folder) for folder in _control_groups(root, "cpu")]
    return min([allowed or float(os.cpu_count() or 1), *filter(None, quotas)])


def memory(root: Path = Path("/")) -> float:
    """Memory that this process may use, MiB: what is available on the machine, or less where a
    control group has a limit."""
    limits = [_limit(folder) for folder in _control_groups(root, "memory")]
    return min([_available(root), *filter(None, limits)]) / MIB


def _available(root: Path) -> float:
    """Memory of the machine that is not in use, bytes; all of it where that is not known."""
    words = _words(root / "proc/meminfo")
    if "MemAvailable:" in words:
        return 1024.0 * int(words[words.index("MemAvailable:") + 1])
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups of this process and of their ancestors, whose limits hold as
    well: those of the unified hierarchy and, in the first version, of `controller`. In a container
    the folders below its own are missing, and its own is the root."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or controller in controllers.split(","):
                base = root / "sys/fs/cgroup" / (controller if controllers else "")
                inner = base / path.lstrip("/")
                yield from (each for each in (inner, *inner.parents) if each.is_relative_to(base))


def _quota(folder: Path) -> float | None:
    """Cores that a control group may use; None without a limit."""
    quota, period = (_words(folder / "cpu.max") or ["", ""])[:2]
    if not quota:
        quota, period = (
            "".join(_words(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period")
        )
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _limit(folder: Path) -> float | None:
    """Memory that a control group may use, bytes; None without a limit."""
    words = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
    return float(words[0]) if words and words[0].isdigit() else None


def _words(path: Path) -> list[str]:
    with suppress(OSError):
        return path.read_text().split()
    return []
