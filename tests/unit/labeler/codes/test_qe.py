"""The input of pw.x as it is written, and its output as it is read, without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dpdata
import numpy as np
import pytest

from dpstream.services.labeler.acceptance import AcceptanceLimits, BrokenRule, check_after
from dpstream.services.labeler.attachments import attached
from dpstream.services.labeler.codes.kpoints import mesh_of
from dpstream.services.labeler.codes.qe.qe import Qe, input_lines
from dpstream.services.labeler.recipes import make_recipe, read_files, unlabelable
from dpstream.services.labeler.units import RYDBERG
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import LabelSettings
from tests.support.programs.labeling_programs import recorded
from tests.support.programs.qe_keywords import SILICON, SLAB

OUTPUTS = Path(__file__).parents[3] / "data/outputs"
ALLOY = Frame(
    ("Al", "Al", "Ni"),
    np.array([[0.0, 0, 0], [2.0, 2.1, 0.1], [0.1, 2.0, 2.2]]),
    np.array([[4.0, 0, 0], [0.5, 4.1, 0], [-0.2, 0.3, 4.2]]),
)
WANTED = {"pseudopotentials": {"Al": "Al.upf", "Ni": "Ni.upf"}, "ecutwfc": 40, "kpoints": [2, 2, 1]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a spec could be, with its pseudopotentials beside it."""
    monkeypatch.delenv("ESPRESSO_PSEUDO", raising=False)
    for symbol in ("Al", "Ni"):
        (tmp_path / f"{symbol}.upf").write_text(f"pseudopotential of {symbol}\n")
    return tmp_path


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    labels, _ = read_files(LabelSettings(code="qe", settings={**WANTED, **changes}), folder)
    return Qe.settings.model_validate(labels.settings).model_dump(mode="json")


def written(folder: Path, charge: int = 0, **changes: Any) -> list[str]:
    lines = input_lines(ALLOY, settings(folder, **changes), charge)
    return [" ".join(line.split()) for line in lines]


def test_a_plain_input(folder: Path) -> None:
    found = written(folder)
    assert {"calculation = 'scf'", "tprnfor = .true.", "tstress = .true."} <= set(found)
    assert {"ibrav = 0", "nat = 3", "ntyp = 2", "ecutwfc = 40.0", "nspin = 1"} <= set(found)
    assert not any(line.startswith(("ecutrho", "occupations", "degauss")) for line in found)
    species = found.index("ATOMIC_SPECIES")
    assert found[species + 1 : species + 3] == ["Al 26.9815 Al.upf", "Ni 58.6934 Ni.upf"]
    assert found[-2:] == ["K_POINTS automatic", "2 2 1 0 0 0"]


def test_cell_and_atoms_are_the_frames(folder: Path) -> None:
    found = written(folder)
    cell = found.index("CELL_PARAMETERS angstrom")
    rows = [[float(word) for word in line.split()] for line in found[cell + 1 : cell + 4]]
    assert (np.array(rows) == ALLOY.cell).all()
    atoms = found.index("ATOMIC_POSITIONS angstrom")
    assert found[atoms + 3] == "Ni 0.1000000000 2.0000000000 2.2000000000"


def test_smearing_and_spin(folder: Path) -> None:
    found = written(
        folder,
        smearing="marzari-vanderbilt",
        degauss=0.02,
        nspin=2,
        starting_magnetization={"Ni": 0.6},
    )
    smeared = {"occupations = 'smearing'", "smearing = 'marzari-vanderbilt'", "degauss = 0.02"}
    assert smeared | {"nspin = 2", "starting_magnetization(2) = 0.6"} <= set(found)


def test_a_charge(folder: Path) -> None:
    assert "tot_charge = -1" in written(folder, charge=-1)
    assert not any("tot_charge" in line for line in written(folder))


def test_free_keywords_pass_through(folder: Path) -> None:
    found = written(
        folder,
        system={"input_dft": "pbe", "Hubbard_U(2)": 4.0, "nosym": True},
        electrons={"mixing_beta": "0.3D0", "electron_maxstep": 200},
        control={"disk_io": "low", "title": "it's mine"},
    )
    assert {"input_dft = 'pbe'", "hubbard_u(2) = 4.0", "nosym = .true."} <= set(found)
    assert {"mixing_beta = 0.3D0", "electron_maxstep = 200", "disk_io = 'low'"} <= set(found)
    assert "title = 'it''s mine'" in found
    assert "disk_io = 'none'" not in found


