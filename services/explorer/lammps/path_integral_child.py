"""Path-integral dynamics: one LAMMPS process for each bead, as partitions of one MPI job.

`path_integral` runs in the engine child; `main` in every process that it starts. LAMMPS loads the
MPI in the environment's lib folder, so the processes are started by the `mpiexec` beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dpstream.shared.atoms.frames import Floats
from dpstream.shared.runtime.child_process import die_with_parent

BEAD, SEED = "<bead>", "<seed>"
"""Stand for the bead's number, and for a seed of its own, in what its LAMMPS is told."""
FIX = "pimd/langevin"
MPIEXEC = Path(sys.prefix) / "bin" / "mpiexec"
LOG = "beads.log"
RANK = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from dpstream.services.explorer.lammps.path_integral_child import main; "
    "main(sys.argv[1], int(sys.argv[2]))"
)


def path_integral(beads: int, folder: str, job: dict[str, Any]) -> str | None:
    """Run a piece of dynamics in `folder`; None, or the error that ended it early. `job`: the
    arguments of `_work` but the first two. Raises RuntimeError where it never began."""
    place = Path(folder)
    (place / "job.json").write_text(json.dumps(job))
    for number in range(beads):
        frames_file(place, number).unlink(missing_ok=True)
    rank = [sys.executable, "-I", "-c", RANK, "job.json", str(beads)]
    command = [str(MPIEXEC), "-n", str(beads), *rank, *map(os.path.abspath, sys.path)]
    with (place / LOG).open("wb") as log:
        ended = subprocess.run(
            command, cwd=place, stdout=log, stderr=log, check=False, preexec_fn=die_with_parent
        )
    if ended.returncode == 0:
        return None
    said = _error_in(place / LOG) or f"LAMMPS ended with status {ended.returncode}"
    if not all(frames_file(place, number).exists() for number in range(beads)):
        raise RuntimeError(said)
    return said


def _error_in(log: Path) -> str | None:
    """The first error of LAMMPS: the other beads only follow."""
    lines = log.read_text(errors="replace").splitlines()
    return next((line[line.index("ERROR") :] for line in lines if "ERROR" in line), None)


def frames_file(folder: Path, bead: int) -> Path:
    return folder / f"bead-{bead}.npy"


def frames_of(folder: Path, bead: int) -> Iterator[tuple[Floats, Floats]]:
    """Positions `(n_atoms, 3)` and cell `(3, 3)` in Å of each whole check of a bead."""
    with frames_file(folder, bead).open("rb") as file:
        while True:
            try:
                yield np.load(file, allow_pickle=False), np.load(file, allow_pickle=False)
            except (EOFError, ValueError):  # the bead was ended while it wrote
                return


def main(job: str, beads: int) -> None:
    """One bead."""
    from dpstream.services.explorer.lammps.session import Session

    # LAMMPS insists on an input file where there are partitions; nothing is read from it.
    session = Session(Path("unused"), partitions=("-partition", f"{beads}x1", "-in", job))
    session.lammps.command(f"variable bead world {' '.join(map(str, range(beads)))}")
    bead = int(session.lammps.extract_variable("bead"))
    text = Path(job).read_text()
    seed = json.loads(text)["seed"] + bead
    _work(session, bead, **json.loads(text.replace(BEAD, str(bead)).replace(SEED, str(seed))))
    session.close()
    session.lammps.finalize()


def _work(
    session: Any,
    bead: int,
    script: dict[str, Any],
    checks: int,
    every: int,
    restart: str,
    seed: int,
) -> None:
    """`checks` times `every` steps, each followed by a frame in the bead's file; then the restart
    file. A script without velocities goes on from one."""
    from dpstream.services.explorer.lammps.script import Script

    (session.start if script["velocity"] else session.resume)(Script(**script))
    with frames_file(Path.cwd(), bead).open("wb") as file:
        for _ in range(checks):
            session.run(every)
            np.save(file, session.positions())
            np.save(file, session.cell())
            file.flush()
    session.write_restart(restart)
