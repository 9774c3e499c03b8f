"""Relaxes a crystal with the mean forces and stress of a committee, in the child process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import units
from ase.calculators.calculator import Calculator, all_changes
from ase.filters import UnitCellFilter
from ase.neighborlist import neighbor_list
from ase.optimize import FIRE

from dpstream.shared.atoms.frames import Batch, Floats, Frame, canonical, from_ase, to_ase

Evaluate = Callable[[Batch], tuple[Floats, Floats, Floats]]
"""Energies `(n_models, 1)`, forces `(n_models, 1, n_atoms, 3)`, virials `(n_models, 1, 3, 3)`."""
LARGEST_GROWTH = 4.0
"""Largest volume relative to the initial one; a larger crystal has fallen apart."""


class CommitteeMean(Calculator):  # type: ignore[misc]
    """Mean energy, forces and stress; `spread` keeps each member's forces and virials."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012  as in ASE

    def __init__(self, evaluate: Evaluate) -> None:
        super().__init__()
        self._evaluate = evaluate
        self.spread: tuple[Floats, Floats] | None = None

    def calculate(
        self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        energies, forces, virials = self._evaluate(Batch.of([from_ase(atoms)]))
        self.spread = forces[:, 0], virials[:, 0]
        stress = -virials.mean(axis=0)[0] / atoms.get_volume()
        self.results = {
            "energy": float(energies.mean()),
            "forces": forces.mean(axis=0)[0],
            "stress": 0.5 * (stress + stress.T)[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]],
        }


@dataclass(frozen=True, eq=False)
class Relaxed:
    """The relaxed frame with its enthalpy in eV and the members' forces and virials."""

    frame: Frame
    enthalpy: float
    forces: Floats
    virials: Floats


def relaxed(
    frame: Frame, evaluate: Evaluate, steps: int, max_force: float, pressure: float, overlap: float
) -> Relaxed:
    """The canonical structure relaxed at `pressure` bar until forces are below `max_force` eV/Å or
    for `steps` steps; if atoms come closer than `overlap` Å or the crystal falls apart, the last
    structure before that."""
    atoms, compression = to_ase(frame), pressure * units.bar
    atoms.calc = CommitteeMean(evaluate)
    volume, sound = atoms.get_volume(), frame
    found = UnitCellFilter(atoms, scalar_pressure=compression)
    for _ in FIRE(found, logfile=None, maxstep=0.1).irun(fmax=max_force, steps=steps):
        if not _is_sound(atoms, overlap, LARGEST_GROWTH * volume):
            break
        sound = from_ase(atoms)
    # Canonical, so that the judged structure is exactly the one that may be labelled.
    sound = canonical(sound).frame
    end = to_ase(sound)
    end.calc = CommitteeMean(evaluate)
    enthalpy = float(end.get_potential_energy() + compression * end.get_volume())
    forces, virials = end.calc.spread
    return Relaxed(sound, enthalpy, forces, virials)


def _is_sound(atoms: Any, overlap: float, largest: float) -> bool:
    if not np.isfinite(atoms.positions).all() or not 0 < np.linalg.det(atoms.cell[:]) < largest:
        return False
    return not len(neighbor_list("d", atoms, overlap))