def test_the_mesh_follows_the_cell(folder: Path) -> None:
    assert written(folder, kpoints=None, kspacing=0.5)[-1] == "4 4 3 0 0 0"
    assert written(folder, kpoints=[1, 1, 1])[-1] == "K_POINTS gamma"
    assert written(folder, kpoints=[1, 1, 1], koffset=[1, 1, 1])[-1] == "1 1 1 1 1 1"
    assert mesh_of(np.eye(3) * 2 * np.pi, 0.25) == (4, 4, 4)
    assert mesh_of(np.eye(3) * 2 * np.pi * (1 - 1e-7), 0.25) == (4, 4, 4)
    assert mesh_of(np.eye(3) * 2 * np.pi * 0.99, 0.25) == (5, 5, 5)


def test_another_pseudopotential_is_another_recipe(folder: Path) -> None:
    before = settings(folder)
    assert {each.file for each in attached(before)} == {"Al.upf", "Ni.upf"}
    (folder / "Al.upf").write_text("another one\n")
    after = settings(folder)
    assert before["pseudopotentials"]["Ni"] == after["pseudopotentials"]["Ni"]
    assert before["pseudopotentials"]["Al"] != after["pseudopotentials"]["Al"]


def test_pseudopotentials_come_along_by_digest(folder: Path) -> None:
    labels, files = read_files(LabelSettings(code="qe", settings=WANTED), folder)
    found = {each.sha256: each for each in attached(labels.settings)}
    assert {sha256: len(data) for sha256, data in files.items()} == {
        sha256: each.size for sha256, each in found.items()
    }
    assert set(labels.settings) == set(WANTED)  # nothing else is written into the spec


def test_they_are_found_where_pw_x_finds_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "library").mkdir()
    (folder / "Ni.upf").rename(folder / "library" / "Ni.upf")
    with pytest.raises(SpecError, match=r"pseudopotentials.Ni: 'Ni.upf': no such file"):
        settings(folder)
    monkeypatch.setenv("ESPRESSO_PSEUDO", str(folder / "library"))
    assert settings(folder)["pseudopotentials"]["Ni"]["file"] == "Ni.upf"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kpoints": None}, "kpoints, kspacing: give one of them"),
        ({"kspacing": 0.3}, "kpoints, kspacing: give one of them"),
        ({"kpoints": [2, 2]}, "kpoints"),
        ({"ecutwfc": 0}, "ecutwfc"),
        ({"smearing": "gauss", "degauss": 0.1}, "'gaussian'"),
        ({"smearing": "gaussian"}, "smearing, degauss: set both, or neither"),
        ({"pseudopotentials": {"Xx": "Al.upf"}}, "'Xx' is not an element"),
        ({"pseudopotentials": {}}, "must not be empty"),
        ({"pseudopotentials": {"Al": "../../Al upf"}}, "no such file"),
        ({"starting_magnetization": {"Al": 1}}, "needs nspin 2"),
        ({"nspin": 2, "starting_magnetization": {"Fe": 1}}, "Fe: has no pseudopotential"),
        ({"electrons": {"conv_thr": 1e-3}}, "conv_thr: remove it"),
        ({"control": {"pseudo_dir": "/etc"}}, "pseudo_dir: remove it"),
        ({"system": {"nat": 7}}, "nat: remove it"),
        ({"system": {"a b": 7}}, "'a b' is not a keyword"),
        ({"system": {"input_dft": "pbe'\n/"}}, "one line of text"),
    ],
)
def test_what_is_refused_before_anything_starts(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError) as raised:
        settings(folder, **changes)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"electrons": {"scf_must_converge": False}}, "unconverged labels are always rejected"),
        ({"electrons": {"scf_must_converge": ".FALSE."}}, "unconverged labels are always rejected"),
        ({"system": {"celldm(1)": 7}}, "celldm(1): remove it; dpstream writes the cell"),
        ({"system": {"cosAB": 0.5}}, "system.cosab: remove it; dpstream writes the cell"),
        ({"system": {"space_group": 227}}, "space_group: remove it"),
        ({"system": {"occupations": "From_Input"}}, "a card that dpstream does not write"),
        ({"system": {"assume_isolated": "m-p"}}, "use mt"),
        ({"system": {"lspinorb": ".TRUE."}}, "lspinorb: needs system.noncolin"),
        ({"system": {"noncolin": True}, "nspin": 2}, "nspin: remove it"),
        ({"system": {"lda_plus_u": True, "lda_plus_u_kind": 1}}, "no forces for kind 1; use 0"),
        (
            {"system": {"lda_plus_u": ".t.", "U_projection_type": "pseudo"}},
            "no forces for 'pseudo'; use atomic or ortho-atomic",
        ),
        ({"control": {"max_seconds": 60}}, "max_seconds: remove it; give labels.max_seconds"),
    ],
)
def test_keywords_that_give_no_label_are_refused_before_a_campaign_alone(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    labels = LabelSettings(code="qe", settings={**WANTED, **changes})
    message = unlabelable(read_files(labels, folder)[0])  # a labeler reads them without complaint
    assert message is not None
    assert message.startswith("labels.settings.")
    assert words in message
    assert "\n" not in message


def test_a_file_is_read_from_a_spec_only() -> None:
    with pytest.raises(
        SpecError, match=r"pseudopotentials\.Al: 'Al\.upf': file names are read only from a spec"
    ):
        make_recipe(LabelSettings(code="qe", settings=WANTED))


def test_an_element_without_pseudopotential_is_refused(folder: Path) -> None:
    refusal = Qe().refusal(ALLOY, settings(folder, pseudopotentials={"Al": "Al.upf"}))
    assert refusal == "Ni has no pseudopotential; give labels.settings.pseudopotentials.Ni"
    assert Qe().refusal(ALLOY, settings(folder)) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"system": {"occupations": "smearing"}}, "give smearing and degauss"),
        ({"system": {"exxdiv_treatment": "vcut_ws"}}, "orthorhombic cells only"),
    ],
)
def test_what_pw_x_would_refuse_is_refused(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    assert words in str(Qe().refusal(ALLOY, settings(folder, **changes)))


def test_smearing_may_be_named_twice(folder: Path) -> None:
    twice = {"smearing": "gaussian", "degauss": 0.1, "system": {"occupations": "smearing"}}
    assert Qe().refusal(ALLOY, settings(folder, **twice)) is None


@pytest.mark.parametrize(
    ("system", "ends"),
    [
        ({}, "K_POINTS gamma"),
        ({"noncolin": True}, "1 1 1 0 0 0"),
        ({"occupations": "tetrahedra_opt"}, "1 1 1 0 0 0"),
    ],
)
def test_what_needs_complex_wave_functions_gets_a_mesh(
    folder: Path, system: dict[str, Any], ends: str
) -> None:
    assert written(folder, kpoints=[1, 1, 1], system=system)[-1] == ends


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({}, None),
        ({"system": {"assume_isolated": "esm", "esm_bc": "pbc"}}, None),
        ({"system": {"assume_isolated": "esm", "esm_bc": "bc2"}}, "system.assume_isolated: esm"),
        ({"system": {"assume_isolated": "'MT'"}}, "system.assume_isolated: mt"),
        ({"control": {"tefield": ".true."}}, "control.tefield"),
        ({"control": {"tefield": False}}, None),
    ],
)
def test_settings_without_stress_are_known(
    folder: Path, changes: dict[str, Any], key: str | None
) -> None:
    assert Qe().no_virial(settings(folder, **changes)) == key


