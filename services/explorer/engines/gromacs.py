"""GROMACS as a source of frames: dynamics with the force field of the user's topology.

GROMACS knows nothing of the committee, which judges the frames of each segment. A segment is one
run of `gmx mdrun`, continued by the next from its checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dpstream.services.explorer.engines.base import (
    TrajectoryRequest,
    TrajectorySegment,
    judged,
)
from dpstream.services.explorer.engines.dynamics import packed, unpacked
from dpstream.services.explorer.gromacs.inputs import (
    canonical_order,
    check_box,
    check_topology,
    gro_lines,
    inputs_for_names,
    mdp_text,
    parameters,
    room_for,
)
from dpstream.services.explorer.lammps.sanity import unphysical
from dpstream.shared.atoms.frames import Batch, Floats, Frame, Ints, canonical
from dpstream.shared.spec import Md
from dpstream.shared.spec.engines import Gromacs
from dpstream.shared.values import Condition, stable_seed

KEPT = ("run.tpr", "state.cpt")
"""Files from which another attempt continues."""


class GromacsDynamics:
    """The engine `gromacs`. `made`: checks so far; `order`: index in the topology of each atom of
    a canonical frame."""

    def __init__(self, request: TrajectoryRequest) -> None:
        assert isinstance(request.settings, Gromacs)
        self.request, self.settings = request, request.settings
        self.made = 0
        self.order: Ints = np.arange(len(request.frame.species))
        self.folder = request.folder / "gromacs"
        self.folder.mkdir(exist_ok=True)

    # -------------------------------------------------------------------------- the protocol

    def start(self) -> None:
        request = self.request
        seed = stable_seed(request.command.seed, "gromacs")
        condition = request.command.condition
        inputs = gromacs_inputs(self.settings, request.md, condition, request.vacuum, seed)
        self.order = prepare(self.settings, inputs, request.frame, self.folder, self._call)

    def resume(self, state: bytes) -> None:
        unpacked(state, self.folder)
        kept = json.loads((self.folder / "engine.json").read_text())
        self.made, self.order = kept["made"], np.array(kept["order"])

    def advance(self, checks: int, streak: int) -> TrajectorySegment:
        steps, resources = checks * self.request.md.every, self.request.resources
        error = self._call(
            "gromacs_run",
            steps=steps,
            threads=resources.threads,
            goes_on=self.made > 0,
            on_gpu=resources.device is not None and resources.device.gpu is not None,
        )
        sound, stopped = self._sound()
        if not sound:
            return TrajectorySegment(0, streak, stopped or error, None)
        numbers = self.made + 1 + np.arange(len(sound))
        step = self.request.md.every * self.request.md.timestep
        times = numbers.astype(np.float64) * step
        segment = judged(self.request, Batch.of(sound), times, streak)
        self.made += segment.made
        return replace(segment, stopped=segment.stopped or stopped or error)

    def switch_committee(self) -> None:
        """Nothing to do: the next segment is judged by the new committee."""

    def save(self) -> bytes:
        saved = self.request.folder / "saved"
        saved.mkdir(exist_ok=True)
        for name in KEPT:
            (saved / name).write_bytes((self.folder / name).read_bytes())
        kept = {"made": self.made, "order": self.order.tolist()}
        (saved / "engine.json").write_text(json.dumps(kept))
        return packed(saved)

    # ------------------------------------------------------------------------------- internals

    def _call(self, operation: str, **arguments: Any) -> Any:
        resources = self.request.resources
        own = {"program": resources.gromacs, "folder": str(self.folder)}
        return resources.call(operation, {**own, **arguments}, self.request.context)

    def _sound(self) -> tuple[list[Frame], str | None]:
        """The frames of the last segment up to an unphysical one, and what is wrong with it."""
        sound: list[Frame] = []
        overlap = self.request.md.overlap
        for positions, cell in self._checks():
            problem = unphysical(positions, cell, overlap, self._reach)
            if problem is not None:
                return sound, problem
            own = None if self.request.vacuum else cell
            moved = replace(self.request.frame, positions=positions, cell=own)
            try:
                sound.append(canonical(moved).frame)
            except ValueError as error:  # atoms flew away, or the cell collapsed
                return sound, str(error)
        return sound, None

    def _checks(self) -> Iterator[tuple[Floats, Floats]]:
        """Positions in the canonical order and cell of each check, Å."""
        start = self.request.frame.positions
        with np.load(self.folder / "frames.npz", allow_pickle=False) as found:
            for placed, cell in zip(found["positions"], found["cells"], strict=True):
                positions = placed[self.order]
                if self.request.vacuum:  # a molecule in a cubic cell, of which atoms have left
                    moved = positions - _offset(start, cell) - start
                    positions = start + moved - cell[0, 0] * np.rint(moved / cell[0, 0])
                yield positions, cell

    @property
    def _reach(self) -> float | None:
        request = self.request
        if not request.vacuum:
            return None
        return request.resources.cutoff(request.committee.models[0], request.context)


@dataclass(frozen=True)
class GromacsInputs:
    """`given`: run parameters of the user; `files`: run parameters and topology by file name."""

    given: Mapping[str, str]
    files: Mapping[str, str]


def prepare(
    settings: Gromacs,
    inputs: GromacsInputs,
    frame: Frame,
    folder: Path,
    call: Callable[..., Any],
) -> Ints:
    """Write the run input of a trajectory from the canonical `frame` to `folder`; the index in the
    topology of each of its atoms. `call(operation, **arguments)`
    runs an operation of the child in `folder`. Raises ValueError if GROMACS refuses the files, and
    if they do not fit the frame."""
    given = inputs.given
    for name, text in {**inputs.files, **inputs_for_names(len(frame.species), given)}.items():
        (folder / name).write_text(text)
    found = call("gromacs_atoms")
    _raise_if(found.get("error"))
    atoms = [(str(name), str(element)) for name, element in found["atoms"]]
    order = canonical_order(atoms, settings.elements, frame.species)
    positions, cell = frame.positions, frame.cell
    if cell is None:
        cell = room_for(positions, given)
        positions = positions + _offset(positions, cell)
    placed = np.empty_like(positions)
    placed[order] = positions
    lines = gro_lines([name for name, _ in atoms], placed, cell)
    (folder / "conf.gro").write_text("\n".join(lines) + "\n")
    _raise_if(call("gromacs_begin", warnings=settings.max_warnings))
    return order


def gromacs_inputs(
    settings: Gromacs, md: Md, condition: Condition, is_vacuum: bool, seed: int
) -> GromacsInputs:
    """The inputs of a condition for a structure without a cell if `is_vacuum`. Raises ValueError
    for those that are not allowed."""
    topology = settings.topologies[condition.system]
    try:
        check_topology(topology)
    except ValueError as error:
        raise ValueError(f"topologies.{condition.system}: {error}") from error
    given = parameters(settings.mdp)
    check_box(given, is_vacuum)
    return GromacsInputs(
        given, {"md.mdp": mdp_text(given, md, condition, seed), "topol.top": topology}
    )


def _offset(positions: Floats, cell: Floats) -> Floats:
    """What moves a molecule to the middle of a cell, Å."""
    middle: Floats = cell.sum(axis=0) / 2 - (positions.max(axis=0) + positions.min(axis=0)) / 2
    return middle


def _raise_if(error: str | None) -> None:
    if error is not None:
        raise ValueError(f"gromacs: {error}")
