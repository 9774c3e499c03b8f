"""Runs the programs of GROMACS. Only the explorer's child process, which is confined, imports this.

Preparations return the reason of a failure as text: it lies in the campaign's files. A trajectory
has a folder with `topol.top`, `names.mdp`, `names.gro`, `md.mdp`, `conf.gro`, then `run.tpr` and
`state.cpt`.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dpstream.services.explorer.gromacs.inputs import NM
from dpstream.services.explorer.running_program import ended
from dpstream.shared.atoms.frames import Floats
from dpstream.shared.runtime.child_process import (
    KILLED,
    die_with_parent,
    out_of_memory,
    progressed,
)

LOG = "gromacs.log"
LENIENT = 100
"""Warnings allowed in a run input from which only the atoms are read."""
PROBLEM = r"^{} \d+ \[.*?\]:\n(.*?)\n\n"
FATAL = re.compile(r"^Program:.*?\n\n[^\n]*:\n(.*?)\n(?:\n|---)", re.MULTILINE | re.DOTALL)
"""The last words of a program: lines on where it failed, then the kind of error and its text."""
LONGEST = 300
NAME, ELEMENT = slice(10, 15), slice(76, 78)
"""Columns of a name in a `.gro` file, and of an element in a PDB file, which cuts off names after
four characters."""

ON_CPU = ("-nb", "cpu", "-pme", "cpu", "-bonded", "cpu", "-update", "cpu")
_thread_mpi: dict[str, bool] = {}
"""What is known of programs, see `_has_thread_mpi`."""


def gromacs_atoms(program: str, folder: str) -> dict[str, Any]:
    """`atoms`: name and element of each atom of the topology, the element empty where the topology
    has none; or `error`."""
    working = Path(folder)
    error = _grompp(program, working, "names.mdp", "names.gro", "names.tpr", LENIENT)
    for output in ("atoms.gro", "atoms.pdb"):
        words = [program, "editconf", "-f", "names.tpr", "-o", output]
        error = error or _failure(words, working)
    if error is not None:
        return {"error": error}
    named, typed = ((working / f"atoms.{kind}").read_text().splitlines() for kind in ("gro", "pdb"))
    names = [line[NAME].strip() for line in named[2:-1]]
    atoms = [line for line in typed if line.startswith(("ATOM", "HETATM"))]
    elements = [line[ELEMENT].strip().capitalize() for line in atoms]
    return {"atoms": [list(atom) for atom in zip(names, elements, strict=True)]}


def gromacs_begin(program: str, folder: str, warnings: int) -> str | None:
    """Write `run.tpr`, with at most so many `warnings`; returns why that failed, or None."""
    return _grompp(program, Path(folder), "md.mdp", "conf.gro", "run.tpr", warnings)


def gromacs_run(
    program: str, folder: str, steps: int, threads: int, goes_on: bool, on_gpu: bool
) -> str | None:
    """Run `steps` steps; `goes_on`: from the checkpoint of the last run; `on_gpu`: GROMACS may use
    one. Writes `frames.npz`: positions `(n, n_atoms, 3)` and cells `(n, 3, 3)` in Å of each check.
    Returns the error that ended the run early, or None. Raises RuntimeError if it did not start."""
    working = Path(folder)
    for left in working.glob("segment*"):
        left.unlink()
    command = [program, "mdrun", "-s", "run.tpr", "-deffnm", "segment", "-nsteps", str(steps)]
    command += ["-cpo", "state.cpt", "-noappend", "-reprod", "-notunepme"]
    command += ["-pin", "off", "-ntomp", str(threads), *(() if on_gpu else ON_CPU)]
    if goes_on:
        command += ["-cpi", "state.cpt"]
    if _has_thread_mpi(program, working):
        command += ["-ntmpi", "1"]
    error = _failure(command, working)
    trajectories = list(working.glob("segment*.trr"))
    if not trajectories or not (error or (working / "state.cpt").exists()):
        raise RuntimeError(f"gmx mdrun: {error or 'wrote no trajectory or no checkpoint'}")
    _convert(program, working, trajectories[0])
    return error


def _convert(program: str, working: Path, trajectory: Path) -> None:
    """Write the frames of a trajectory as `frames.npz`, without the first, which is the last one of
    the run before."""
    words = [program, "traj", "-s", "run.tpr", "-f", trajectory.name, "-nopbc", "-fp"]
    words += ["-ox", "positions.xvg", "-ob", "cells.xvg", "-xvg", "none"]
    for name in ("positions.xvg", "cells.xvg"):
        (working / name).unlink(missing_ok=True)
    error = _failure(words, working, answers="0\n")  # the group of all atoms
    if error is not None:
        raise RuntimeError(f"gmx traj: {error}")
    places, edges = (_table(working / name) for name in ("positions.xvg", "cells.xvg"))
    positions = places.reshape(len(places), places.shape[1] // 3, 3)
    cells = np.zeros((len(edges), 3, 3))
    cells[:, (0, 1, 2, 1, 2, 2), (0, 1, 2, 0, 0, 1)] = edges
    with (working / "frames.npz").open("wb") as file:
        np.savez(file, positions=positions / NM, cells=cells / NM)


def _table(path: Path) -> Floats:
    """The rows of a table after the first, without the times. There is none if GROMACS failed at
    once."""
    with path.open() as lines:
        rows = [line for line in lines if line.strip()]
    return np.loadtxt(rows[1:], ndmin=2)[:, 1:] if len(rows) > 1 else np.empty((0, 6))


def _grompp(
    program: str, working: Path, mdp: str, atoms: str, output: str, warnings: int
) -> str | None:
    words = [program, "grompp", "-f", mdp, "-p", "topol.top", "-c", atoms, "-r", atoms]
    words += ["-o", output, "-maxwarn", str(warnings)]
    return _failure(words, working)


def _has_thread_mpi(program: str, working: Path) -> bool:
    """Whether `mdrun` takes a number of ranks: not if it was built with an MPI library. Asked
    once."""
    if program not in _thread_mpi:
        if _failure([program, "--version"], working) is not None:
            return False
        _thread_mpi[program] = "thread_mpi" in (working / LOG).read_text(errors="replace")
    return _thread_mpi[program]


def _failure(command: list[str], working: Path, answers: str = "") -> str | None:
    """Run a command in `working`; returns why it failed, or None. Raises RuntimeError if it was
    killed: the files need not be the cause."""
    (working / "answers").write_text(answers)
    environment = {**os.environ, "GMX_MAXBACKUP": "-1"}
    with (working / LOG).open("wb") as log, (working / "answers").open("rb") as given:
        try:
            process = subprocess.Popen(
                command,
                cwd=working,
                env=environment,
                stdin=given,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        except OSError as error:
            return (
                f"{command[0]}: {error.strerror}; install GROMACS, or set DPSTREAM_EXPLORER_GROMACS"
            )
        status = ended(process, lambda: _written(working))
    progressed()
    if status in KILLED:
        raise RuntimeError(out_of_memory(command[0]))
    return None if status == 0 else reason(working / LOG, status)


def _written(working: Path) -> int:
    return sum(path.stat().st_size for path in working.glob("segment*.trr"))


def reason(log: Path, status: int) -> str:
    """The first error that GROMACS wrote, or the first of too many warnings, as one line."""
    text = log.read_text(errors="replace")
    found, fatal = _problem("ERROR", text), FATAL.search(text)
    if found is None and (fatal is None or "Too many warnings" in fatal[1]):
        found = _problem("WARNING", text)
    found = found or fatal
    words = " ".join(found[1].split()) if found else f"ended with status {status}"
    return words[:LONGEST]


def _problem(kind: str, text: str) -> re.Match[str] | None:
    return re.search(PROBLEM.format(kind), text, re.MULTILINE | re.DOTALL)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "gromacs_atoms": gromacs_atoms,
    "gromacs_begin": gromacs_begin,
    "gromacs_run": gromacs_run,
}
