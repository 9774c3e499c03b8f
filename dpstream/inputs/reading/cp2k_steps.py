"""Reads the ionic steps of CP2K: numbers from its output, positions from its trajectory.

CP2K prints positions of the first step only. Those of the others are in PROJECT-pos-1.xyz beside
the output; a step is found there by its energy, because steps of a line search are not written. A
cell that changes is in PROJECT-1.cell. A run that replays a trajectory (REFTRAJ) prints positions
and cell of its input, which need not be those of its first step.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from dpstream.inputs.reading.found import FoundFrame
from dpstream.inputs.reading.parsed import followed, parsed, split_at
from dpstream.services.labeler.acceptance import POSITION_TOLERANCE
from dpstream.services.labeler.codes.cp2k.cp2k import ENERGY, PERIODICITY, POSITIONS, POSITIONS_END
from dpstream.services.labeler.codes.parse import NUMBER, block, first, numbers, read_text, rows
from dpstream.shared.atoms.frames import Floats, Frame

SCF = re.compile(r"^ *SCF WAVEFUNCTION OPTIMIZATION", re.MULTILINE)
END = " PROGRAM ENDED AT"
REPEATED = "Reevaluating energy at the minimum"
"""Printed before an optimisation computes its last step again."""
PROJECT = r"GLOBAL\| Project name +(\S+)"
VARIABLE = re.compile(
    r"GLOBAL\| Run type +CELL_OPT|Ensemble [Tt]ype +(?:NPT|NPE|MSST|HYDRO|REFTRAJ)"
)
"""Runs of which the cell may change."""
REPLAYED = re.compile(r"Ensemble [Tt]ype +REFTRAJ")
VECTOR = (
    rf"^ *CELL\| Vector [abc] \[angstrom\]:? +({NUMBER}) +({NUMBER}) +({NUMBER})"
    rf" +\|[abc]\| = +({NUMBER})"
)
ATOM = re.compile(
    rf"^ +\d+ +\d+ +([A-Za-z]{{1,2}}) +\d+ +({NUMBER}) +({NUMBER}) +({NUMBER})", re.MULTILINE
)
COMMENT = re.compile(rf"i = +(\d+),.*?E = +({NUMBER})")
ROW = re.compile(rf" *([A-Za-z]+)\S* +({NUMBER}) +({NUMBER}) +({NUMBER})")
"""A label, which begins with the element, and a position."""
SAME = 2e-10
"""Hartree; the trajectory has ten decimals of the energy."""
OTHER_UNIT = 1.37
"""Ratio of sizes from which lengths are in another unit; that of bohr to Å is 1.89."""


@dataclass(frozen=True, eq=False)
class _Written:
    """A configuration of the trajectory: hartree, Å."""

    step: int
    energy: float
    species: tuple[str, ...]
    positions: Floats


@dataclass(frozen=True, eq=False)
class _Trajectory:
    """What stands beside an output. `cells`: by step; None if the cell does not change; `start`:
    the configuration that the output prints."""

    name: str
    written: Sequence[_Written]
    cells: Mapping[int, Floats] | None
    start: Frame

    @cached_property
    def energies(self) -> Floats:
        return np.array([each.energy for each in self.written])

    def of_energy(self, energy: float) -> _Written | None:
        near = np.flatnonzero(np.abs(self.energies - energy) <= SAME)
        return self.written[near[0]] if near.size else None

    def is_of(self, energy: float) -> bool:
        """Whether the positions are those of this output, whose first step has this energy, and in
        Å. An optimisation does not write its first step; then the sizes must be alike."""
        same = self.of_energy(energy)
        if same is not None and same.positions.shape == self.start.positions.shape:
            return np.allclose(same.positions, self.start.positions, 0, POSITION_TOLERANCE)
        return not self.written or _alike(self.written[0].positions, self.start.positions)

    def frame(self, energy: float) -> tuple[Frame | None, str]:
        """The configuration with this energy, or why there is none."""
        found = self.of_energy(energy)
        if found is None:
            return None, f"{self.name}-pos-1.xyz beside the output has no positions of this step"
        if found.species != self.start.species:
            return None, f"{self.name}-pos-1.xyz beside the output has other atoms than the output"
        cell = self.start.cell if self.cells is None else self.cells.get(found.step)
        if cell is None:
            return None, f"{self.name}-1.cell beside the output has no cell of this step"
        return Frame(self.start.species, found.positions, cell), ""


def read_cp2k(path: Path) -> Iterator[FoundFrame]:
    """All steps of an output of CP2K."""
    text = read_text(path)
    header, steps = _steps(text)
    start, problem = _first(text)
    if not steps:
        yield parsed("cp2k", {"stdout": text}, start, problem)
        return
    facts = "\n".join(line for line in header.splitlines() if re.search(PERIODICITY, line))
    frames = _frames(path.parent, text, steps, start, problem)
    printed = REPLAYED.search(header) is None
    for step, is_followed in followed(steps):
        frame, problem = next(frames)
        stdout = {"stdout": f"{header if printed else facts}\n{step}"}
        yield parsed("cp2k", stdout, frame, problem, complete=is_followed or END in text)
        printed = False


def _frames(
    folder: Path, text: str, steps: Sequence[str], start: Frame | None, problem: str
) -> Iterator[tuple[Frame | None, str]]:
    """The configurations of the steps, or why there are none. `problem`: why there is no
    `start`."""
    if start is None:
        yield from ((None, problem) for _ in steps)
        return
    energies = [next(iter(numbers(ENERGY, step)), np.nan) for step in steps]
    trajectory = _trajectory(folder, text, start)
    is_replayed = REPLAYED.search(text) is not None
    if not is_replayed:
        yield start, ""
    sought = energies if is_replayed else energies[1:]
    if trajectory.is_of(np.nan if is_replayed else energies[0]):
        yield from map(trajectory.frame, sought)
        return
    other = (
        f"{trajectory.name}-pos-1.xyz does not fit the positions in the output: it belongs to "
        "another run, or is not in Å (MOTION/PRINT/TRAJECTORY/UNIT)"
    )
    yield from ((None, other) for _ in sought)


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


def _trajectory(folder: Path, text: str, start: Frame) -> _Trajectory:
    name = first(PROJECT, text) or "PROJECT"
    cells = _cells(read_text(folder / f"{name}-1.cell"))
    written = list(_written(read_text(folder / f"{name}-pos-1.xyz")))
    return _Trajectory(name, written, cells if cells or VARIABLE.search(text) else None, start)


def _alike(one: Floats, other: Floats) -> bool:
    """Whether two configurations have about the same size."""
    sizes = [float(np.linalg.norm(each.std(axis=0))) for each in (one, other)]
    return max(sizes) <= OTHER_UNIT * min(sizes)


def _written(text: str) -> Iterator[_Written]:
    """The configurations of a trajectory; the last may be cut off."""
    lines = [line for line in _whole_lines(text) if line.strip()]
    for at, (line, after) in enumerate(pairwise(lines)):
        comment = COMMENT.search(after) if line.strip().isdigit() else None
        if comment is None:
            continue
        atoms = [ROW.match(row) for row in lines[at + 2 : at + 2 + int(line)]]
        rows = [found.groups() for found in atoms if found]
        if len(rows) == int(line):
            species = tuple(symbol.capitalize() for symbol, *_ in rows)
            positions = np.array([row for _, *row in rows], dtype=np.float64)
            yield _Written(int(comment[1]), float(comment[2]), species, positions)


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
