"""Finds the processes that survive the process which started them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from dpstream.deploy.devcluster.processes import ProcessRecord
from dpstream.deploy.devcluster.waiting import within

PROMPT = 60.0


def descendants(pid: int) -> set[int]:
    return {child.pid for child in psutil.Process(pid).children(recursive=True)}


def outlived(
    code: str, folder: Path, busy: Callable[[set[int]], bool], seconds: float = 10.0
) -> set[int]:
    """Run `code` in `folder` by a Python of its own, kill that alone as soon as it is `busy` with
    its descendants; those of them that still live `seconds` later."""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=folder)
    try:
        assert within(PROMPT, lambda: busy(descendants(parent.pid)))
        started = descendants(parent.pid)
    finally:
        parent.kill()
        parent.wait()
    within(seconds, lambda: not any(map(ProcessRecord.find, started)))
    return {pid for pid in started if ProcessRecord.find(pid)}
