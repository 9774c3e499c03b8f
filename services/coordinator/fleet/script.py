"""The shell script that becomes a worker: modules, files, variables, then `exec`.

All its parts come from the fleet file, none from a message. `exec` makes the worker the process
that the fleet engine started, so that its signals reach it.
"""

from __future__ import annotations

import shlex

from dpstream.services.coordinator.fleet.pools import PoolSettings, worker_variables
from dpstream.shared.environment import PASS
from dpstream.shared.errors import FleetError

PASSES = {"slurm": {PASS: "SLURM_*,PMI*,PMIX_*,I_MPI_*,UCX_*,OMPI_*"}}
"""What labeling programs may see of a fleet engine's variables, unless `envs` says otherwise:
without them `srun` asks for a second allocation."""
NAMED = {
    "slurm": 'export DPSTREAM_PROCESS="${SLURM_JOB_NAME##*.}-$SLURM_ARRAY_TASK_ID'
    '${SLURM_RESTART_COUNT:+.$SLURM_RESTART_COUNT}"'
}
"""The name of the process, where the script alone knows it; a requeued job is another process."""


def worker_script(name: str, pool: PoolSettings) -> str:
    """The script of one worker of pool `name`."""
    variables = {
        **worker_variables(name, pool),
        **PASSES.get(pool.engine, {}),
        **pool.envs,
    }
    lines = [
        "#!/bin/bash",
        *(f"module load {shlex.quote(module)} || exit 2" for module in pool.modules),
        *(f". {shlex.quote(str(path))} || exit 2" for path in pool.source),
        *(f"export {key}={shlex.quote(value)}" for key, value in variables.items()),
        *([NAMED[pool.engine]] if pool.engine in NAMED else []),
        f"exec {shlex.join(pool.arguments)}",
    ]
    return "\n".join(lines) + "\n"


def check_source(pool: PoolSettings) -> None:
    """Raises FleetError if a file of `source` does not exist on this machine."""
    for path in pool.source:
        if not path.exists():
            raise FleetError(f"source: {path}: no such file")
