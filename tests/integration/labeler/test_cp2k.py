"""CP2K for real: signs and units by finite differences, and how it fails."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import dpdata
import numpy as np
import pytest
from ase.build import molecule

from dpstream.inputs.read_labelled import read_labelled
from dpstream.services.labeler.acceptance import Outcome
from dpstream.services.labeler.codes.cp2k.cp2k import Cp2k, input_text
from dpstream.services.labeler.recipes import make_recipe
from dpstream.shared.atoms.frames import Frame, canonical, from_ase
from dpstream.shared.errors import EngineKilled, SpecError
from dpstream.shared.spec import LabelSettings
from tests.support.programs.labeling_programs import (
    direction,
    force_along,
    point,
    require,
    rule,
    virial_along,
)

SETTINGS: dict[str, Any] = {"cutoff": 120, "basis": {"H": "SZV-MOLOPT-SR-GTH"}}
FINER: dict[str, Any] = {"cutoff": 250}
"""A coarser grid adds its own part to a force's difference quotient."""
SKEWED = [[4.2, 0, 0], [0.3, 4.4, 0], [-0.2, 0.4, 4.6]]

Run = Callable[..., Outcome]


def hydrogen(bond: float = 0.8) -> Frame:
    atoms = molecule("H2", cell=SKEWED, pbc=True)
    atoms.set_distance(0, 1, bond)
    atoms.positions += [0.3, 0.2, 0.1]
    atoms.rotate(40, (1, 2, 3), center="COM")
    return canonical(from_ase(atoms)).frame


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One single point; further settings go over the cheap ones."""
    require("cp2k")
    folder, number = tmp_path_factory.mktemp("cp2k"), count()

    def one(frame: Frame, multiplicity: int = 1, **settings: Any) -> Outcome:
        return point(
            "cp2k",
            SETTINGS | settings,
            frame,
            folder / str(next(number)),
            multiplicity=multiplicity,
        )

    return one


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """A good label and the folder in which it was computed."""
    require("cp2k")
    folder = tmp_path_factory.mktemp("good") / "run"
    return point("cp2k", SETTINGS, hydrogen(), folder), folder


def energy(run: Run, **settings: Any) -> Callable[[Frame], float]:
    def of(frame: Frame) -> float:
        outcome = run(frame, **settings)
        assert rule(frame, outcome) is None
        return outcome.energies[0]

    return of


def changed(**scf: Any) -> dict[str, Any]:
    return {"keywords": {"FORCE_EVAL": {"DFT": {"SCF": scf}}}}


def test_a_good_label_echoes_its_positions(done: tuple[Outcome, Path]) -> None:
    outcome, frame = done[0], hydrogen()
    assert rule(frame, outcome) is None
    assert outcome.positions is not None
    np.testing.assert_allclose(outcome.positions, frame.positions, atol=1e-6)
    assert outcome.seconds > 0


@pytest.mark.soak
def test_forces_are_the_energys_derivative(run: Run) -> None:
    frame, way = hydrogen(), direction((2, 3), seed=1)
    forces = run(frame, **FINER).label().forces
    along = force_along(energy(run, **FINER), frame, way, 0.01)
    assert abs(along) > 0.2
    assert float((forces * way).sum()) == pytest.approx(along, abs=1e-3)


def test_virial_is_minus_the_energys_strain_derivative(
    done: tuple[Outcome, Path], run: Run
) -> None:
    frame, strain = hydrogen(), direction((3, 3), seed=2)
    virial = done[0].label().virial
    assert virial is not None
    along = virial_along(energy(run), frame, strain + strain.T, 2e-3)
    assert abs(along) > 0.5
    assert float((virial * (strain + strain.T)).sum()) == pytest.approx(along, abs=1e-3)


def test_dpdata_reads_the_same(done: tuple[Outcome, Path]) -> None:
    """Energy and forces: its reader drops the virial and rounds the cell of this version."""
    outcome, folder = done
    data = dpdata.LabeledSystem(str(folder / "stdout"), fmt="cp2k/output").data
    assert outcome.energies == pytest.approx(data["energies"], rel=1e-7)
    np.testing.assert_allclose(outcome.label().forces, data["forces"][0], atol=1e-5)


def test_a_template_gives_what_its_keywords_give(done: tuple[Outcome, Path], run: Run) -> None:
    frame = hydrogen()
    text = input_text(frame, make_recipe(LabelSettings(code="cp2k", settings=SETTINGS)))
    ours = ("CHARGE", "MULTIPLICITY", "A ", "B ", "C ", "H ")
    template = [line for line in text.splitlines() if not line.strip().startswith(ours)]
    outcome = run(frame, template="\n".join(template), cutoff=400.0, basis={})
    assert rule(frame, outcome) is None
    assert outcome.energies == pytest.approx(done[0].energies, abs=1e-6)


def test_spin_and_mesh_reach_the_code(done: tuple[Outcome, Path], run: Run) -> None:
    frame = hydrogen()
    triplet = run(frame, multiplicity=3)
    assert rule(frame, triplet) is None
    assert triplet.energies[0] - done[0].energies[0] > 4
    sampled = run(frame, kpoints=[1, 1, 2])
    assert rule(frame, sampled) is None
    assert 1e-3 < abs(sampled.energies[0] - done[0].energies[0]) < 1


@pytest.mark.parametrize(
    ("settings", "broken", "said"),
    [
        (changed(MAX_SCF=2, OUTER_SCF={"MAX_SCF": 1}), "not-converged", ""),
        ({"potential": {"H": "GTH-NONE"}}, "unsupported-element", "potential <GTH-NONE>"),
        ({"basis": {"H": "DZVP-NONE"}}, "unsupported-element", "basis set <DZVP-NONE>"),
        (changed(MAX_SCFF=2), "exit-status", "unknown keyword MAX_SCFF"),
    ],
)
def test_how_it_fails(run: Run, settings: dict[str, Any], broken: str, said: str) -> None:
    frame = hydrogen()
    outcome = run(frame, **settings)
    assert rule(frame, outcome) == broken
    assert said in "".join(outcome.messages)
    assert broken != "not-converged" or (outcome.exit_status, outcome.end_marker) == (0, True)


def test_close_atoms_are_computed_and_caught_by_the_cap(run: Run) -> None:
    frame = hydrogen(0.3)
    outcome = run(frame)
    assert outcome.exit_status == 0
    assert rule(frame, outcome) == "max-force"


def test_coincident_atoms_end_the_program(run: Run) -> None:
    frame = hydrogen()
    frame.positions[1] = frame.positions[0]
    outcome = run(frame)
    assert outcome.exit_status == 1
    assert rule(frame, outcome) == "exit-status"
    assert outcome.messages[0].startswith("GEOMETRY wrong")


def test_killed_midway_it_is_tried_elsewhere(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel kills it after one second of its time: no rejection of the frame."""
    require("cp2k")
    monkeypatch.setenv("DPSTREAM_LABELER_COMMANDS", "cp2k=prlimit --cpu=1 cp2k.psmp")
    with pytest.raises(EngineKilled, match="was killed"):
        run(hydrogen(), cutoff=1200)


