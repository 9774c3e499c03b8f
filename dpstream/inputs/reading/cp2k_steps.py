"""Reads the ionic steps of CP2K: numbers from its output, positions from its trajectory.

CP2K prints positions of the first step only. Those of the others are in PROJECT-pos-1.xyz beside
the output; a step is found there by its energy, because steps of a line search are not written. A
cell that changes is in PROJECT-1.cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dpstream.inputs.reading.found import FoundFrame
from dpstream.inputs.reading.parsed import followed, parsed, split_at
from dpstream.services.labeler.codes.cp2k import ENERGY, PERIODICITY, POSITIONS, POSITIONS_END
from dpstream.services.labeler.codes.parse import NUMBER, block, first, numbers, read_text, rows
from dpstream.shared.atoms.frames import Floats, Frame

SCF = re.compile(r"^ *SCF WAVEFUNCTION OPTIMIZATION", re.MULTILINE)
END = " PROGRAM ENDED AT"
REPEATED = "Reevaluating energy at the minimum"
"""Printed before an optimisation computes its last step again."""
PROJECT = r"GLOBAL\| Project name +(\S+)"
VARIABLE = re.compile(r"GLOBAL\| Run type +CELL_OPT|Ensemble [Tt]ype +(?:NPT|NPE|MSST|HYDRO)")
VECTOR = (
    rf"^ *CELL\| Vector [abc] \[angstrom\]:? +({NUMBER}) +({NUMBER}) +({NUMBER})"
    rf" +\|[abc]\| = +({NUMBER})"
)
ATOM = re.compile(
    rf"^ +\d+ +\d+ +([A-Za-z]{{1,2}}) +\d+ +({NUMBER}) +({NUMBER}) +({NUMBER})", re.MULTILINE
)
COMMENT = re.compile(rf"i = +(\d+),.*?E = +({NUMBER})")
SAME = 2e-10
"""Hartree; the trajectory has ten decimals of the energy."""


@dataclass(frozen=True, eq=False)
class _Written:
    """A configuration of the trajectory: hartree, Å."""

    step: int
    energy: float
    positions: Floats


@dataclass(frozen=True, eq=False)
class _Trajectory:
    """What stands beside an output. `cells`: by step; None if the cell does not change."""

    name: str
    written: Sequence[_Written]
    cells: Mapping[int, Floats] | None

    @cached_property
    def energies(self) -> Floats:
        return np.array([each.energy for each in self.written])

    def frame(self, energy: float, start: Frame) -> tuple[Frame | None, str]:
        """The configuration with this energy, or why there is none. `start`: the first one."""
        near = np.flatnonzero(np.abs(self.energies - energy) <= SAME)
        if not near.size:
            return None, f"{self.name}-pos-1.xyz beside the output has no positions of this step"
        found = self.written[near[0]]
        if found.positions.shape != start.positions.shape:
            return None, f"{self.name}-pos-1.xyz has {len(found.positions)} atoms"
        if self.cells is None:
            return Frame(start.species, found.positions, start.cell), ""
        if found.step not in self.cells:
            return None, f"{self.name}-1.cell beside the output has no cell of this step"
        return Frame(start.species, found.positions, self.cells[found.step]), ""


def read_cp2k(path: Path) -> Iterator[FoundFrame]:
    """All steps of an output of CP2K."""
    text = read_text(path)
    header, steps = _steps(text)
    start, problem = _first(text)
    if len(steps) < 2:
        yield parsed("cp2k", {"stdout": text}, start, problem)
        return
    whole = END in text
    yield parsed("cp2k", {"stdout": header + steps[0]}, start, problem, complete=True)
    trajectory = _trajectory(path.parent, text)
    facts = "\n".join(line for line in header.splitlines() if re.search(PERIODICITY, line))
    for step, is_followed in list(followed(steps))[1:]:
        frame, problem = (
            (None, problem) if start is None else trajectory.frame(_energy(step), start)
        )
        stdout = {"stdout": f"{facts}\n{step}"}
        yield parsed("cp2k", stdout, frame, problem, complete=is_followed or whole)


def _first(text: str) -> tuple[Frame | None, str]:
    """The first configuration, which is printed, or why there is none. Vectors of the cell have
    three decimals, their lengths six."""
    vectors, atoms = rows(VECTOR, text), ATOM.findall(block(text, POSITIONS, POSITIONS_END))
    if vectors is None or len(vectors) < 3 or not atoms:
        return None, "the output has no cell or no atoms"
    directions, lengths = vectors[:3, :3], vectors[:3, 3:]
    cell = directions / np.linalg.norm(directions, axis=1, keepdims=True) * lengths
    species = tuple(symbol.capitalize() for symbol, *_ in atoms)
    return Frame(species, np.array([row for _, *row in atoms], dtype=np.float64), cell), ""


def _energy(step: str) -> float:
    """Hartree."""
    return next(iter(numbers(ENERGY, step)), np.nan)


def _steps(text: str) -> tuple[str, list[str]]:
    """What is printed before the first self-consistent cycle, and the steps, each of which begins
    with one. A cycle without a total energy goes on in the next."""
    header, parts = split_at(SCF, text)
    steps: list[str] = []
    repeated = False
    for part in parts:
        if steps and not numbers(ENERGY, steps[-1]):
            steps[-1] += part
        elif not repeated:
            steps.append(part)
        repeated = REPEATED in part
    return header, steps


def _trajectory(folder: Path, text: str) -> _Trajectory:
    name = first(PROJECT, text) or "PROJECT"
    cells = _cells(read_text(folder / f"{name}-1.cell")) if VARIABLE.search(text) else None
    return _Trajectory(name, list(_written(read_text(folder / f"{name}-pos-1.xyz"))), cells)


def _written(text: str) -> Iterator[_Written]:
    """The configurations of a trajectory; the last may be cut off."""
    lines = _whole_lines(text)
    at = 0
    while at + 1 < len(lines) and lines[at].strip().isdigit():
        count, comment = int(lines[at]), COMMENT.search(lines[at + 1])
        rows = [line.split()[1:4] for line in lines[at + 2 : at + 2 + count]]
        at += 2 + count
        if comment is None or len(rows) < count or any(len(row) < 3 for row in rows):
            continue
        yield _Written(int(comment[1]), float(comment[2]), np.array(rows, dtype=np.float64))


def _whole_lines(text: str) -> list[str]:
    """The lines without one that is cut off, of which the last number may lack digits."""
    return text[: text.rfind("\n") + 1].splitlines()


def _cells(text: str) -> dict[int, Floats]:
    rows = [line.split() for line in _whole_lines(text) if not line.startswith("#")]
    return {
        int(row[0]): np.array(row[2:11], dtype=np.float64).reshape(3, 3)
        for row in rows
        if len(row) >= 11
    }
