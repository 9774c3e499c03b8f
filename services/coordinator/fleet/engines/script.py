"""The shell script that becomes a worker: modules, files, variables, further lines, then `exec`.

All its parts come from the fleet file, none from a message. `exec` makes the worker the process
that the fleet engine started, so that its signals reach it. Where a batch system announces the stop
by other signals, the shell stays and turns them into one SIGTERM. It is the script of a login
shell, because many clusters define `module` only there.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from dpstream.services.coordinator.fleet.pools import PoolSettings, worker_variables
from dpstream.shared.errors import FleetError


def worker_script(
    name: str,
    pool: PoolSettings,
    *,
    warm: bool = False,
    named: str = "",
    announced_by: Sequence[str] = (),
) -> str:
    """The script of one worker of pool `name`. `named`: a line that exports the name of the
    process, where the script alone knows it; `announced_by`: signals that announce the stop,
    besides SIGTERM."""
    variables = {**worker_variables(name, pool, warm=warm), **pool.envs}
    lines = [
        "#!/bin/bash -l",
        *(["module purge"] if pool.module_purge else []),
        *(f"module unload {shlex.quote(module)}" for module in pool.module_unload),
        *(f"module load {shlex.quote(module)} || exit 2" for module in pool.modules),
        *(f". {_path(path)} || exit 2" for path in pool.source),
        *(f"export {key}={shlex.quote(value)}" for key, value in variables.items()),
        *([named] if named else []),
        *pool.prepend,
        *_worker(shlex.join(pool.arguments), " ".join(announced_by)),
    ]
    return "\n".join(lines) + "\n"


def _worker(command: str, signals: str) -> list[str]:
    """The last lines. Signals reach the whole process group: the worker ignores those that announce
    the stop; the shell ignores SIGTERM, and all of them after the first. If a signal and the end of
    the worker came together in `wait`, bash would report 255 in place of the worker's status. The
    first one ends `wait`, which then has to be repeated."""
    if not signals:
        return [f"exec {command}"]
    return [
        "trap '' TERM",
        f"(trap '' {signals}; trap - TERM; exec {command}) &",
        "worker=$! woken=1",
        f"trap 'trap \"\" {signals}; woken=1; kill -TERM $worker' {signals}",
        'while test -n "$woken"; do woken=; wait $worker; status=$?; done',
        "exit $status",
    ]


def _path(path: Path) -> str:
    """A path for the shell; `~` stays the home folder of the machine that runs the script."""
    home, *rest = path.parts
    return f"~/{shlex.quote('/'.join(rest))}" if home == "~" else shlex.quote(str(path))


def check_source(pool: PoolSettings) -> None:
    """Raises FleetError if a file of `source` does not exist on this machine."""
    for path in pool.source:
        if not path.exists():
            raise FleetError(f"source: {path}: no such file")