CUTS = [("ENERGY| Total", "one-energy"), ("SUM OF ATOMIC", "forces"), ("STRESS| Ana", "virial")]


@pytest.mark.parametrize(("before", "missing"), [*CUTS, ("**  PROGRAM ENDED AT", None)])
def test_an_output_cut_off_is_no_label(
    done: tuple[Outcome, Path], tmp_path: Path, before: str, missing: str | None
) -> None:
    """Neither as it is, nor with the last lines that it lost."""
    frame = hydrogen()
    text = (done[1] / "stdout").read_text()
    kept, found, _ = text.partition(before)
    assert found
    (tmp_path / "stdout").write_text(kept)
    assert rule(frame, Cp2k().read_outputs(tmp_path, frame, 0)) == "end-marker"
    (tmp_path / "stdout").write_text(kept + "\n  **** PROGRAM ENDED AT\n")
    assert rule(frame, Cp2k().read_outputs(tmp_path, frame, 0)) == missing


def test_an_absent_program_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPSTREAM_LABELER_COMMANDS", "cp2k=no-such-cp2k")
    with pytest.raises(SpecError, match=r"no-such-cp2k.*apt install cp2k.*labels\.version"):
        make_recipe(LabelSettings(code="cp2k"))
    assert make_recipe(LabelSettings(code="cp2k", version="2023.1")).version == "2023.1"
    assert not Cp2k().is_here()


def test_another_version_than_stated_is_refused() -> None:
    require("cp2k")
    with pytest.raises(SpecError, match=r"labels\.version: '1\.0', but cp2k"):
        make_recipe(LabelSettings(code="cp2k", version="1.0"))


def test_its_output_imported_is_the_same_label(done: tuple[Outcome, Path]) -> None:
    (item,), label = (
        read_labelled(["stdout"], done[1], ["H"], "initial.data").items,
        done[0].label(),
    )
    assert item.label.energy == label.energy
    np.testing.assert_allclose(item.label.forces, label.forces, atol=1e-6)
    assert item.label.virial is not None
    assert label.virial is not None
    np.testing.assert_allclose(item.label.virial, label.virial, rtol=1e-3, atol=1e-4)
    assert item.frame.cell is not None
    np.testing.assert_allclose(
        item.frame.cell, hydrogen().cell, atol=1e-3
    )  # three decimals printed


@pytest.mark.soak
def test_the_steps_of_dynamics_imported_are_the_same_labels(run: Run, tmp_path: Path) -> None:
    """To within what the start of the iterations leaves."""
    recipe = make_recipe(LabelSettings(code="cp2k", settings=SETTINGS))
    motion = "&MOTION\n&MD\nENSEMBLE NVE\nSTEPS 2\nTIMESTEP 0.5\nTEMPERATURE 300\n&END\n&END\n"
    text = input_text(hydrogen(), recipe).replace("RUN_TYPE ENERGY_FORCE", "RUN_TYPE MD")
    (tmp_path / "md.inp").write_text(motion + text)
    with (tmp_path / "md.out").open("w") as out:
        subprocess.run(["cp2k.psmp", "-i", "md.inp"], cwd=tmp_path, stdout=out, check=True)
    items = read_labelled(["md.out"], tmp_path, ["H"], "initial.data").items
    assert len(items) == 3
    for item in items:
        own = run(item.frame).label()
        assert item.label.energy == pytest.approx(own.energy, abs=1e-5)
        np.testing.assert_allclose(item.label.forces, own.forces, atol=1e-3)
        np.testing.assert_allclose(item.label.virial, own.virial, atol=2e-3)
