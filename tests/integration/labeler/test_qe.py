"""pw.x for real, on a metal with smearing: signs and units by finite differences, how it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import dpdata
import numpy as np
import pytest
from ase.build import bulk

from dpstream.inputs.read_labelled import read_labelled
from dpstream.running.label_here import label_frames
from dpstream.services.labeler.acceptance import Outcome
from dpstream.services.labeler.codes.qe.qe import Qe
from dpstream.services.labeler.recipes import make_recipe, read_files
from dpstream.shared.atoms.electron_temperature import heated
from dpstream.shared.atoms.frames import Frame, FrameLabel, canonical, from_ase
from dpstream.shared.errors import EngineKilled, SpecError
from dpstream.shared.spec import LabelSettings, Spec
from tests.support.programs.labeling_programs import (
    direction,
    force_along,
    point,
    require,
    rule,
    virial_along,
)

SETTINGS: dict[str, Any] = {
    "pseudopotentials": {"Al": "Al.pz-vbc.UPF"},
    "ecutwfc": 12,
    "kpoints": [2, 2, 2],
    "smearing": "gaussian",
    "degauss": 0.03,
}
"""Coarse, and consistent: forces and stress are derivatives at any cutoff's energy."""

CAMPAIGN: dict[str, Any] = {
    "name": "aluminium",
    "type_map": ["Al"],
    "systems": {"s": {"structures": ["s.xyz"], "fparam": [1000.0]}},
    "initial": {"perturb": {}},
    "stages": [{"name": "one", "systems": ["s"], "temperatures": [300]}],
    "training": {"input": {"model": {"fitting_net": {"numb_fparam": 1}}}},
}

Run = Callable[..., Outcome]


def aluminium() -> Frame:
    atoms = bulk("Al", cubic=True)
    atoms.rattle(0.08, seed=3)
    return canonical(from_ase(atoms)).frame


