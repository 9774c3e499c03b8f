"""Labeling codes for real: signs and units by finite differences, and how they fail."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from dpstream.services.labeler.acceptance import AcceptanceLimits, Outcome, check_after
from dpstream.services.labeler.child import single_point, single_points
from dpstream.services.labeler.dynamics import Plan, run
from dpstream.services.labeler.recipes import make_recipe
from dpstream.shared.atoms.frames import Floats, Frame, canonical, from_ase
from dpstream.shared.runtime.child_process import PINNED
from dpstream.shared.spec import LabelSettings
from dpstream.shared.values import Recipe

# As in the engine child: with more threads tblite's last bits vary from run to run.
os.environ.update(dict.fromkeys(PINNED, "1"))

TIGHT: dict[str, dict[str, Any]] = {
    "tblite": {"accuracy": 0.001},
    "pyscf": {"conv_tol": 1e-11},
    "ase": {"calculator": "ase.calculators.emt.EMT"},
}
H2O_IN_A_SKEWED_BOX = np.array([[5.0, 0, 0], [0.7, 5.5, 0], [-0.4, 0.9, 6.0]])


def recipe(code: str, settings: dict[str, Any] | None = None, **spin: int) -> Recipe:
    return make_recipe(LabelSettings(code=code, settings=settings or TIGHT[code], **spin))


def rattled(atoms: Atoms, seed: int = 3, size: float = 0.08) -> Frame:
    atoms = atoms.copy()
    atoms.rattle(size, seed=seed)
    return canonical(from_ase(atoms)).frame


def frame(symbols: list[str], positions: list[list[float]]) -> Frame:
    return Frame(tuple(symbols), np.array(positions, dtype=np.float64))


def energy(recipe: Recipe, frame: Frame) -> float:
    outcome = single_point(recipe, frame)
    assert check_after(frame, outcome, AcceptanceLimits(max_force=1e6)) is None
    return outcome.label().energy


def force_by_difference(recipe: Recipe, frame: Frame, atom: int, axis: int, h: float) -> float:
    def at(step: float) -> float:
        positions = frame.positions.copy()
        positions[atom, axis] += step
        return energy(recipe, replace(frame, positions=positions))

    return -(at(h) - at(-h)) / (2 * h)


def virial_by_difference(recipe: Recipe, frame: Frame, h: float = 1e-4) -> Floats:
    """W = −dE/dε for all nine components; rows are strained as `v @ (1 + ε)`."""
    assert frame.cell is not None
    result = np.empty((3, 3))
    for i, j in np.ndindex(3, 3):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * h
            strained = Frame(frame.species, frame.positions @ strain, frame.cell @ strain)
            energies.append(energy(recipe, strained))
        result[i, j] = -(energies[0] - energies[1]) / (2 * h)
    return result


@pytest.mark.parametrize(
    ("code", "atoms", "components", "tolerance"),
    [
        ("tblite", molecule("CH4"), [(0, 0), (1, 1), (4, 2)], 1e-4),
        ("tblite", molecule("H2O", cell=H2O_IN_A_SKEWED_BOX, pbc=True), [(0, 0), (2, 1)], 1e-4),
        ("pyscf", molecule("H2O"), [(2, 1)], 1e-3),
        ("ase", bulk("Cu", cubic=True), [(0, 0), (3, 2)], 1e-5),
    ],
)
def test_forces_are_the_energys_derivative(
    code: str, atoms: Atoms, components: list[tuple[int, int]], tolerance: float
) -> None:
    at, by = rattled(atoms), recipe(code)
    forces = single_point(by, at).label().forces
    assert np.abs(forces).max() > 0.2
    for atom, axis in components:
        by_difference = force_by_difference(by, at, atom, axis, 1e-3)
        assert forces[atom, axis] == pytest.approx(by_difference, abs=tolerance)


@pytest.mark.parametrize(
    ("code", "atoms", "tolerance"),
    [
        ("tblite", molecule("H2O", cell=H2O_IN_A_SKEWED_BOX, pbc=True), 1e-4),
        ("ase", bulk("Cu", a=3.5, cubic=True), 1e-4),
    ],
)
def test_virial_is_minus_the_energys_strain_derivative(
    code: str, atoms: Atoms, tolerance: float
) -> None:
    at, by = rattled(atoms), recipe(code)
    virial = single_point(by, at).label().virial
    assert virial is not None
    assert np.abs(virial).max() > 0.05
    np.testing.assert_allclose(virial, virial_by_difference(by, at), atol=tolerance)


@pytest.mark.parametrize("code", ["tblite", "ase"])
def test_labels_come_back_through_canonical_form(code: str) -> None:
    """A rotated, shuffled, unwrapped crystal gets the forces it would have had as it was."""
    atoms = bulk("CuAu", "rocksalt", a=5.2) * (2, 1, 1) if code == "ase" else _quartzish()
    atoms.rattle(0.1, seed=8)
    rng = np.random.default_rng(2)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    order = rng.permutation(len(atoms))
    moved = atoms[order]
    moved.set_cell(atoms.cell[:] @ rotation)
    moved.positions = atoms.positions[order] @ rotation + 1.7 * moved.cell[1]
    plain, turned = from_ase(atoms), canonical(from_ase(moved))
    by = recipe(code)
    expected = single_point(by, plain).label()
    got = single_point(by, turned.frame).label()
    assert got.energy == pytest.approx(expected.energy, abs=1e-4)
    back = turned.forces_back(got.forces)
    np.testing.assert_allclose(back, expected.forces[order] @ rotation, atol=1e-3)
    assert got.virial is not None
    assert expected.virial is not None
    total = rotation @ turned.rotation
    np.testing.assert_allclose(got.virial, total.T @ expected.virial @ total, atol=3e-3)


def _quartzish() -> Atoms:
    return molecule("CH3OH", cell=H2O_IN_A_SKEWED_BOX + np.eye(3), pbc=True)


def test_same_frame_same_bits_whatever_came_before() -> None:
    by = recipe("tblite")
    first, other = rattled(molecule("CH4"), 1), rattled(molecule("CH4"), 2)
    alone = single_point(by, first)
    for _ in range(10):
        single_point(by, other)
        again = single_point(by, first)
        assert alone.energies == again.energies
        assert alone.forces is not None
        assert again.forces is not None
        assert (alone.forces == again.forces).all()


COINCIDENT = frame(["H", "H"], [[0, 0, 0], [0, 0, 0]])
METHYL = frame(["C", "H", "H", "H"], [[0, 0, 0], [1.08, 0, 0], [-0.54, 0.93, 0], [-0.54, -0.93, 0]])
OVERLAP = frame(["H", "H"], [[0, 0, 0], [0, 0, 0.3]])
FRANCIUM = frame(["Fr", "H"], [[0, 0, 0], [0, 0, 2.5]])


@pytest.mark.parametrize(
    ("code", "settings", "at", "rule", "said"),
    [
        ("tblite", {"max_iterations": 1}, rattled(molecule("CH4")), "not-converged", "1 cycles"),
        ("pyscf", {"max_cycle": 1}, rattled(molecule("H2O")), "not-converged", "1 cycles"),
        ("tblite", {}, COINCIDENT, "exit-status", "Too close"),
        ("pyscf", {}, COINCIDENT, "exit-status", ""),
        ("pyscf", {}, METHYL, "exit-status", "Electron number 9"),
        ("tblite", {}, FRANCIUM, "unsupported-element", "Z >86"),
        ("pyscf", {}, FRANCIUM, "unsupported-element", "Fr"),
        ("tblite", {}, OVERLAP, "max-force", "122"),
        ("pyscf", {}, OVERLAP, "max-force", "122"),
    ],
)
def test_how_codes_fail(
    code: str, settings: dict[str, Any], at: Frame, rule: str, said: str
) -> None:
    outcome = single_point(make_recipe(LabelSettings(code=code, settings=settings)), at)
    broken = check_after(at, outcome, AcceptanceLimits())
    assert broken is not None
    assert broken.rule == rule
    assert said in broken.detail


def test_tblite_accepts_odd_electrons_so_the_check_before_must_not() -> None:
    outcome = single_point(recipe("tblite"), METHYL)
    assert check_after(METHYL, outcome, AcceptanceLimits()) is None


@pytest.mark.parametrize("code", ["tblite", "pyscf"])
def test_charge_and_multiplicity_reach_the_codes(code: str) -> None:
    water = rattled(molecule("H2O"))
    settings = {"basis": "sto-3g", "grid_level": 1} if code == "pyscf" else TIGHT[code]
    ground = energy(recipe(code, settings), water)
    assert energy(recipe(code, settings, multiplicity=3), water) - ground > 4
    assert energy(recipe(code, settings, charge=1, multiplicity=2), water) - ground > 6


def test_def2_core_potentials_come_by_themselves() -> None:
    """Without them iodine's energy is off by tens of keV, and PySCF says nothing."""
    iodide = frame(["H", "I"], [[0, 0, 0], [0, 0, 1.6]])
    by = make_recipe(LabelSettings(code="pyscf", settings={"grid_level": 1}))
    assert energy(by, iodide) == pytest.approx(-298.279 * 27.2114, abs=0.5)


