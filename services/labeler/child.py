"""The labeler's child process: single points and reference dynamics with Python libraries.

Run by `dpstream.shared.runtime.child_process`; libraries are imported at first use and stay loaded.
Every single point starts from scratch, so that a label depends on no other frame.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from ase.data import atomic_numbers

from dpstream.services.labeler.acceptance import Outcome
from dpstream.services.labeler.dynamics import Plan, run
from dpstream.services.labeler.units import BOHR, HARTREE
from dpstream.shared.atoms.frames import Frame, to_ase
from dpstream.shared.runtime.machine_faults import is_gpus_fault
from dpstream.shared.values import Recipe

KELVIN = 3.166811563e-6
"""hartree; CODATA 2018."""
MAX_MESSAGE = 300
LAST_WITHOUT_ECP = 36
"""Kr: the def2 basis sets are all-electron up to this element (F. Weigend, R. Ahlrichs, Phys. Chem.
Chem. Phys. 7, 3297 (2005))."""


def tblite_point(recipe: Recipe, frame: Frame, _: Any) -> Outcome:
    """GFN-xTB energy, forces and virial. tblite's `virial` is dE/dε, a label's is −dE/dε."""
    from tblite.interface import Calculator

    settings = recipe.settings
    lattice = None if frame.cell is None else frame.cell / BOHR
    calculator = Calculator(
        settings["method"],
        np.array([atomic_numbers[symbol] for symbol in frame.species]),
        frame.positions / BOHR,
        float(recipe.charge),
        recipe.multiplicity - 1,
        lattice,
        None if lattice is None else np.full(3, True),
    )
    calculator.set("verbosity", 0)
    calculator.set("accuracy", settings["accuracy"])
    calculator.set("max-iter", settings["max_iterations"])
    calculator.set("temperature", settings["electronic_temperature"] * KELVIN)
    result = calculator.singlepoint()
    return Outcome(
        energies=(float(result.get("energy")) * HARTREE,),
        forces=-np.asarray(result.get("gradient")) * (HARTREE / BOHR),
        virial=None if lattice is None else -np.asarray(result.get("virial")) * HARTREE,
    )


def pyscf_point(recipe: Recipe, frame: Frame, _: Any) -> Outcome:
    """Kohn-Sham (or, with xc `hf`, Hartree-Fock) energy and forces of a molecule."""
    from pyscf import gto

    settings = recipe.settings
    molecule = gto.M(
        atom=list(zip(frame.species, (frame.positions / BOHR).tolist(), strict=True)),
        unit="Bohr",
        basis=settings["basis"],
        ecp=_core_potentials(settings, frame),
        charge=recipe.charge,
        spin=recipe.multiplicity - 1,
        verbose=0,
    )
    field = _mean_field(molecule, settings, recipe.multiplicity)
    energy = float(field.kernel()) * HARTREE
    if not field.converged:
        message = f"SCF not converged in {settings['max_cycle']} cycles"
        return Outcome(converged=False, not_converged=True, energies=(energy,), messages=(message,))
    gradient = np.asarray(field.nuc_grad_method().kernel())
    positions = molecule.atom_coords(unit="Bohr") * BOHR
    return Outcome(energies=(energy,), forces=-gradient * (HARTREE / BOHR), positions=positions)


def _core_potentials(settings: Mapping[str, Any], frame: Frame) -> str | dict[str, str]:
    """Effective core potentials. Without them a def2 basis gives wrong results for heavy atoms."""
    basis = str(settings["basis"])
    if settings["ecp"] is not None:
        return str(settings["ecp"])
    if not basis.lower().startswith("def2"):
        return {}
    heavy = {s for s in frame.species if atomic_numbers[s] > LAST_WITHOUT_ECP}
    return dict.fromkeys(sorted(heavy), basis)


def _mean_field(molecule: Any, settings: Mapping[str, Any], multiplicity: int) -> Any:
    from pyscf import dft

    kind = dft.RKS if multiplicity == 1 else dft.UKS
    field = kind(molecule, xc=settings["xc"])
    if settings["density_fit"]:
        field = field.density_fit()
    field.grids.level = settings["grid_level"]
    field.conv_tol = settings["conv_tol"]
    field.max_cycle = settings["max_cycle"]
    return field


def ase_point(recipe: Recipe, frame: Frame, calculator: Any) -> Outcome:
    """Energy, forces and virial (−stress·V) by an ASE calculator. The energy is the one of which
    the forces are the derivative; without it there is no label."""
    atoms = to_ase(frame)
    atoms.calc = calculator
    energy = _consistent_energy(atoms)
    if energy is None:
        message = f"{recipe.settings['calculator']} has no energy consistent with its forces"
        return Outcome(messages=(message,))
    return Outcome(
        energies=(energy,),
        forces=np.array(atoms.get_forces(), dtype=np.float64),
        virial=None if frame.cell is None else _ase_virial(atoms),
        positions=np.array(atoms.positions, dtype=np.float64),
    )


def _consistent_energy(atoms: Any) -> float | None:
    from ase.calculators.calculator import PropertyNotImplementedError

    try:
        return float(atoms.get_potential_energy(force_consistent=True))
    except PropertyNotImplementedError:
        pass  # some calculators return it without listing it in their properties
    atoms.get_potential_energy()
    energy = atoms.calc.results.get("free_energy")
    return None if energy is None else float(energy)


def _ase_virial(atoms: Any) -> Any:
    from ase.calculators.calculator import PropertyNotImplementedError

    try:
        return -np.asarray(atoms.get_stress(voigt=False)) * atoms.get_volume()
    except PropertyNotImplementedError:
        return None


def deepmd_point(recipe: Recipe, frame: Frame, model: Any) -> Outcome:
    """Energy, forces and virial of a Deep Potential, whose virial is −dE/dε as a label's."""
    type_map = model.type_map
    unknown = sorted(set(frame.species) - set(type_map))
    if unknown:
        message = f"the model supports {', '.join(type_map)}, not {', '.join(unknown)}"
        return Outcome(fault="unsupported-element", messages=(message,))
    cell = None if frame.cell is None else frame.cell.reshape(1, 9)
    kinds = [type_map.index(symbol) for symbol in frame.species]
    energy, forces, virial = model.eval(frame.positions.reshape(1, -1), cell, kinds)[:3]
    return Outcome(
        energies=(float(energy[0, 0]),),
        forces=np.asarray(forces[0], dtype=np.float64),
        virial=None if cell is None else np.asarray(virial[0], dtype=np.float64).reshape(3, 3),
    )


