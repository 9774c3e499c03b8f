"""Waits, in the explorer's child process, for a program that it started."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import suppress

from dpstream.shared.runtime.child_process import progressed


def ended(program: subprocess.Popen[bytes], written: Callable[[], int]) -> int:
    """The exit status of a program. It makes progress while `written`, the bytes of its output,
    grows."""
    size = 0
    while True:
        with suppress(subprocess.TimeoutExpired):
            return program.wait(1.0)
        now = written()
        if now > size:
            size = now
            progressed()
