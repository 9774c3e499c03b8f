"""Path-integral dynamics: one LAMMPS process per bead, as partitions of one MPI job.

`path_integral` runs in the explorer's child process and starts the job; `main` runs in each process
of the job. LAMMPS loads the MPI library of the Python environment, so the job is started with the
`mpiexec` of the same environment.
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

from dpstream.services.explorer.running_program import ended
from dpstream.shared.atoms.frames import Floats
from dpstream.shared.runtime.child_process import die_with_parent

BEAD, SEED = "<bead>", "<seed>"
"""Placeholders for a bead's number and seed in its LAMMPS commands."""
FIX = "pimd/langevin"
MPIEXEC = Path(sys.prefix) / "bin" / "mpiexec"
LOG = "beads.log"
RANK = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from dpstream.services.explorer.lammps.path_integral_child import main; "
    "main(sys.argv[1], int(sys.argv[2]))"
)


def path_integral(beads: int, folder: str, job: dict[str, Any]) -> str | None:
    """Run a segment of dynamics in `folder`; returns the error that ended it early, or None. `job`:
    the arguments of `_work` without the first two. Raises RuntimeError if it did not start."""
    working = Path(folder)
    (working / "job.json").write_text(json.dumps(job))
    for number in range(beads):
        frames_file(working, number).unlink(missing_ok=True)
    rank = [sys.executable, "-I", "-c", RANK, "job.json", str(beads)]
    command = [str(MPIEXEC), "-n", str(beads), *rank, *map(os.path.abspath, sys.path)]
    with (working / LOG).open("wb") as log:
        started = subprocess.Popen(
            command, cwd=working, stdout=log, stderr=log, preexec_fn=die_with_parent
        )
        status = ended(started, lambda: _size(frames_file(working, 0)))
    if status == 0:
        return None
    error = _error_in(working / LOG) or f"LAMMPS ended with status {status}"
    if not all(frames_file(working, number).exists() for number in range(beads)):
        raise RuntimeError(error)
    return error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _error_in(log: Path) -> str | None:
    """The first error of LAMMPS: those of other beads are consequences."""
    lines = log.read_text(errors="replace").splitlines()
    return next((line[line.index("ERROR") :] for line in lines if "ERROR" in line), None)


def frames_file(folder: Path, bead: int) -> Path:
    return folder / f"bead-{bead}.npy"


def frames_of(folder: Path, bead: int) -> Iterator[tuple[Floats, Floats]]:
    """Positions `(n_atoms, 3)` and cell `(3, 3)` in Å of each complete check of a bead."""
    with frames_file(folder, bead).open("rb") as file:
        while True:
            try:
                yield np.load(file, allow_pickle=False), np.load(file, allow_pickle=False)
            except (EOFError, ValueError):  # the process was killed while writing
                return


def main(job: str, beads: int) -> None:
    """Run the process of one bead."""
    from dpstream.services.explorer.lammps.session import Session

    # With partitions LAMMPS requires an input file; it is not read.
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
    """Run `checks` times `every` steps, writing a frame to the bead's file after each, then write
    the restart file. A script without velocities resumes from a restart file."""
    from dpstream.services.explorer.lammps.script import Script

    (session.start if script["velocity"] else session.resume)(Script(**script))
    with frames_file(Path.cwd(), bead).open("wb") as file:
        for _ in range(checks):
            session.run(every)
            np.save(file, session.positions())
            np.save(file, session.cell())
            file.flush()
    session.write_restart(restart)
