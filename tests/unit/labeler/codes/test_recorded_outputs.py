"""Readers of programs that cannot be installed here, on outputs that others recorded; and what
becomes of the same outputs cut short, unconverged or incomplete."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dpdata
import numpy as np
import pytest

from dpstream.services.labeler.acceptance import AcceptanceLimits, Outcome, check_after
from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.codes.base import FileCode
from dpstream.services.labeler.recipes import make_recipe
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.spec import LabelSettings

DATA = os.environ.get("DPSTREAM_TEST_DATA")
pytestmark = pytest.mark.skipif(DATA is None, reason="DPSTREAM_TEST_DATA names no recorded outputs")
OUTPUTS = Path(DATA or "") / "outputs"
REPORT = " iter=  19\n ending_scf_reason = tol Rho_err  5.0E-005\n"
"""PWmat's other output, in its own words; none was recorded."""
STRESS = " stress (eV): {}  {}  {}"


@dataclass(frozen=True)
class Case:
    """One recorded single point. `main`: the output that is cut; `form`: dpdata's reader of
    `recorded`; `cuts`: the ends of what a killed run leaves."""

    code: str
    recorded: str
    form: str
    main: str
    cuts: tuple[str, ...]
    end: str
    others: Mapping[str, str] = field(default_factory=dict)


CASES = {
    case.code: case
    for case in (
        Case(
            "vasp",
            "vasp/OUTCAR.Ge.vdw",
            "vasp/outcar",
            "OUTCAR",
            ("aborting loop", "in kB", "TOTAL-FORCE", "free  energy   TOTEN", "Voluntary"),
            "Voluntary context switches: 3",
        ),
        Case(
            "gaussian",
            "gaussian/methane.gaussianlog",
            "gaussian/log",
            "input.log",
            ("SCF Done", "Forces (Hartrees", "     3        1    ", "Normal termination"),
            " Normal termination of Gaussian 16",
        ),
        Case(
            "abacus",
            "abacus",
            "abacus/scf",
            "OUT.label/running_scf.log",
            ("charge density convergence", "TOTAL-FORCE (eV", "TOTAL-STRESS", "Total  Time"),
            " Total  Time  : 0 h",
        ),
        Case(
            "siesta",
            "siesta/scf/siesta_output",
            "siesta/output",
            "stdout",
            (
                "SCF Convergence by",
                "siesta: Final energy",
                "siesta: Atomic forces (eV/Ang):\nsiesta:",
                "siesta: Stress tensor",
                ">> End",
            ),
            ">> End of run",
        ),
        Case(
            "pwmat",
            "pwmat/OUT.MLMD",
            "pwmat/mlmd",
            "OUT.MLMD",
            (" Lattice vector", " Position", " Force", " -------"),
            " -----------END",
            {"REPORT": REPORT},
        ),
    )
}


def labelled(case: Case, folder: Path) -> dict[str, Any]:
    """What dpdata reads."""
    path = OUTPUTS / case.recorded
    if case.code == "abacus":
        (folder / "INPUT").write_text((path / "INPUT.ok").read_text())
        (folder / "STRU.ch4").write_text((path / "STRU.ch4").read_text())
        (folder / "OUT.ch4").mkdir()
        (folder / "OUT.ch4/running_scf.log").write_text(text_of(case))
        path = folder
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(dpdata.LabeledSystem(str(path), fmt=case.form).data)


def frame_of(data: Mapping[str, Any], periodic: bool) -> Frame:
    species = tuple(data["atom_names"][kind] for kind in data["atom_types"])
    return Frame(species, data["coords"][0], data["cells"][0] if periodic else None)


def text_of(case: Case) -> str:
    path = OUTPUTS / case.recorded
    text = (path / "OUT.ch4/running_scf.log" if path.is_dir() else path).read_text()
    if case.code != "pwmat":
        return text
    return with_stress(text)


def with_stress(text: str) -> str:
    """PWmat prints a row of the virial beside each cell vector when asked for it."""
    head, _, tail = text.partition("Lattice vector (Angstrom)\n")
    cell, rest = tail.splitlines()[:3], tail.splitlines()[3:]
    virial = [STRESS.format(*row) for row in ((1.5, 0.25, 0), (0.25, 2, 0), (0, 0, -1))]
    lines = [a + b for a, b in zip(cell, virial, strict=True)]
    return "\n".join((head + "Lattice vector (Angstrom)", *lines, *rest, ""))