def moved(frame: Frame, distance: float) -> Frame:
    """The second atom `distance` Å from the first."""
    frame.positions[1] = frame.positions[0] + [distance, 0, 0]
    return frame


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One single point; further settings go over the cheap ones."""
    require("qe")
    folder, number = tmp_path_factory.mktemp("qe"), count()

    def one(frame: Frame, **settings: Any) -> Outcome:
        return point("qe", SETTINGS | settings, frame, folder / str(next(number)))

    return one


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """A good label and the folder in which it was computed."""
    require("qe")
    folder = tmp_path_factory.mktemp("good") / "run"
    return point("qe", SETTINGS, aluminium(), folder), folder


def energy(run: Run) -> Callable[[Frame], float]:
    def of(frame: Frame) -> float:
        outcome = run(frame)
        assert rule(frame, outcome) is None
        return outcome.energies[0]

    return of


def test_a_good_label_echoes_its_positions(done: tuple[Outcome, Path]) -> None:
    outcome, frame = done[0], aluminium()
    assert rule(frame, outcome) is None
    assert outcome.positions is not None
    np.testing.assert_allclose(outcome.positions, frame.positions, atol=1e-6)


def test_forces_are_the_free_energys_derivative(done: tuple[Outcome, Path], run: Run) -> None:
    frame, way = aluminium(), direction((4, 3), seed=1)
    along = force_along(energy(run), frame, way, 0.01)
    assert abs(along) > 0.3
    assert float((done[0].label().forces * way).sum()) == pytest.approx(along, abs=5e-4)


def test_virial_is_minus_the_free_energys_strain_derivative(
    done: tuple[Outcome, Path], run: Run
) -> None:
    frame, strain = aluminium(), direction((3, 3), seed=2)
    virial = done[0].label().virial
    assert virial is not None
    along = virial_along(energy(run), frame, strain + strain.T, 2e-3)
    assert abs(along) > 2
    assert float((virial * (strain + strain.T)).sum()) == pytest.approx(along, rel=3e-3)


def test_hot_electrons_are_labelled_with_their_free_energy(tmp_path: Path) -> None:
    """The energy lies below the internal one by TS, and the force is its derivative: between two
    frames 0.02 Å apart, energies differ by the mean force."""
    require("qe")
    labels, files = read_files(
        LabelSettings(code="qe", settings=SETTINGS, electron_temperature="fparam"), Path()
    )
    frame, way = aluminium(), direction((4, 3), seed=1)
    moved = replace(frame, positions=frame.positions + 0.02 * way)
    at = [(moved, 25000.0), (frame, 25000.0), (frame, 1000.0)]
    spec = Spec.model_validate({**CAMPAIGN, "labels": labels.model_dump()})
    found = label_frames(
        spec, make_recipe(labels), files, [heated(each, "fparam", kelvin) for each, kelvin in at]
    )
    further, hot, cold = (each for each in found if isinstance(each, FrameLabel))
    assert cold.energy - hot.energy > 2.0
    assert np.abs(hot.forces - cold.forces).max() > 0.05
    along = float(((hot.forces + further.forces) / 2 * way).sum())
    assert abs(along) > 0.2
    assert -(further.energy - hot.energy) / 0.02 == pytest.approx(along, abs=2e-3)


def test_dpdata_reads_the_same(done: tuple[Outcome, Path]) -> None:
    outcome, folder = done
    files = [folder / "pw.in", folder / "stdout"]
    data = dpdata.LabeledSystem(files, fmt="qe/pw/scf").data
    assert outcome.energies == pytest.approx(data["energies"], rel=1e-7)
    np.testing.assert_allclose(outcome.label().forces, data["forces"][0], atol=1e-5)
    np.testing.assert_allclose(data["virials"][0], outcome.label().virial, atol=1e-3)


def test_spin_reaches_the_code(done: tuple[Outcome, Path], run: Run) -> None:
    """Aluminium is no magnet: what was started with spin ends without."""
    frame = aluminium()
    outcome = run(frame, nspin=2, starting_magnetization={"Al": 0.3})
    assert rule(frame, outcome) is None
    assert outcome.energies == pytest.approx(done[0].energies, abs=2e-3)


def test_two_processes_by_the_workers_own_command(
    done: tuple[Outcome, Path], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("mpirun") is None and not os.environ.get("CI"):
        pytest.skip("no mpirun here")
    command = "mpirun --allow-run-as-root --oversubscribe -np 2 pw.x -nk 2"
    monkeypatch.setenv("DPSTREAM_LABELER_COMMANDS", f"qe={command}")
    frame = aluminium()
    outcome = run(frame)
    assert rule(frame, outcome) is None
    assert outcome.energies == pytest.approx(done[0].energies, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "broken", "said"),
    [
        ({"pseudopotentials": {"Mg": "Al.pz-vbc.UPF"}}, "unsupported-element", "Al.UPF not found"),
        ({"system": {"ecutwfcc": 3}}, "exit-status", "read_namelists"),
    ],
)
def test_how_it_fails(run: Run, settings: dict[str, Any], broken: str, said: str) -> None:
    frame = aluminium()
    outcome = run(frame, **settings)
    assert rule(frame, outcome) == broken
    assert said in "".join(outcome.messages)


def test_unconverged_it_says_that_its_job_is_done(run: Run) -> None:
    frame = aluminium()
    outcome = run(frame, electrons={"electron_maxstep": 1})
    assert rule(frame, outcome) == "exit-status"
    assert (outcome.exit_status, outcome.end_marker, outcome.not_converged) == (2, True, True)
    assert (outcome.energies, outcome.forces) == ((), None)


def test_close_atoms_are_computed_and_caught_by_the_cap(run: Run) -> None:
    frame = moved(aluminium(), 0.3)
    outcome = run(frame)
    assert outcome.exit_status == 0
    assert rule(frame, outcome) == "max-force"


def test_coincident_atoms_end_the_program(run: Run) -> None:
    frame = moved(aluminium(), 0.0)
    outcome = run(frame)
    assert rule(frame, outcome) == "exit-status"
    assert "overlap" in outcome.messages[0]


def test_killed_midway_it_is_tried_elsewhere(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel kills it after one second of its time: no rejection of the frame."""
    monkeypatch.setenv("DPSTREAM_LABELER_COMMANDS", "qe=prlimit --cpu=1 pw.x")
    with pytest.raises(EngineKilled, match="was killed"):
        run(aluminium(), ecutwfc=60, kpoints=[4, 4, 4])


CUTS = [("!    total", "one-energy"), ("     atom    3", "forces"), ("(Ry/bohr**3)", "virial")]


