"""The shell script that becomes a worker: modules, files, variables, then `exec`.

All its parts come from the fleet file, none from a message. `exec` makes the worker the process
that the fleet engine started, so that its signals reach it.
"""

from __future__ import annotations

import shlex

from dpstream.services.coordinator.fleet.pools import PoolSettings, worker_variables
from dpstream.shared.environment import PASS

LAUNCH = "DPSTREAM_LAUNCH"
"""The variable with the name of a worker's launch."""


def worker_script(name: str, pool: PoolSettings, launch: str, passes: str = "") -> str:
    """The script of one worker of pool `name`; `passes`: patterns of variables that engines may
    see, unless the fleet file sets its own."""
    variables = {
        **worker_variables(name, pool),
        **({PASS: passes} if passes else {}),
        **pool.envs,
        LAUNCH: launch,
    }
    lines = [
        "#!/bin/bash",
        *(f"module load {shlex.quote(module)} || exit 2" for module in pool.modules),
        *(f". {shlex.quote(str(path))} || exit 2" for path in pool.source),
        *(f"export {key}={shlex.quote(value)}" for key, value in variables.items()),
        f"exec {shlex.join(pool.arguments)}",
    ]
    return "\n".join(lines) + "\n"