def test_periodic_tblite_is_gamma_only_as_its_warning_says() -> None:
    per_atom = []
    for repeat in (1, 2):
        atoms = bulk("Si", cubic=repeat == 2)
        per_atom.append(energy(recipe("tblite"), canonical(from_ase(atoms)).frame) / len(atoms))
    assert per_atom == pytest.approx([-41.7, -46.0], abs=0.2)


def test_a_calculator_without_a_consistent_energy_is_refused() -> None:
    water = rattled(molecule("H2O"))
    by = make_recipe(
        LabelSettings(code="ase", settings={"calculator": "ase.calculators.tip3p.TIP3P"})
    )
    broken = check_after(water, single_point(by, water), AcceptanceLimits())
    assert broken is not None
    assert broken.rule == "one-energy"
    assert "consistent" in broken.detail


def test_what_is_wrong_with_the_recipe_is_raised() -> None:
    water = rattled(molecule("H2O"))
    with pytest.raises(KeyError, match="PBEE"):
        single_point(make_recipe(LabelSettings(code="pyscf", settings={"xc": "pbee"})), water)
    settings = {"calculator": "ase.calculators.emt.EMTT"}
    with pytest.raises(AttributeError, match="EMTT"):
        single_point(make_recipe(LabelSettings(code="ase", settings=settings)), water)