# ------------------------------------------------------------------------------- outputs


def own(tmp_path: Path, name: str, frame: Frame) -> tuple[BrokenRule | None, Any]:
    """Verdict and outcome of an output of `tests/data`."""
    (tmp_path / "stdout").write_text((OUTPUTS / f"{name}.out").read_text())
    outcome = Qe().read_outputs(tmp_path, frame, 0)
    return check_after(frame, outcome, AcceptanceLimits()), outcome


def test_a_hybrid_has_the_energy_of_self_consistent_exchange(tmp_path: Path) -> None:
    """With verbose output, which also repeats the positions in crystal coordinates."""
    broken, outcome = own(tmp_path, "qe-hybrid-verbose", SILICON)
    assert broken is None
    assert outcome.energies == (-14.52827416 * RYDBERG,)
    np.testing.assert_allclose(outcome.positions, SILICON.positions, atol=1e-6)


def test_a_hybrid_killed_between_its_cycles_is_no_label(tmp_path: Path) -> None:
    text = (OUTPUTS / "qe-hybrid-verbose.out").read_text()
    before, last, after = text.partition("!!   total energy")
    (tmp_path / "stdout").write_text(before + after)
    outcome = Qe().read_outputs(tmp_path, SILICON, 0)
    broken = check_after(SILICON, outcome, AcceptanceLimits())
    assert last
    assert broken is not None
    assert broken.rule == "one-energy"


def test_exchange_that_is_not_self_consistent_is_not_converged(tmp_path: Path) -> None:
    """Though every cycle converged, and forces and stress follow."""
    broken, outcome = own(tmp_path, "qe-hybrid-unconverged", SILICON)
    assert broken is not None
    assert broken.rule == "not-converged"
    assert outcome.end_marker
    assert outcome.not_converged
    assert "EXX convergence NOT achieved after   4 iterations" in broken.detail
    assert outcome.forces is not None


