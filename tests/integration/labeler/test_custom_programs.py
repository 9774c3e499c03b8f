"""The recipes for psi4, NWChem and ABINIT that users copy, run for real where the program is."""

from __future__ import annotations

import shutil
from itertools import count
from pathlib import Path

import pytest
from ase.build import bulk, molecule

from dpstream.running.recipe_file import read_recipe
from dpstream.services.labeler.acceptance import Outcome
from dpstream.shared.atoms.frames import Frame, canonical, from_ase
from tests.support.programs.labeling_programs import (
    direction,
    force_along,
    point_of,
    rule,
    virial_along,
)

RECIPES = Path(__file__).parents[3] / "examples/recipes"
COMMANDS = {
    "psi4": "psi4 -n {cores} input.dat output.dat",
    "nwchem": "nwchem dft.nw",
    "abinit": "abinit scf.abi",
}
UNCONVERGED = {
    "psi4": ("psi4.dat", "set e_convergence", "set maxiter 2\nset e_convergence"),
    "nwchem": ("nwchem.nw", "  grid fine", "  grid fine\n  iterations 2"),
    "abinit": ("abinit.abi", "nstep 60", "nstep 3"),
}
"""File, text and what stands in its place."""


class Bench:
    """Single points by one of the recipes."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program, self.folder, self.numbers = program, folder, count()
        self.recipes = Path(shutil.copytree(RECIPES, folder / "recipes"))

    def run(self, frame: Frame) -> Outcome:
        method, _ = read_recipe(self.recipes / f"{self.program}.yaml")
        place = self.folder / str(next(self.numbers))
        return point_of(method.recipe, method.files, frame, place)

    def energy(self, frame: Frame) -> float:
        outcome = self.run(frame)
        assert rule(frame, outcome) is None
        return outcome.label().energy

    def frame(self) -> Frame:
        atoms = bulk("Al", cubic=True) if self.program == "abinit" else molecule("H2O")
        atoms.rattle(0.08, seed=3)
        return canonical(from_ase(atoms)).frame


@pytest.fixture(params=COMMANDS)
def resources(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Bench:
    program: str = request.param
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    monkeypatch.setenv("DPSTREAM_LABELER_COMMANDS", f"{program}={COMMANDS[program]}")
    return Bench(program, tmp_path)


def test_forces_and_virials_are_derivatives_of_the_energy(resources: Bench) -> None:
    frame = resources.frame()
    outcome = resources.run(frame)
    assert rule(frame, outcome) is None
    label = outcome.label()
    way = direction(frame.positions.shape, 4)
    slope = force_along(resources.energy, frame, way, 0.01)
    assert (label.forces * way).sum() == pytest.approx(slope, abs=5e-3)
    if frame.cell is not None:
        assert label.virial is not None
        strain = direction((3, 3), 5)
        strain = (strain + strain.T) / 2
        numeric = virial_along(resources.energy, frame, strain, 5e-3)
        assert (label.virial * strain).sum() == pytest.approx(numeric, abs=0.4)


def test_what_did_not_converge_is_refused(resources: Bench) -> None:
    name, text, instead = UNCONVERGED[resources.program]
    path = resources.recipes / name
    assert text in path.read_text()
    path.write_text(path.read_text().replace(text, instead))
    frame = resources.frame()
    assert rule(frame, resources.run(frame)) in ("not-converged", "exit-status")