@pytest.mark.parametrize(("before", "missing"), [*CUTS, ("   JOB DONE.", None)])
def test_an_output_cut_off_is_no_label(
    done: tuple[Outcome, Path], tmp_path: Path, before: str, missing: str | None
) -> None:
    """Neither as it is, nor with what it says of itself at the end."""
    frame = aluminium()
    text = (done[1] / "stdout").read_text()
    kept, found, _ = text.partition(before)
    assert found
    (tmp_path / "stdout").write_text(kept)
    assert rule(frame, Qe().read_outputs(tmp_path, frame, 0)) in ("end-marker", "not-converged")
    claims = (
        "\n estimated scf accuracy    <  1.0E-12 Ry\n convergence has been achieved\n JOB DONE.\n"
    )
    (tmp_path / "stdout").write_text(kept + claims)
    assert rule(frame, Qe().read_outputs(tmp_path, frame, 0)) == missing


def test_a_label_through_the_handler_with_the_campaigns_own_files(
    done: tuple[Outcome, Path],
) -> None:
    labels, files = read_files(LabelSettings(code="qe", settings=SETTINGS), Path())
    spec = Spec.model_validate({**CAMPAIGN, "labels": labels.model_dump()})
    (label,) = label_frames(spec, make_recipe(labels), files, [aluminium()])
    assert isinstance(label, FrameLabel)
    assert label.energy == pytest.approx(done[0].energies[0], abs=1e-6)


# ------------------------------------------------------------------------------ imported


RELAXATION = """&control
 calculation='vc-relax', prefix='s', outdir='./out', pseudo_dir='/usr/share/espresso/pseudo',
 nstep=2, tprnfor=.true., tstress=.true.
/
&system
 ibrav=0, nat=2, ntyp=1, ecutwfc=12
/
&electrons
 conv_thr=1e-8 {electrons}
/
&ions
/
&cell
/
ATOMIC_SPECIES
Si 28.0 Si.pz-vbc.UPF
CELL_PARAMETERS angstrom
0 2.6 2.6
2.6 0 2.6
2.6 2.6 0
ATOMIC_POSITIONS angstrom
Si 0 0 0
Si 1.35 1.35 1.30
K_POINTS gamma
"""


def relaxed(folder: Path, electrons: str = "", calculation: str = "vc-relax") -> list[Path]:
    """The text and the XML that pw.x writes."""
    require("qe")
    text = RELAXATION.format(electrons=electrons).replace("vc-relax", calculation)
    (folder / "pw.in").write_text(text)
    with (folder / "pw.out").open("w") as out:
        subprocess.run(["pw.x", "-in", "pw.in"], cwd=folder, stdout=out, check=False)
    return [folder / "pw.out", folder / "out" / "s.xml"]


def test_every_step_of_a_relaxation_is_a_label_in_text_and_xml(tmp_path: Path) -> None:
    files = relaxed(tmp_path)
    sets = [read_labelled([file.name], file.parent, ["Si"], "initial.data") for file in files]
    assert [[(r.found, r.taken) for r in each.reports] for each in sets] == [[(2, 2)]] * 2
    for one, other in zip(*(each.items for each in sets), strict=True):
        assert one.label.energy == pytest.approx(other.label.energy, abs=1e-6)
        np.testing.assert_allclose(one.frame.positions, other.frame.positions, atol=1e-5)
        np.testing.assert_allclose(one.label.forces, other.label.forces, atol=1e-6)


def test_the_xml_of_a_single_point_has_the_virial_of_the_text(tmp_path: Path) -> None:
    files = relaxed(tmp_path, calculation="scf")
    sets = [read_labelled([file.name], file.parent, ["Si"], "initial.data") for file in files]
    text, xml = (each.items[0].label.virial for each in sets)
    assert text is not None
    assert xml is not None
    np.testing.assert_allclose(text, xml, atol=1e-4)


def test_steps_that_pw_x_only_calls_converged_are_left_out(tmp_path: Path) -> None:
    loose = ", electron_maxstep=2, scf_must_converge=.false."
    for file in relaxed(tmp_path, loose, "scf"):
        with pytest.raises(SpecError, match="the electronic iterations did not converge"):
            read_labelled([file.name], file.parent, ["Si"], "initial.data")
