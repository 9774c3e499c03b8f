"""`python -m tests.support.deployments.jumping_clock FILE MODULE …`: the same program, with another
wall clock.

It is ahead by the seconds in FILE. Whoever writes the file sets the clock of a live process.
"""

from __future__ import annotations

import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path


def jumping(clock: Callable[[], float], file: Path) -> Callable[[], float]:
    return lambda: clock() + float(file.read_text())


if __name__ == "__main__":
    file, *sys.argv = sys.argv[1:]
    time.time = jumping(time.time, Path(file))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
