"""The shell script that becomes a worker: modules, files, variables, further lines, then `exec`.

All its parts come from the fleet file, none from a message. `exec` makes the worker the process
that the fleet engine started, so that its signals reach it. It is the script of a login shell,
because many clusters define `module` only there.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from dpstream.services.coordinator.fleet.pools import PoolSettings, worker_variables
from dpstream.shared.errors import FleetError

NAMED = {
    "slurm": 'export DPSTREAM_PROCESS="${SLURM_JOB_NAME##*.}-$SLURM_ARRAY_TASK_ID'
    '${SLURM_RESTART_COUNT:+.$SLURM_RESTART_COUNT}"'
}
"""The name of the process, where the script alone knows it; a requeued job is another process."""


def worker_script(name: str, pool: PoolSettings, *, warm: bool = False) -> str:
    """The script of one worker of pool `name`."""
    variables = {**worker_variables(name, pool, warm=warm), **pool.envs}
    lines = [
        "#!/bin/bash -l",
        *(["module purge"] if pool.module_purge else []),
        *(f"module unload {shlex.quote(module)}" for module in pool.module_unload),
        *(f"module load {shlex.quote(module)} || exit 2" for module in pool.modules),
        *(f". {_path(path)} || exit 2" for path in pool.source),
        *(f"export {key}={shlex.quote(value)}" for key, value in variables.items()),
        *([NAMED[pool.engine]] if pool.engine in NAMED else []),
        *pool.prepend,
        f"exec {shlex.join(pool.arguments)}",
    ]
    return "\n".join(lines) + "\n"


def _path(path: Path) -> str:
    """A path for the shell; `~` stays the home folder of the machine that runs the script."""
    home, *rest = path.parts
    return f"~/{shlex.quote('/'.join(rest))}" if home == "~" else shlex.quote(str(path))


def check_source(pool: PoolSettings) -> None:
    """Raises FleetError if a file of `source` does not exist on this machine."""
    for path in pool.source:
        if not path.exists():
            raise FleetError(f"source: {path}: no such file")