def read(
    code: str, frame: Frame, folder: Path, files: Mapping[str, str], status: int = 0
) -> Outcome:
    program = CODES[code]
    assert isinstance(program, FileCode)
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return program.read_outputs(folder, frame, status)


def rule(frame: Frame, outcome: Outcome) -> str | None:
    broken = check_after(frame, outcome, AcceptanceLimits())
    return None if broken is None else broken.rule


@pytest.fixture(scope="module", params=CASES)
def recorded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Case, Frame, dict[str, Any]]:
    case = CASES[request.param]
    data = labelled(case, tmp_path_factory.mktemp(case.code))
    return case, frame_of(data, case.code != "gaussian"), data


Recorded = tuple[Case, Frame, dict[str, Any]]


def outcome_of(recorded: Recorded, folder: Path, text: str, status: int = 0) -> Outcome:
    case, frame, _ = recorded
    return read(case.code, frame, folder, {case.main: text, **case.others}, status)


def test_a_recorded_output_is_a_label_and_dpdata_agrees(recorded: Recorded, tmp_path: Path) -> None:
    case, frame, data = recorded
    outcome = outcome_of(recorded, tmp_path, text_of(case))
    assert rule(frame, outcome) is None
    label = outcome.label()
    assert label.energy == pytest.approx(data["energies"][0], abs=1e-4)
    np.testing.assert_allclose(label.forces, data["forces"][0], atol=2e-6)
    assert outcome.positions is not None
    np.testing.assert_allclose(outcome.positions, frame.positions, atol=1e-5)
    if "virials" in data:  # of SIESTA's dpdata has another sign, see below
        sign = -1 if case.code == "siesta" else 1
        np.testing.assert_allclose(label.virial, sign * data["virials"][0], atol=2e-4)


def test_a_program_that_failed_is_no_label(recorded: Recorded, tmp_path: Path) -> None:
    case, frame, _ = recorded
    assert rule(frame, outcome_of(recorded, tmp_path, text_of(case), status=1)) == "exit-status"


def test_an_output_cut_anywhere_is_no_label(recorded: Recorded, tmp_path: Path) -> None:
    case, frame, _ = recorded
    text = text_of(case)
    for number, mark in enumerate(case.cuts):
        assert mark in text, mark
        cut = text[: text.rindex(mark)]
        folder = tmp_path / str(number)
        folder.mkdir()
        assert rule(frame, outcome_of(recorded, folder, cut)) == "end-marker", mark
        if mark not in case.end:
            found = rule(frame, outcome_of(recorded, folder, f"{cut}\n{case.end}\n"))
            assert found in ("not-converged", "one-energy", "forces", "virial"), mark


def test_nothing_at_all_is_no_label(recorded: Recorded, tmp_path: Path) -> None:
    case, frame, _ = recorded
    program = CODES[case.code]
    assert isinstance(program, FileCode)
    assert rule(frame, program.read_outputs(tmp_path, frame, 0)) == "end-marker"


def test_two_runs_in_one_output_are_no_label(recorded: Recorded, tmp_path: Path) -> None:
    case, frame, _ = recorded
    outcome = outcome_of(recorded, tmp_path, text_of(case) * 2)
    assert rule(frame, outcome) == "one-energy"


def test_atoms_missing_or_garbled_are_no_label(recorded: Recorded, tmp_path: Path) -> None:
    case, frame, _ = recorded
    outcome = outcome_of(recorded, tmp_path, text_of(case))
    fewer = Frame(frame.species[1:], frame.positions[1:], frame.cell)
    assert rule(fewer, outcome) == "forces"
    assert outcome.forces is not None
    if case.code not in ("gaussian", "pwmat"):
        value = f"{abs(outcome.forces[1, 1]):.6f}"
        garbled = text_of(case).replace(value, "********")  # as Fortran prints what has no room
        assert rule(frame, outcome_of(recorded, tmp_path, garbled)) == "forces"