def dataset_point(recipe: Recipe, frame: Frame, _: Any) -> Outcome:
    """Labels of a dataset exist in the store already; a frame without one cannot be computed."""
    return Outcome(fault="not-in-dataset", messages=("the dataset has no label for this frame",))


def _prepare_tblite(recipe: Recipe) -> None:
    importlib.import_module("tblite.interface")


def _prepare_pyscf(recipe: Recipe) -> None:
    from pyscf import dft

    dft.libxc.parse_xc(recipe.settings["xc"])


def _prepare_ase(recipe: Recipe) -> Any:
    module, _, name = recipe.settings["calculator"].rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    return kind(**recipe.settings["arguments"])


def _prepare_deepmd(recipe: Recipe) -> Any:
    return _model(recipe.settings["model"])


@lru_cache(maxsize=1)
def _model(path: str) -> Any:
    from dpstream.shared.atoms.deep_pot import DeepPotential

    return DeepPotential(path)


Prepare = Callable[[Recipe], Any]
SinglePoint = Callable[[Recipe, Frame, Any], Outcome]

SINGLE_POINTS: dict[str, tuple[Prepare, SinglePoint]] = {
    "tblite": (_prepare_tblite, tblite_point),
    "pyscf": (_prepare_pyscf, pyscf_point),
    "ase": (_prepare_ase, ase_point),
    "deepmd": (_prepare_deepmd, deepmd_point),
    "dataset": (lambda recipe: None, dataset_point),
}
"""By code: a function that prepares a recipe, whose errors concern all its frames, and the single
point itself, which receives the result of the preparation."""


def single_point(recipe: Recipe, frame: Frame) -> Outcome:
    """The outcome of one single point. Exceptions about this frame are part of the outcome; those
    about the recipe (unknown functional, wrong keyword) or the GPU are raised."""
    prepare_recipe, point = SINGLE_POINTS[recipe.code]
    prepared = prepare_recipe(recipe)
    started = time.monotonic()
    try:
        outcome = point(recipe, frame, prepared)
    except Exception as error:
        if is_gpus_fault(str(error)):
            raise
        outcome = _failure(error)
    return replace(outcome, seconds=time.monotonic() - started)


def _failure(error: Exception) -> Outcome:
    text = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_MESSAGE]
    if "not converged" in text.lower():
        return Outcome(converged=False, not_converged=True, messages=(text,))
    if "No support for elements" in text or type(error).__name__ == "BasisNotFoundError":
        return Outcome(fault="unsupported-element", messages=(text,))
    return Outcome(exit_status=1, messages=(text,))


def prepare(recipe: dict[str, Any]) -> None:
    """Import the libraries of a recipe; raises errors that would concern all its frames."""
    parsed = Recipe.model_validate(recipe)
    SINGLE_POINTS[parsed.code][0](parsed)


def single_points(
    recipe: dict[str, Any], frames: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The outcomes (`Outcome.facts`) of all frames, in order."""
    parsed = Recipe.model_validate(recipe)
    return [single_point(parsed, frame_from_facts(frame)).facts() for frame in frames]


def reference_md(
    recipe: dict[str, Any], frame: Mapping[str, Any], plan: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Frames of a trajectory driven by the code: `[{frame, outcome}, …]`; `plan` holds the fields
    of a `Plan`."""
    parsed = Recipe.model_validate(recipe)
    kept = run(frame_from_facts(frame), lambda at: single_point(parsed, at), Plan(**plan))
    return [{"frame": frame_facts(at), "outcome": outcome.facts()} for at, outcome in kept]


def frame_facts(frame: Frame) -> dict[str, Any]:
    """A frame's species, positions and cell as JSON values."""
    return {
        "species": list(frame.species),
        "positions": frame.positions.tolist(),
        "cell": None if frame.cell is None else frame.cell.tolist(),
    }


def frame_from_facts(facts: Mapping[str, Any]) -> Frame:
    cell = facts["cell"]
    return Frame(
        tuple(facts["species"]),
        np.array(facts["positions"], dtype=np.float64).reshape(-1, 3),
        None if cell is None else np.array(cell, dtype=np.float64),
    )


OPERATIONS: dict[str, Callable[..., Any]] = {
    "prepare": prepare,
    "single_points": single_points,
    "reference_md": reference_md,
}