def test_a_screened_slab_has_no_virial(tmp_path: Path) -> None:
    """pw.x prints zeros for the components along z."""
    broken, outcome = own(tmp_path, "qe-screened", SLAB)
    assert broken is not None
    assert broken.rule == "virial"
    assert outcome.virial is None
    assert len(outcome.energies) == 1


# ------------------------------------------------------------------------------- recorded outputs


def read(
    tmp_path: Path, name: str, text: str | None = None
) -> tuple[Frame, BrokenRule | None, Any]:
    """Frame, verdict and outcome of a recorded output; the frame as dpdata reads the input."""
    folder = recorded("outputs/qe")
    data = dpdata.LabeledSystem(
        [folder / f"{name}.in", folder / f"{name}.out"], fmt="qe/pw/scf"
    ).data
    species = tuple(np.array(data["atom_names"])[data["atom_types"]])
    frame = Frame(species, data["coords"][0], data["cells"][0])
    (tmp_path / "stdout").write_text(text or (folder / f"{name}.out").read_text())
    outcome = Qe().read_outputs(tmp_path, frame, 0)
    broken = check_after(frame, outcome, AcceptanceLimits())
    if broken is None:
        label = outcome.label()
        assert label.energy == pytest.approx(data["energies"][0], rel=1e-6)
        np.testing.assert_allclose(label.forces, data["forces"][0], atol=1e-5)
        assert label.virial is not None
        volume = abs(np.linalg.det(data["cells"][0]))
        kbar = 0.005 * volume / 1602.18  # dpdata reads the columns with two digits
        np.testing.assert_allclose(label.virial, data["virials"][0], atol=kbar + 1e-4)
    return frame, broken, outcome


@pytest.mark.parametrize("case", ["qe-hybrid", "qe-verbosity-high"])
def test_recorded_cases_are_read(tmp_path: Path, case: str) -> None:
    (tmp_path / "stdout").write_text(recorded(f"cases/{case}/stdout").read_text())
    outcome = Qe().read_outputs(tmp_path, SILICON, 0)
    assert check_after(SILICON, outcome, AcceptanceLimits()) is None
    energy = {"qe-hybrid": -14.52827415, "qe-verbosity-high": -14.46492154}[case]
    assert outcome.energies == pytest.approx([energy * RYDBERG], abs=1e-9)


@pytest.mark.parametrize("name", ["01", "02", "Al"])
def test_recorded_outputs_are_read(tmp_path: Path, name: str) -> None:
    """By 5.1, 5.4 and 6.7; the last one printed an energy at every iteration."""
    _, broken, _ = read(tmp_path, name)
    assert broken is None


def test_an_accuracy_above_the_threshold_is_not_converged(tmp_path: Path) -> None:
    text = recorded("outputs/qe/Al.out").read_text().replace("7.0E-09 Ry", "7.0E-07 Ry")
    _, broken, _ = read(tmp_path, "Al", text)
    assert broken is not None
    assert broken.rule == "not-converged"


def test_an_unconverged_output_is_no_label_though_its_job_is_done(tmp_path: Path) -> None:
    text = recorded("outputs/qe/01.out").read_text()
    said = "convergence NOT achieved after 8 iterations: stopping"
    text = text.replace("convergence has been achieved in   8 iterations", said)
    _, broken, _ = read(tmp_path, "01", text)
    assert broken is not None
    assert broken.rule == "not-converged"


def test_two_runs_in_one_output_are_no_label(tmp_path: Path) -> None:
    _, broken, _ = read(tmp_path, "01", recorded("outputs/qe/01.out").read_text() * 2)
    assert broken is not None
    assert broken.rule == "one-energy"


def test_nothing_at_all_is_read_without_raising(tmp_path: Path) -> None:
    outcome = Qe().read_outputs(tmp_path, ALLOY, 1)
    assert (outcome.end_marker, outcome.energies, outcome.forces) == (False, (), None)


@pytest.mark.parametrize("electrons", [{}, {"startingpot": "atomic", "mixing_beta": 0.3}])
def test_a_run_that_continues_reads_its_density(folder: Path, electrons: dict[str, Any]) -> None:
    before = written(folder, electrons=electrons)
    (folder / "pw.in").write_text("\n".join((*before, "")))
    Qe().use_restart(folder)
    after = [line.strip() for line in (folder / "pw.in").read_text().splitlines()]
    own = [line for line in before if not line.startswith("startingpot")]
    begin = own.index("&ELECTRONS") + 1
    assert after == [*own[:begin], "startingpot = 'file'", *own[begin:]]