def test_moved_atoms_are_no_label(recorded: Recorded, tmp_path: Path) -> None:
    case, frame, _ = recorded
    moved = replace(frame, positions=frame.positions + 1e-3 * np.eye(len(frame.species), 3))
    outcome = read(case.code, moved, tmp_path, {case.main: text_of(case), **case.others})
    assert rule(moved, outcome) == "positions"


# ---------------------------------------------------------------------------- code by code


def part(code: str, recorded_in: Path) -> tuple[Frame, str]:
    case = CASES[code]
    return frame_of(labelled(case, recorded_in), code != "gaussian"), text_of(case)


def test_vasp_says_reached_also_where_nelm_ended_the_loop(tmp_path: Path) -> None:
    text = (OUTPUTS / "vasp/OUTCAR.ch4.1step").read_text()
    assert "aborting loop because EDIFF is reached" in text
    frame = Frame(("C", *"HHHH"), np.zeros((5, 3)), np.eye(3) * 9.86)
    assert rule(frame, read("vasp", frame, tmp_path, {"OUTCAR": text})) == "not-converged"


def test_vasp_converged_at_exactly_nelm_is_a_label(tmp_path: Path) -> None:
    frame, text = part("vasp", tmp_path)
    exactly = text.replace("NELM   =     60", "NELM   =     10")
    assert exactly != text
    assert rule(frame, read("vasp", frame, tmp_path, {"OUTCAR": exactly})) is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(dpdata.LabeledSystem(str(tmp_path / "OUTCAR"), fmt="vasp/outcar")) == 0
    tighter = exactly.replace("EDIFF  = 0.1E-03", "EDIFF  = 0.1E-04")
    assert rule(frame, read("vasp", frame, tmp_path, {"OUTCAR": tighter})) == "not-converged"


def test_vasp_6_says_unconverged(tmp_path: Path) -> None:
    frame, text = part("vasp", tmp_path)
    said = text.replace("because EDIFF is reached", "EDIFF was not reached (unconverged)")
    assert rule(frame, read("vasp", frame, tmp_path, {"OUTCAR": said})) == "not-converged"


def test_vasp_takes_the_free_energy_and_names_itself(tmp_path: Path) -> None:
    frame, text = part("vasp", tmp_path)
    outcome = read("vasp", frame, tmp_path, {"OUTCAR": text})
    assert outcome.energies == (-33.36815582,)  # not −33.36836054 at σ → 0
    assert outcome.program == "5.4.4.18Apr17-6-g9f103f2a35 PAW_PBE Ge 05Jan2001"


def test_vasp_trajectories_are_not_single_points(tmp_path: Path) -> None:
    frame = Frame((*"HHO",), np.zeros((3, 3)), np.eye(3) * 9)
    text = (OUTPUTS / "vasp/OUTCAR.h2o.md").read_text()
    assert rule(frame, read("vasp", frame, tmp_path, {"OUTCAR": text})) == "one-energy"


def test_gaussian_unconverged_and_chained_runs(tmp_path: Path) -> None:
    frame = Frame(tuple("HHHHC"), np.zeros((5, 3)))
    text = (OUTPUTS / "gaussian/noncoveraged.gaussianlog").read_text()
    outcome = read("gaussian", frame, tmp_path, {"input.log": text})
    assert outcome.not_converged
    assert rule(frame, outcome) == "end-marker"
    assert rule(frame, replace(outcome, end_marker=True)) == "not-converged"
    chained = (OUTPUTS / "gaussian/largeforce.gaussianlog").read_text()
    outcome = read("gaussian", frame, tmp_path, {"input.log": chained})
    assert outcome.end_marker
    assert rule(frame, outcome) == "not-converged"
    assert len(outcome.energies) == 2


def test_gaussian_beyond_scf_is_no_label(tmp_path: Path) -> None:
    frame, text = part("gaussian", tmp_path)
    correlated = text.replace("\\RMSD=", "\\MP2=-40.6\\RMSD=")
    assert correlated != text
    outcome = read("gaussian", frame, tmp_path, {"input.log": correlated})
    assert rule(frame, outcome) == "one-energy"
    assert "post-SCF" in outcome.messages[0]


