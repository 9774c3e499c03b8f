"""Errors of a trained model on labelled frames, for every backend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpstream.shared.atoms.deep_pot import DeepPotential
from dpstream.shared.atoms.frames import PARAMETERS


def evaluate(model: str, systems: Sequence[str]) -> dict[str, Any]:
    """Root mean square errors of `model` over DeePMD-kit systems, every frame of all of them:
    energy per atom (eV), force component (eV/Å), virial component per atom (eV; None where no
    system has virials), and the labels' own RMS force component (eV/Å) as `rms_force`."""
    potential = DeepPotential(model)
    sums = _Sums()
    for system in systems:
        _evaluate_system(potential, Path(system), sums)
    return sums.result()


class _Sums:
    """Sums and counts of squares, by quantity."""

    def __init__(self) -> None:
        self.frames = 0
        self._squares: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, values: npt.NDArray[np.float64]) -> None:
        self._squares[name] = self._squares.get(name, 0.0) + float(np.sum(values**2))
        self._counts[name] = self._counts.get(name, 0) + values.size

    def result(self) -> dict[str, Any]:
        names = ("energy", "force", "virial", "rms_force")
        means = {name: self._root(name) for name in names}
        return {"frames": self.frames, **means}

    def _root(self, name: str) -> float | None:
        if name not in self._counts:
            return None
        return float(np.sqrt(self._squares[name] / self._counts[name]))


def _evaluate_system(potential: DeepPotential, system: Path, sums: _Sums) -> None:
    data = {p.stem: np.load(p) for p in sorted((system / "set.000").glob("*.npy"))}
    names = (system / "type_map.raw").read_text().split()
    words = (system / "type.raw").read_text().split()
    types = [potential.type_map.index(names[int(word)]) for word in words]
    atoms, coeff = len(types), data.get("atom_ener_coeff")
    energy, force, virial, *atomic = potential.eval(
        data["coord"],
        None if (system / "nopbc").exists() else data["box"],
        types,
        atomic=coeff is not None,
        **{name: data[name] for name in PARAMETERS if name in data},
    )
    if coeff is not None:
        energy = np.sum(coeff * atomic[0].reshape(coeff.shape), axis=1)
    wanted = data["force"]
    sums.add("energy", (energy.reshape(-1) - data["energy"]) / atoms)
    sums.add("force", force.reshape(wanted.shape) - wanted)
    sums.add("rms_force", wanted)
    if "virial" in data:
        sums.add("virial", (virial.reshape(-1, 9) - data["virial"]) / atoms)
    sums.frames += len(data["energy"])
