"""What is written for VASP, Gaussian, ABACUS, SIESTA, PWmat and custom programs, and what of the
user's keywords is refused; potentials by digest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest

from dpstream.services.labeler.acceptance import AcceptanceLimits, check_before
from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.codes.base import FileCode, Stressless
from dpstream.services.labeler.codes.user_program import UNSTATED, is_stated
from dpstream.services.labeler.machine_settings import MachineSettings
from dpstream.services.labeler.recipes import make_recipe, recipe_for, unlabelable
from dpstream.services.labeler.settings import LabelerSettings
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.errors import Permanent, SpecError
from dpstream.shared.settings import read_settings
from dpstream.shared.spec import LabelSettings
from dpstream.shared.values import Recipe
from tests.support.programs.code_settings import NACL, SETTINGS, VASP

WATER = Frame(("H", "H", "O"), np.array([[0.76, 0.59, 0], [-0.76, 0.59, 0], [0, 0, 0.0]]))


def recipe_of(code: str, frame: Frame = NACL, changes: Any = None, **labels: Any) -> Recipe:
    settings = {**SETTINGS[code], **(changes or {})}
    return recipe_for(make_recipe(LabelSettings(code=code, settings=settings, **labels)), frame)


def written(
    code: str, potentials_folder: Path, frame: Frame = NACL, **given: Any
) -> dict[str, str]:
    program = CODES[code]
    assert isinstance(program, FileCode)
    run = potentials_folder / "run"
    run.mkdir()
    program.write_inputs(frame, recipe_of(code, frame, **given), run)
    return {path.name: path.read_text() for path in run.iterdir()}


def complaint(code: str, changes: dict[str, Any], **labels: Any) -> str:
    with pytest.raises(SpecError) as raised:
        make_recipe(LabelSettings(code=code, settings={**SETTINGS[code], **changes}, **labels))
    message = str(raised.value)
    assert "\n" not in message
    return message


# ---------------------------------------------------------------------------- VASP


def test_vasp(potentials_folder: Path) -> None:
    files = written("vasp", potentials_folder)
    assert files.keys() == {"POSCAR", "POTCAR", "INCAR"}
    assert files["INCAR"] == VASP["incar"]
    assert [line.split()[1] for line in files["POTCAR"].splitlines()[::2]] == ["Cl", "Na_pv"]
    back = ase.io.read(potentials_folder / "run/POSCAR", format="vasp")
    assert back.get_chemical_symbols() == ["Cl", "Na"]
    np.testing.assert_allclose(back.positions, NACL.positions, atol=1e-9)
    np.testing.assert_allclose(back.cell[:], NACL.cell, atol=1e-9)


def test_vasp_tags_of_one_system_come_first(potentials_folder: Path) -> None:
    inputs = {"ClNa": {"charge": 1, "magmom": [0, 0.5], "kpoints": [4, 4, 2]}}
    inputs = {"Cl1Na1": inputs["ClNa"]}
    files = written("vasp", potentials_folder, compositions=inputs)
    assert files["INCAR"].splitlines()[:3] == ["ISPIN = 2", "MAGMOM = 0 0.5", "NELECT = 13"]
    assert files["KPOINTS"] == "k-points\n0\nGamma\n4 4 2\n0 0 0\n"


def test_vasp_tags_may_be_a_mapping_and_kpoints_a_text(potentials_folder: Path) -> None:
    incar = {"ENCUT": 400, "LWAVE": False, "LDAUU": [0, 4.5]}
    files = written(
        "vasp", potentials_folder, changes={"incar": incar, "kpoints": "k\n0\nM\n1 1 1\n"}
    )
    assert files["INCAR"] == "ENCUT = 400\nLWAVE = .FALSE.\nLDAUU = 0 4.5\n"
    assert files["KPOINTS"] == "k\n0\nM\n1 1 1\n"


@pytest.mark.usefixtures("potentials_folder")
@pytest.mark.parametrize(
    ("code", "changes", "words"),
    [
        ("vasp", {"kpoints": [0, 1, 1]}, ["kpoints", "0"]),
        (
            "vasp",
            {"potentials": {"Na": "../../etc/passwd"}},
            ["potentials.Na", "inside the worker"],
        ),
        ("vasp", {"potentials": {"Na": "Na_sv"}}, ["potentials.Na", "'Na_sv'", "no such file in"]),
        ("vasp", {"potentials": {}}, ["potentials", "must not be empty"]),
        ("vasp", {"sha256": {"Na": "0" * 16}}, ["potentials.Na", "as stated"]),
        ("vasp", {"retries": [{"ENCUT": 300}]}, ["retries", "ENCUT may change", "ALGO"]),
        ("vasp", {"encut": 400}, ["encut", "unknown key"]),
        ("abacus", {"input": "kspacing 1\nCal_Force 1"}, ["cal_force", "dpstream writes"]),
        ("abacus", {"input": "ecutwfc 80\nkspacing 1\nstru_file S"}, ["stru_file", "dpstream"]),
        ("siesta", {"fdf": "%block Lattice-Vectors"}, ["fdf", "Lattice-Vectors"]),
        ("siesta", {"fdf": "Net.Charge 1"}, ["fdf", "Net.Charge"]),
        ("pwmat", {"etot_input": "IN.PSP1 = x"}, ["etot_input", "IN.PSP1"]),
        ("pwmat", {"etot_input": "4 1\nECUT=50"}, ["etot_input", "settings.parallel"]),
        ("pwmat", {"symmetry": 2}, ["symmetry: requires kspacing"]),
        ("pwmat", {"kspacing": 0.3}, ["kspacing: etot_input has MP_N123", "give one of them"]),
    ],
)
def test_what_is_not_the_users_is_refused(
    code: str, changes: dict[str, Any], words: list[str]
) -> None:
    message = complaint(code, changes)
    for word in words:
        assert word in message


@pytest.mark.usefixtures("potentials_folder")
@pytest.mark.parametrize(
    ("code", "changes", "words"),
    [
        ("vasp", {"incar": "MAGMOM = 1 1\nKSPACING=1"}, ["incar", "systems.NAME.label.magmom"]),
        ("vasp", {"incar": "nelect=12\nKSPACING=1"}, ["incar", "systems.NAME.label.charge"]),
        ("vasp", {"incar": "ENCUT = 400"}, ["kpoints", "KSPACING"]),
        ("vasp", {"incar": "ENCUT=400; MAGMOM = 5*0\nKSPACING=1"}, ["MAGMOM", "label.magmom"]),
        ("vasp", {"incar": "ENCUT=400 ! KSPACING = 1"}, ["kpoints", "KSPACING"]),
        ("vasp", {"incar": "# KSPACING = 1"}, ["kpoints", "KSPACING"]),
        ("vasp", {"incar": "KSPACING=1\nnsw = 10"}, ["NSW: remove it", "single point"]),
        ("vasp", {"incar": "KSPACING=1; ML_LMLFF = .True."}, ["ML_LMLFF: remove it"]),
        ("vasp", {"incar": "KSPACING=1; ICHARG = 11"}, ["ICHARG: remove it", "CHGCAR"]),
        ("vasp", {"incar": "KSPACING=1; ALGO = EVGW0"}, ["ALGO: EVGW0 computes no forces"]),
        ("vasp", {"incar": "KSPACING=1; IMAGES = 4"}, ["IMAGES: remove it"]),
        ("gaussian", {"keywords": "b3lyp/6-31g**"}, ["keywords", "force"]),
        ("gaussian", {"keywords": "#p force opt=(ts, calcfc) pbe1pbe/sto-3g"}, ["opt: remove it"]),
        ("gaussian", {"keywords": "force ump2/6-31g**"}, ["ump2/6-31g**", "only SCF energies"]),
        ("gaussian", {"keywords": "force td=(nstates=3) b3lyp/sto-3g"}, ["td: ", "only SCF"]),
        ("gaussian", {"keywords": "force b2plypd3/def2tzvp"}, ["b2plypd3", "only SCF energies"]),
        ("gaussian", {"keywords": "force udsdpbep86/def2tzvp"}, ["udsdpbep86", "only SCF"]),
        ("gaussian", {"keywords": "force pbe0dh/def2tzvp"}, ["pbe0dh", "only SCF energies"]),
        ("siesta", {"fdf": "MD.NumCGsteps 20"}, ["MD.NumCGsteps", "single point"]),
        ("abacus", {"input": "ecutwfc 80\ngamma_only 0"}, ["kpoints", "gamma_only 1"]),
        ("abacus", {"input": "ecutwfc 80\n# kspacing 0.1"}, ["kpoints", "kspacing"]),
        ("abacus", {"input": "kspacing 1\ninit_chg file"}, ["init_chg file: remove it"]),
        ("abacus", {"input": "kspacing 1\nesolver_type lj"}, ["esolver_type", "ksdft"]),
        ("abacus", {"input": "ecutwfc 80"}, ["kpoints", "kspacing"]),
        ("abacus", {"input": "basis_type lcao\nkspacing 1"}, ["orbitals", "Cl, Na"]),
    ],
)
def test_keywords_that_give_no_label_are_refused_before_a_campaign_alone(
    code: str, changes: dict[str, Any], words: list[str]
) -> None:
    labels = LabelSettings(code=code, settings={**SETTINGS[code], **changes})
    make_recipe(labels)  # as a labeler does
    message = unlabelable(labels)
    assert message is not None
    assert message.startswith("labels.settings.")
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.usefixtures("potentials_folder")
@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("vasp", {"incar": "KSPACING = 0.2\n# MAGMOM = 5*0 is for a later day"}),
        ("vasp", {"incar": "SYSTEM = x ; NSW = 0 ; KSPACING = 0.2 # NELECT = 8"}),
        ("vasp", {"incar": "ALGO = Normal\nML_LMLFF = F\nICHARG = 2\nKSPACING = 0.2"}),
        ("vasp", {"incar": 'SYSTEM = "MAGMOM = 3; NELECT = 2"\nKSPACING = 0.2'}),
        ("vasp", {"incar": "ENCUT = \\\n 400\nKSPACING = 0.2"}),
        ("abacus", {"input": "ecutwfc 80 # nelec 3\ngamma_only 1"}),
        ("abacus", {"input": "INPUT_PARAMETERS\nKSPACING 0.1 0.1 0.2\ninit_chg atomic"}),
        ("gaussian", {"keywords": "#p force cc-pvdz b3lyp scf=(xqc, tight) nosymm"}),
        ("gaussian", {"keywords": "#force b3lyp/6-31g(d,p) integral ( grid = ultrafine )"}),
        ("siesta", {"fdf": "MD.NumCGsteps 0 # none\nMeshCutoff 300 Ry"}),
    ],
)
def test_comments_quotes_and_several_tags_a_line_are_read_as_the_programs_do(
    code: str, changes: dict[str, Any]
) -> None:
    labels = LabelSettings(code=code, settings={**SETTINGS[code], **changes})
    make_recipe(labels)
    assert unlabelable(labels) is None


@pytest.mark.parametrize(
    ("code", "key", "text", "found"),
    [
        ("vasp", "incar", "ISIF = 2", None),
        ("vasp", "incar", "ENCUT = 400", None),
        ("vasp", "incar", "ISIF = 3", None),
        ("vasp", "incar", "ISIF = 0", "incar: ISIF = 0; give ISIF = 2"),
        ("vasp", "incar", "ISIF = 1; ISIF = 2", "incar: ISIF = 1; give ISIF = 2"),
        ("vasp", "incar", "LHFCALC = .TRUE.", "incar: ISIF is 0 with LHFCALC; give ISIF = 2"),
        ("vasp", "incar", "LHFCALC = T; ISIF = 2", None),
        ("vasp", "incar", "IBRION = 0", "incar: ISIF is 0 with IBRION = 0; give ISIF = 2"),
        ("pwmat", "etot_input", "ECUT = 50\nout.stress = T", None),
        ("pwmat", "etot_input", "ECUT = 50\nOUT.STRESS = F", "etot_input: OUT.STRESS is not T;"),
    ],
)
def test_settings_without_stress_are_known(
    code: str, key: str, text: str, found: str | None
) -> None:
    program = CODES[code]
    assert isinstance(program, Stressless)
    reason = program.no_virial({key: text})
    assert reason is None if found is None else str(reason).startswith(found)


@pytest.mark.usefixtures("potentials_folder")
@pytest.mark.parametrize(
    ("code", "labels", "words"),
    [
        ("vasp", {"multiplicity": 2}, "labels.multiplicity: vasp does not support it"),
        ("pwmat", {"charge": 1}, "labels.charge: pwmat does not support it; supported: magmom"),
        (
            "gaussian",
            {"compositions": {"H2O1": {"kpoints": [1, 1, 2]}}},
            "labels.compositions.H2O1.kpoints: gaussian does not support it",
        ),
    ],
)
def test_label_inputs_that_a_code_would_not_heed_are_refused(
    code: str, labels: dict[str, Any], words: str
) -> None:
    assert words in complaint(code, {}, **labels)


# ---------------------------------------------------------------------------- the others


def test_gaussian(tmp_path: Path) -> None:
    files = written("gaussian", tmp_path, WATER, charge=-1, multiplicity=2)
    assert files["input.gjf"].splitlines() == [
        "# force b3lyp/6-31g** nosymm",
        "",
        "H2O1",
        "",
        "-1 2",
        "H 0.760000 0.590000 0.000000",
        "H -0.760000 0.590000 0.000000",
        "O 0.000000 0.000000 0.000000",
        "",
    ]


def test_gaussian_basis_follows_the_geometry(tmp_path: Path) -> None:
    changes = {"keywords": "#p force b3lyp/gen", "extra": "H O 0\n6-31G\n****\n"}
    lines = written("gaussian", tmp_path, WATER, changes=changes)["input.gjf"].splitlines()
    assert lines[0] == "#p force b3lyp/gen"
    assert lines[-5:] == ["", "H O 0", "6-31G", "****", ""]


def test_abacus_in_plane_waves(potentials_folder: Path) -> None:
    files = written("abacus", potentials_folder, charge=1)
    assert files.keys() == {"INPUT", "STRU", "Cl.upf", "Na.upf"}
    lines = files["INPUT"].splitlines()
    assert lines[0] == "INPUT_PARAMETERS"
    assert {"nelec_delta -1", "cal_force 1", "cal_stress 1", "ntype 2"} < set(lines)
    assert lines[-2:] == ["ecutwfc 80", "kspacing 0.1"]
    stru = files["STRU"].splitlines()
    assert stru[stru.index("LATTICE_CONSTANT") + 1].startswith("1.88972612")
    assert stru[stru.index("Cl") : stru.index("Cl") + 3] == ["Cl", "0.0", "1"]
    fractional = [float(word) for word in stru[stru.index("Cl") + 3].split()[:3]]
    np.testing.assert_allclose(fractional @ NACL.cell, NACL.positions[0], atol=1e-9)


@pytest.mark.parametrize("header", ["", "INPUT_PARAMETERS\n"])
def test_abacus_has_one_header_which_is_no_part_of_the_recipe(
    header: str, potentials_folder: Path
) -> None:
    words = "ecutwfc 80\nkspacing 0.1\n"
    recipe = recipe_of("abacus", changes={"input": header + words})
    stored = "\n" + words if header else words
    assert recipe.settings["input"] == stored
    assert recipe.digest == recipe_of("abacus", changes={"input": stored}).digest
    files = written("abacus", potentials_folder, changes={"input": header + words})
    assert files["INPUT"].count("INPUT_PARAMETERS") == 1


def test_abacus_in_orbitals_with_moments_and_a_mesh(potentials_folder: Path) -> None:
    orbitals = {"Na": "Na_pv", "Cl": "Cl/POTCAR"}
    words = {"basis_type": "lcao", "gamma_only": 0}
    changes = {"input": words, "orbitals": orbitals, "kpoints": [2, 2, 2]}
    inputs = {"Cl1Na1": {"magmom": [0, 1.5], "kpoints": [3, 3, 3]}}
    files = written("abacus", potentials_folder, changes=changes, compositions=inputs)
    assert {"Cl.orb", "Na.orb", "KPT"} < files.keys()
    assert files["KPT"] == "K_POINTS\n0\nGamma\n3 3 3 0 0 0\n"
    assert "NUMERICAL_ORBITAL\nCl.orb\nNa.orb\n" in files["STRU"]
    assert files["STRU"].splitlines()[-1].endswith("1 1 1 mag 1.5")
    assert recipe_of("abacus", changes=changes).version.count("; ") == 2


def test_siesta(potentials_folder: Path) -> None:
    inputs = {"Cl1Na1": {"charge": -1, "magmom": [0, 1]}}
    files = written("siesta", potentials_folder, compositions=inputs)
    assert files.keys() == {"input.fdf", "Cl", "Na"}
    text = files["input.fdf"]
    assert "%block ChemicalSpeciesLabel\n1 17 Cl\n2 11 Na\n%endblock" in text
    assert "2.800000 2.800000 2.800000 1\n0.000000 0.100000 0.000000 2\n%endblock" in text
    assert "NetCharge -1\n" in text
    assert "%block DM.InitSpin\n1 0\n2 1\n%endblock" in text
    assert "2 0 0 0.0\n0 2 0 0.0\n0 0 2 0.0\n" in text
    assert text.endswith("MeshCutoff 300 Ry\n")


def test_pwmat(potentials_folder: Path) -> None:
    files = written("pwmat", potentials_folder, compositions={"Cl1Na1": {"magmom": [0, 1]}})
    lines = files["etot.input"].splitlines()
    assert lines[:3] == ["1 1", "JOB = SCF", "IN.ATOM = atom.config"]
    assert lines[3:5] == ["IN.PSP1 = Cl.UPF", "IN.PSP2 = Na.UPF"]
    assert lines[-2:] == ["ECUT = 50", "MP_N123 = 2 2 2 0 0 0"]
    atoms = files["atom.config"].splitlines()
    assert (atoms[0], atoms[1], atoms[5]) == ("2", "LATTICE", "POSITION")
    assert [line.split()[0] for line in atoms[6:8]] == ["17", "11"]
    assert atoms[8:] == ["MAGNETIC", "17 0", "11 1"]


def test_the_mesh_of_pwmat_may_follow_the_cell(potentials_folder: Path) -> None:
    """DP-GEN's formula: the ceiling of 2π |b| / kspacing. The recipe without it is as ever."""
    changes = {"etot_input": {"ECUT": 50}, "kspacing": 0.6, "symmetry": 2}
    lines = written("pwmat", potentials_folder, changes=changes)["etot.input"].splitlines()
    reciprocal = 2 * np.pi * np.linalg.norm(np.linalg.inv(NACL.cell), axis=0)
    mesh = " ".join(str(int(np.ceil(length / 0.6))) for length in reciprocal)
    assert lines[-1] == f"MP_N123 = {mesh} 0 0 0 2"
    assert recipe_of("pwmat").settings.keys() >= {"etot_input", "parallel"}
    assert not recipe_of("pwmat").settings.keys() & {"kspacing", "symmetry"}