def test_abacus_unconverged_says_so_and_prints_everything_else(tmp_path: Path) -> None:
    frame, _ = part("abacus", tmp_path)
    text = (OUTPUTS / "abacus/OUT.ch4fail/running_scf.log").read_text()
    outcome = read("abacus", frame, tmp_path, {"OUT.label/running_scf.log": text})
    assert len(outcome.energies) == 1
    assert rule(frame, outcome) == "not-converged"
    assert outcome.program == "2.1.0"


def test_siesta_unconverged_and_its_sign(tmp_path: Path) -> None:
    frame, text = part("siesta", tmp_path)
    outcome = read("siesta", frame, tmp_path, {"stdout": text})
    assert outcome.energies == (-219.164027,)  # dpdata: −219.1640
    # Printed: a stress of −0.000032 and a pressure of 0.000032·… eV/Å³ along z.
    assert outcome.virial is not None
    assert outcome.virial[2, 2] == pytest.approx(0.000032 * 995.608381, abs=1e-6)
    pressure = -0.00011520 * 995.608381
    assert np.trace(outcome.virial) / 3 == pytest.approx(pressure, abs=1e-3)
    broken = text.replace("SCF cycle converged after", "SCF_NOT_CONV: SCF did not converge after")
    assert rule(frame, read("siesta", frame, tmp_path, {"stdout": broken})) == "not-converged"


@pytest.mark.parametrize("reason", ["niter reached", "", "d 0.1E-1"])
def test_pwmat_converges_by_a_tolerance_alone(tmp_path: Path, reason: str) -> None:
    frame, text = part("pwmat", tmp_path)
    files = {"OUT.MLMD": text, "REPORT": f" ending_scf_reason = {reason}\n" if reason else ""}
    assert rule(frame, read("pwmat", frame, tmp_path, files)) == "not-converged"


def test_pwmat_prints_gradients(tmp_path: Path) -> None:
    frame, text = part("pwmat", tmp_path)
    text = re.sub(r"(Force.*\n\s+1\s+)0\.0+", r"\g<1>0.125", text)
    outcome = read("pwmat", frame, tmp_path, {"OUT.MLMD": text, "REPORT": REPORT})
    assert outcome.forces is not None
    assert outcome.forces[0, 0] == -0.125
    without = {"OUT.MLMD": (OUTPUTS / "pwmat/OUT.MLMD").read_text(), "REPORT": REPORT}
    assert rule(frame, read("pwmat", frame, tmp_path, without)) == "virial"


# ---------------------------------------------------------------------------- custom programs


def test_psi4_as_a_custom_program(tmp_path: Path) -> None:
    settings = {
        "program": "psi4",
        "method": "wB97X-D/def2-TZVP",
        "input": {
            "format": "psi4/inp",
            "file": "input.dat",
            "options": {"method": "WB97X-D", "basis": "def2-TZVP"},
        },
        "output": {"format": "psi4/out", "file": "output.dat"},
        "log": "output.dat",
        "converged": "Energy and wave function converged",
        "end_marker": "*** Psi4 exiting successfully",
    }
    text = (OUTPUTS / "psi4/psi4.out").read_text()
    raw = dpdata.LabeledSystem(str(OUTPUTS / "psi4/psi4.out"), fmt="psi4/out").data
    species = tuple(str(raw["atom_names"][kind]) for kind in raw["atom_types"])
    order = sorted(range(len(species)), key=lambda i: species[i])
    frame = Frame(tuple(species[i] for i in order), raw["coords"][0][order])
    recipe = make_recipe(LabelSettings(code="custom", version="1.6", settings=settings))
    custom = CODES["custom"]
    assert isinstance(custom, FileCode)
    custom.write_inputs(frame, recipe, tmp_path)
    assert 'gradient("WB97X-D"' in (tmp_path / "input.dat").read_text()
    outcome = read("custom", frame, tmp_path, {"output.dat": text})
    assert rule(frame, outcome) is None
    np.testing.assert_array_equal(outcome.label().forces, raw["forces"][0][order])
    silent = text.replace("Energy and wave function converged", "")
    assert rule(frame, read("custom", frame, tmp_path, {"output.dat": silent})) == "not-converged"
    cut = text[: text.index("*** Psi4 exiting")]
    assert rule(frame, read("custom", frame, tmp_path, {"output.dat": cut})) == "end-marker"