def test_ase_and_direct_tblite_agree() -> None:
    water = rattled(molecule("H2O", cell=H2O_IN_A_SKEWED_BOX, pbc=True))
    arguments = {"method": "GFN2-xTB", "accuracy": 0.001, "verbosity": 0}
    settings = {"calculator": "tblite.ase.TBLite", "arguments": arguments}
    direct = single_point(recipe("tblite"), water).label()
    through = single_point(recipe("ase", settings), water).label()
    assert through.energy == pytest.approx(direct.energy, abs=1e-5)
    np.testing.assert_allclose(through.forces, direct.forces, atol=1e-5)
    assert direct.virial is not None
    np.testing.assert_allclose(through.virial, direct.virial, atol=1e-5)  # type: ignore[arg-type]


def test_the_operation_answers_in_order() -> None:
    frames = [rattled(molecule("CH4"), seed) for seed in (1, 2)]
    by = recipe("tblite")
    facts = single_points(
        by.model_dump(),
        [{"species": f.species, "positions": f.positions.tolist(), "cell": None} for f in frames],
    )
    for at, answer in zip(frames, facts, strict=True):
        assert Outcome.of(answer).energies == single_point(by, at).energies


def point(by: Recipe) -> Callable[[Frame], Outcome]:
    return lambda at: single_point(by, at)


PLAN = Plan(seed=4, temperature=300.0, timestep=0.0005, equilibrate=0.1, spacing=0.05, frames=4)


def test_reference_dynamics_is_a_function_of_its_plan() -> None:
    start, by = rattled(molecule("CH4"), size=0.0), recipe("tblite", {})
    first, again = list(run(start, point(by), PLAN)), list(run(start, point(by), PLAN))
    other = list(run(start, point(by), replace(PLAN, seed=5)))
    assert len(first) == 4
    for (a, _), (b, _), (c, _) in zip(first, again, other, strict=True):
        assert (a.positions == b.positions).all()
        assert np.abs(a.positions - c.positions).max() > 1e-3
    for at, outcome in first:
        fresh = single_point(by, at).label()
        assert outcome.label().energy == fresh.energy
        assert (outcome.label().forces == fresh.forces).all()


def test_reference_dynamics_samples_the_temperature() -> None:
    """Mean potential energy of near-harmonic CH4 above its minimum: (9/2) kT, here loosely."""
    start, by = rattled(molecule("CH4"), size=0.0), recipe("tblite", {})
    minimum = energy(by, start)
    long = replace(PLAN, equilibrate=0.3, spacing=0.02, frames=80)
    above = np.mean([o.label().energy - minimum for _, o in run(start, point(by), long)])
    assert above == pytest.approx(4.5 * 8.617e-5 * 300, rel=0.3)


def test_dynamics_without_convergence_says_so() -> None:
    start, by = rattled(molecule("CH4")), recipe("tblite", {"max_iterations": 2})
    with pytest.raises(RuntimeError, match="not-converged"):
        list(run(start, point(by), PLAN))
