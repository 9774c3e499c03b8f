"""Labeling programs on this machine: their commands, versions and environment."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from dpstream.services.labeler.machine_settings import machine_settings
from dpstream.shared.activity import BATCH_LAUNCHERS
from dpstream.shared.environment import passed_environment
from dpstream.shared.errors import SpecError
from dpstream.shared.runtime.child_process import PINNED, homes

LAUNCHERS = frozenset({"mpirun", "mpiexec"}) | BATCH_LAUNCHERS
"""Programs that start one process per core, each with one thread."""
PROBE_SECONDS = 60.0
"""Time limit for a program to print its version."""
PACKAGES = {"cp2k.psmp": "cp2k cp2k-data", "pw.x": "quantum-espresso"}
"""Debian packages that contain the program."""


def command_of(code: str, program: str, cores: int) -> list[str]:
    """The command that runs `code` on `cores` cores: that of the machine's settings, else
    `program`, with mpirun if it is installed and `cores` is above one."""
    parallel = cores > 1 and shutil.which("mpirun") is not None
    launcher = ["mpirun", "-np", "{cores}"] if parallel else []
    return machine_settings().command(code, cores, [*launcher, program])


def threads_of(command: Sequence[str], cores: int) -> int:
    """Threads of each process that `command` starts, so that `cores` cores are used in total."""
    return 1 if os.path.basename(command[0]) in LAUNCHERS else cores


def stated_version(code: str, program: str, banner: str, *arguments: str) -> str:
    """The version that the program prints: the first group of `banner`. Raises SpecError if the
    program is not installed or prints no version."""
    try:
        command = command_of(code, program, 1)
    except SpecError as error:
        raise SpecError(
            f"labels.code: {error}, or apt install {PACKAGES[program]} (Debian), or, to submit "
            "only, set labels.version"
        ) from error
    found = re.search(banner, _output((*command, *arguments)))
    if found is None:
        raise SpecError(f"labels.code: {code}: {shlex.join(command)} does not print its version")
    return found[1]


@cache
def _output(command: tuple[str, ...]) -> str:
    """Output of the command, run once in an empty folder without input."""
    with tempfile.TemporaryDirectory(prefix="dpstream-") as folder:
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment(Path(folder), 1),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=PROBE_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SpecError(f"labels.code: {shlex.join(command)}: {error}") from error
    return done.stdout.decode(errors="replace")


def environment(home: Path, threads: int) -> dict[str, str]:
    """A program's environment, without the worker's secrets (broker URL, cloud keys)."""
    return passed_environment() | dict.fromkeys(PINNED, str(threads)) | homes(home)