# ---------------------------------------------------------------------------- potentials, versions


def test_other_potentials_other_recipe(potentials_folder: Path) -> None:
    before = recipe_of("vasp")
    assert before.version.startswith(f"{UNSTATED}; Cl ")
    (potentials_folder / "Na_pv").write_text("  PAW_PBE Na_pv 28Sep2000\n   ZVAL   =    7.000\n")
    assert recipe_of("vasp").digest != before.digest
    assert recipe_of("vasp", version="6.3").digest != recipe_of("vasp").digest


def test_submitting_without_the_potentials(
    potentials_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {
        symbol: hashlib.sha256((potentials_folder / file).read_bytes()).hexdigest()
        for symbol, file in (("Na", "Na_pv"), ("Cl", "Cl/POTCAR"))
    }
    there = recipe_of("vasp", changes={"sha256": known})
    monkeypatch.delenv("DPSTREAM_LABELER_POTENTIALS")
    here = recipe_of("vasp", changes={"sha256": known})
    assert here.digest == there.digest
    assert "DPSTREAM_LABELER_POTENTIALS='vasp=FOLDER'" in complaint("vasp", {})
    program = CODES["vasp"]
    assert isinstance(program, FileCode)
    with pytest.raises(
        Permanent, match="no potential for Cl in this worker's DPSTREAM_LABELER_POTENTIALS"
    ):
        program.write_inputs(NACL, here, potentials_folder)


@pytest.mark.usefixtures("potentials_folder")
def test_an_element_without_potential_is_refused_before_computing() -> None:
    frame = Frame(("Cl", "K"), NACL.positions, NACL.cell)
    broken = check_before(frame, recipe_of("vasp"), CODES["vasp"], AcceptanceLimits())
    assert broken is not None
    assert broken.detail == "labels.settings.potentials: none for K"


@pytest.mark.parametrize(
    ("stated", "found", "same"),
    [
        ("6.3", "6.3.2 PAW_PBE Al", True),
        ("6.3", "6.30.1", False),
        ("5.4.4", "5.4.4.18Apr17-6-g9f103f2a35 PAW", True),
        ("6.3; Al 0123456789abcdef", "5.4.4", False),
        (UNSTATED, "5.4.4", True),
        ("6.3", None, True),
    ],
)
def test_a_stated_version(stated: str, found: str | None, same: bool) -> None:
    assert is_stated(stated, found) is same


# ---------------------------------------------------------------------------- the machine's own


def test_commands_are_the_machines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPSTREAM_LABELER_COMMANDS", "vasp=env -u X -- {cores} 'a b'; mine=true")
    program = CODES["vasp"]
    assert isinstance(program, FileCode)
    recipe = Recipe(code="vasp", version="", settings={}, charge=0, multiplicity=1)
    assert program.command(recipe, 8) == ["env", "-u", "X", "--", "8", "a b"]
    assert "vasp" in read_settings(LabelerSettings, store="x", broker="amqp://b").labeler_codes


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("COMMANDS", "vasp", "code=value"),
        ("COMMANDS", "vasp='x", "No closing quotation"),
        ("POTENTIALS", "vasp=/no/such/place", "no such folder"),
    ],
)
def test_wrong_settings_of_a_machine(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(f"DPSTREAM_LABELER_{variable}", value)
    with pytest.raises(SpecError, match=words) as raised:
        read_settings(MachineSettings)
    assert f"DPSTREAM_LABELER_{variable}" in str(raised.value)


def test_a_program_that_is_not_here_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPSTREAM_LABELER_COMMANDS", "vasp=no-such-vasp {cores}; mien=true")
    with pytest.raises(SpecError, match="no-such-vasp: no such program"):
        MachineSettings().command("vasp", 1)
    with pytest.raises(SpecError, match=r"no command for 'mine'.*did you mean 'mien'"):
        MachineSettings().command("mine", 1)
