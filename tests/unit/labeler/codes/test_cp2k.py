"""CP2K's input as it is written, and its output as it is read, without running it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from dpstream.services.labeler.acceptance import AcceptanceLimits, check_after
from dpstream.services.labeler.codes.cp2k.cp2k import Cp2k, Cp2kSettings, input_text
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.values import Recipe
from tests.support.programs.code_settings import TEMPLATE
from tests.support.programs.cp2k_keywords import HYDROGEN, LITHIUM
from tests.support.programs.labeling_programs import recorded

OUTPUTS = Path(__file__).parents[3] / "data/outputs"

METHANE = Frame(
    ("C", "H", "H", "H", "H"),
    np.array(
        [
            [3.0, 3, 3],
            [3.63, 3.63, 3.63],
            [2.37, 2.37, 3.63],
            [3.63, 2.37, 2.37],
            [2.37, 3.63, 2.37],
        ]
    ),
    np.array([[6.0, 0, 0], [0.5, 6.1, 0], [-0.2, 0.3, 6.2]]),
)


def recipe(multiplicity: int = 1, charge: int = 0, **settings: Any) -> Recipe:
    complete = Cp2kSettings.model_validate(settings).model_dump(mode="json")
    return Recipe(
        code="cp2k", version="1", settings=complete, charge=charge, multiplicity=multiplicity
    )


def lines(by: Recipe, frame: Frame = METHANE) -> list[str]:
    return [" ".join(line.split()) for line in input_text(frame, by).splitlines()]


def section(lines: list[str], name: str) -> list[str]:
    """The lines within the first section that begins with `name`."""
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"&{name}"))
    return lines[begin + 1 : lines.index(f"&END {name.split()[0]}", begin)]


def test_the_defaults_are_dp_gens_demonstration() -> None:
    found = lines(recipe())
    assert {"RUN_TYPE ENERGY_FORCE", "STRESS_TENSOR ANALYTICAL"} <= set(found)
    assert {"BASIS_SET_FILE_NAME BASIS_MOLOPT", "POTENTIAL_FILE_NAME GTH_POTENTIALS"} <= set(found)
    assert section(found, "MGRID") == ["CUTOFF 400.0", "REL_CUTOFF 60.0"]
    assert section(found, "OT") == ["MINIMIZER DIIS", "PRECONDITIONER FULL_SINGLE_INVERSE"]
    assert "MAX_SCF 15" in section(found, "OUTER_SCF")
    assert "&XC_FUNCTIONAL PBE" in found
    assert "TYPE DFTD3" in section(found, "PAIR_POTENTIAL")
    kind = ["BASIS_SET DZVP-MOLOPT-SR-GTH", "POTENTIAL GTH-PBE"]
    assert section(found, "KIND C") == section(found, "KIND H") == kind
    assert {"&FORCES ON", "&STRESS_TENSOR ON"} <= set(section(found, "PRINT")) | set(found)


def test_cell_and_atoms_are_the_frames() -> None:
    found = lines(recipe())
    cell = [[float(x) for x in line.split()[1:]] for line in section(found, "CELL")]
    assert (np.array(cell) == METHANE.cell).all()
    coordinates = section(found, "COORD")
    assert [line.split()[0] for line in coordinates] == list(METHANE.species)
    assert coordinates[1] == "H 3.6300000000 3.6300000000 3.6300000000"


def test_charge_and_multiplicity_are_the_recipes() -> None:
    assert {"CHARGE 0", "MULTIPLICITY 1"} <= set(lines(recipe()))
    assert "UKS .TRUE." not in lines(recipe())
    assert {"CHARGE -1", "MULTIPLICITY 2", "UKS .TRUE."} <= set(lines(recipe(2, -1)))


def test_a_mesh_needs_diagonalisation() -> None:
    found = lines(recipe(kpoints=[2, 2, 3]))
    assert "SCHEME MONKHORST-PACK 2 2 3" in found
    assert "&OT" not in found
    assert "ALGORITHM STANDARD" in section(found, "DIAGONALIZATION")
    assert "SCHEME MONKHORST-PACK 3 3 3" in lines(recipe(kspacing=0.4))


def test_keywords_go_over_the_defaults_as_in_fp_params() -> None:
    keywords = {
        "FORCE_EVAL": {
            "DFT": {
                "scf": {"OT": None, "MAX_SCF": 7, "DIAGONALIZATION": {"_": True}},
                "XC": {"XC_FUNCTIONAL": {"_": "BLYP"}},
                "BASIS_SET_FILE_NAME": ["BASIS_MOLOPT", "MINE"],
            },
            "SUBSYS": {"KIND": {"_": ["C", "O"], "POTENTIAL": ["GTH-BLYP-q4", "GTH-BLYP-q6"]}},
        }
    }
    found = lines(recipe(keywords=keywords))
    assert "&OT" not in found
    assert {"MAX_SCF 7", "&DIAGONALIZATION .TRUE.", "&XC_FUNCTIONAL BLYP"} <= set(found)
    assert {"BASIS_SET_FILE_NAME BASIS_MOLOPT", "BASIS_SET_FILE_NAME MINE"} <= set(found)
    assert section(found, "KIND C") == ["BASIS_SET DZVP-MOLOPT-SR-GTH", "POTENTIAL GTH-BLYP-q4"]
    assert section(found, "KIND O") == ["POTENTIAL GTH-BLYP-q6"]
    assert "EPS_SCF 3.0E-7" in found  # what nobody mentioned stays


def test_a_users_parameters_of_dp_gen_are_taken() -> None:
    document = json.loads(recorded("dpgen/tests/generator/param-pyridine-cp2k.json").read_text())
    found = lines(recipe(keywords=document["user_fp_params"]))
    assert set(section(found, "KIND C")) == {"BASIS_SET DZVP-MOLOPT-GTH", "POTENTIAL GTH-PBE-q4"}


def test_a_template_stays_as_it_is_but_for_what_is_ours() -> None:
    text = input_text(METHANE, recipe(2, 1, template=TEMPLATE))
    given, made = TEMPLATE.splitlines(), text.splitlines()
    assert [line for line in given if line not in made] == [
        "      ABC 10 10 10",
        "      @include coord.xyz",
    ]
    added = [line for line in made if line not in given]
    assert added[:3] == ["CHARGE 1", "MULTIPLICITY 2", "UKS .TRUE."]
    assert [line.split()[0] for line in added[3:]] == ["A", "B", "C", *METHANE.species]
    assert made[made.index("  &DFT") + 1] == "CHARGE 1"


def test_the_template_of_dp_gens_example_is_taken() -> None:
    text = recorded("dpgen/examples/run/dp2.x-lammps-cp2k/methane/template.inp").read_text()
    found = lines(recipe(template=text))
    assert section(found, "CELL")[0] == "A 6.0000000000 0.0000000000 0.0000000000"
    assert len(section(found, "COORD")) == 5
    assert "@SET CUTOFF 400" in found


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cutof": 3}, "cutof"),
        ({"kpoints": [2, 2, 2], "kspacing": 0.3}, "give one of them"),
        ({"kpoints": [2, 2, 0]}, "kpoints"),
        ({"keywords": {"MOTION": {}}}, "not allowed at the top level; allowed: GLOBAL, FORCE_EVAL"),
        ({"keywords": {"GLOBAL": {"RUN_TYPE": "MD"}}}, "dpstream sets ENERGY_FORCE"),
        ({"keywords": {"FORCE_EVAL": {"DFT": {"CHARGE": 1}}}}, "give labels.charge"),
        ({"keywords": {"FORCE_EVAL": {"dft": {"Multiplicity": 1}}}}, "give labels.multiplicity"),
        (
            {"keywords": {"FORCE_EVAL": {"SUBSYS": {"CELL": {}}}}},
            "dpstream writes the frame's cell",
        ),
        ({"keywords": {"FORCE_EVAL": {"METHOD": "QS\n&END"}}}, "one line"),
        ({"keywords": {"FORCE_EVAL": {"A B": 1}}}, "A B"),
        ({"keywords": {"FORCE_EVAL": 3}}, "FORCE_EVAL"),
        (
            {"keywords": {"FORCE_EVAL": {"SUBSYS": {"KIND": {"_": ["H"], "POTENTIAL": "q1"}}}}},
            "KIND.POTENTIAL: must be a list",
        ),
        ({"template": TEMPLATE, "cutoff": 300}, "cutoff: remove it"),
        ({"template": TEMPLATE.replace("&COORD", "&COOORD")}, "&COORD: 0 of them"),
        ({"template": TEMPLATE.replace("&END FORCE_EVAL", "")}, "is not closed"),
        ({"template": TEMPLATE.replace("&FORCES ON", "&FORCE ON")}, "&FORCES: 0 of them"),
        ({"template": TEMPLATE.replace("PROJECT mine", "RUN_TYPE MD")}, "RUN_TYPE"),
        ({"template": TEMPLATE.replace("&MGRID", "MULTIPLICITY 2\n&MGRID")}, "labels.multiplicity"),
        ({"template": TEMPLATE.replace("ABC 10", "PERIODIC NONE #")}, "PERIODIC: must be XYZ"),
    ],
)
def test_what_is_refused_before_anything_starts(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as raised:
        recipe(**settings)
    assert words in str(raised.value)


def test_its_level_of_theory() -> None:
    code = Cp2k()
    assert code.method(recipe().settings) == "PBE-D3/DZVP-MOLOPT-SR-GTH, 400 Ry"
    assert not code.semi_empirical(recipe().settings)
    assert not code.semi_empirical(recipe(template=TEMPLATE).settings)
    tight_binding = {"FORCE_EVAL": {"DFT": {"QS": {"METHOD": "xTB"}}}}
    assert code.semi_empirical(recipe(keywords=tight_binding).settings)


# ------------------------------------------------------------------------------- recorded outputs


def test_a_recorded_output_is_read(tmp_path: Path) -> None:
    """30 atoms by CP2K 6.1, against what dpdata's own authors stored of it."""
    folder = recorded("outputs/cp2k/cp2k_normal_output")
    stored = {path.stem: np.load(path)[0] for path in (folder / "deepmd" / "set.000").glob("*.npy")}
    frame = Frame(
        ("Fe",) * 12 + ("O",) * 18, stored["coord"].reshape(-1, 3), stored["box"].reshape(3, 3)
    )
    (tmp_path / "stdout").write_text((folder / "cp2k_output").read_text())
    outcome = Cp2k().read_outputs(tmp_path, frame, 0)
    assert check_after(frame, outcome, AcceptanceLimits()) is None
    label = outcome.label()
    assert label.energy == pytest.approx(stored["energy"], rel=1e-8)
    np.testing.assert_allclose(label.forces, stored["force"].reshape(-1, 3), atol=1e-6)
    assert label.virial is not None
    np.testing.assert_allclose(label.virial, stored["virial"].reshape(3, 3), rtol=1e-5, atol=1e-6)


def test_a_recorded_output_without_convergence_is_no_label(tmp_path: Path) -> None:
    text = recorded("outputs/cp2k/cp2k_nocon_output").read_text()
    (tmp_path / "stdout").write_text(text)
    outcome = Cp2k().read_outputs(tmp_path, METHANE, 0)
    assert outcome.not_converged
    assert not outcome.converged
    assert outcome.end_marker
    assert len(outcome.energies) == 1  # it is printed all the same
    assert outcome.forces is not None
    assert outcome.forces.shape == (302, 3)


def test_two_runs_in_one_output_are_no_label(tmp_path: Path) -> None:
    """Converged, then not: the second run's energy must not pass for the first one's."""
    good = recorded("outputs/cp2k/cp2k_normal_output/cp2k_output").read_text()
    bad = recorded("outputs/cp2k/cp2k_nocon_output").read_text()
    for text in (good + bad, good + good):
        (tmp_path / "stdout").write_text(text)
        outcome = Cp2k().read_outputs(tmp_path, METHANE, 0)
        broken = check_after(METHANE, outcome, AcceptanceLimits())
        assert broken is not None
        assert broken.rule == ("one-energy" if text == good + good else "not-converged")


def test_the_tables_of_later_versions(tmp_path: Path) -> None:
    """Since 2025 forces and stress have other headings, and the stress is in bar."""
    (tmp_path / "stdout").write_text(
        """ *** SCF run converged in    14 steps ***
 ENERGY| Total FORCE_EVAL ( QS ) energy [hartree]            -8.009455541276351
 FORCES| Atomic forces [hartree/bohr]
 FORCES|   Atom     x               y               z               |f|
 FORCES|      1  1.00000000E-02 -2.00000000E-02  0.00000000E+00  2.23606798E-02
 FORCES|      2 -1.00000000E-02  2.00000000E-02  0.00000000E+00  2.23606798E-02
 FORCES| Sum      0.00000000E+00  0.00000000E+00  0.00000000E+00  0.00000000E+00
 STRESS| Analytical stress tensor [bar]
 STRESS|                        x                   y                   z
 STRESS|      x        1.00000000000E+04   0.00000000000E+00   0.00000000000E+00
 STRESS|      y        0.00000000000E+00   2.00000000000E+04   0.00000000000E+00
 STRESS|      z        0.00000000000E+00   0.00000000000E+00   3.00000000000E+04
 STRESS| 1/3 Trace                                             2.00000000000E+04
  **** **** ******  **  PROGRAM ENDED AT               2025-01-01 00:00:00.000
"""
    )
    frame = Frame(("H", "H"), np.array([[0, 0, 0], [0, 0, 0.8]]), np.eye(3) * 5)
    outcome = Cp2k().read_outputs(tmp_path, frame, 0)
    assert check_after(frame, outcome, AcceptanceLimits()) is None
    assert outcome.energies == pytest.approx((-217.948388,))
    assert outcome.forces is not None
    np.testing.assert_allclose(outcome.forces[0], [0.514221, -1.028441, 0], atol=1e-5)
    assert outcome.virial is not None
    np.testing.assert_allclose(
        np.diag(outcome.virial), 125 / 160.21766 * np.array([1, 2, 3]), rtol=1e-6
    )


def test_nothing_at_all_is_read_without_raising(tmp_path: Path) -> None:
    outcome = Cp2k().read_outputs(tmp_path, METHANE, 1)
    assert (outcome.end_marker, outcome.energies, outcome.forces) == (False, (), None)


@pytest.mark.parametrize("guess", ["", "    SCF_GUESS ATOMIC\n", "scf_guess  core ! mine\n"])
def test_a_run_that_continues_reads_its_orbitals(tmp_path: Path, guess: str) -> None:
    """The guess of a template is replaced; all else stays as it is."""
    scf = f"    &scf\n{guess}      MAX_SCF 9\n    &END SCF\n"
    text = TEMPLATE.replace("  &DFT\n", f"  &DFT\n{scf}")
    (tmp_path / "cp2k.inp").write_text(text)
    Cp2k().use_restart(tmp_path)
    expected = text.replace(guess, "") if guess else text
    expected = expected.replace("    &scf\n", "    &scf\nSCF_GUESS RESTART\n")
    assert (tmp_path / "cp2k.inp").read_text() == expected


def test_a_template_without_scf_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "cp2k.inp").write_text(TEMPLATE)
    Cp2k().use_restart(tmp_path)
    assert (tmp_path / "cp2k.inp").read_text() == TEMPLATE


@pytest.mark.parametrize(
    ("given", "at"),
    [
        ("&SCF\n&END\n", "&SCF\n{&PRINT\n&RESTART ON\n&END RESTART\n&END PRINT\n}&END\n"),
        ("&scf\n&print\n&END\n&END\n", "&scf\n&print\n{&RESTART ON\n&END RESTART\n}&END\n&END\n"),
        ("&SCF\n&PRINT\n&RESTART OFF\n&END\n&END\n&END\n", None),
        ("", None),
    ],
)
def test_a_template_writes_its_wavefunction_at_each_iteration(given: str, at: str | None) -> None:
    """Unless it has a setting of its own."""
    text = TEMPLATE.replace("  &DFT\n", f"  &DFT\n{given}")
    found = [line for line in lines(recipe(template=text)) if line != "BACKUP_COPIES 1"]
    each = ["&EACH", "QS_SCF 1", "&END EACH"]
    assert ("QS_SCF 1" in found) == (at is not None)
    begin = found.index("&DFT") + 1
    found = [line for line in found[begin:] if line not in each]
    expected = (at or given).translate(str.maketrans("", "", "{}"))
    own = ("CHARGE", "MULTIPLICITY")
    assert [line for line in found if not line.startswith(own)][: expected.count("\n")] == (
        expected.splitlines()
    )


# ---------------------------------------------------------------------------- what is printed


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("PROJECT mine", "PROJECT mine\n  PRINT_LEVEL silent", "must be ON (GLOBAL.PRINT_LEVEL"),
        ("&FORCES ON", "&FORCES ON\n FILENAME forces", "FORCES.FILENAME: remove it"),
        ("&FORCES ON", "&FORCES OFF", "FORCE_EVAL.PRINT.FORCES: must be ON"),
        ("ANALYTICAL", "numerical", "STRESS_TENSOR: NUMERICAL: use ANALYTICAL"),
        ("ANALYTICAL", "\\\n DIAGONAL_ANALYTICAL", "DIAGONAL_ANALYTICAL: use ANALYTICAL"),
        ("&MGRID", "&PERIODIC_EFIELD\n &END\n &MGRID", "give NONE"),
        ("PROJECT mine", "PROJECT mine \\\n RUN_TYPE MD", None),
        ("METHOD QS", "METHOD QS # STRESS_TENSOR NUMERICAL", None),
        ("&FORCES ON", "&FORCES", None),
        ("&FORCES ON", "&FORCES HIGH\n FILENAME __STD_OUT__", "FORCES: must be ON"),
        ("ANALYTICAL", "${TENSOR}", None),
    ],
)
def test_a_template_prints_what_a_label_needs(old: str, new: str, words: str | None) -> None:
    template = TEMPLATE.replace(old, new, 1)
    assert template != TEMPLATE
    settings = Cp2kSettings(template=template).model_dump(mode="json")  # as a labeler does
    if words is None:
        Cp2k().check_labelable(settings)
        return
    with pytest.raises(ValueError, match=r"^template: ") as raised:
        Cp2k().check_labelable(settings)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("@SET", "@SET", None),
        ("STRESS_TENSOR ANALYTICAL", "", "template: FORCE_EVAL.STRESS_TENSOR: NONE"),
        ("&STRESS_TENSOR ON", "&STRESS_TENSOR OFF", "template: FORCE_EVAL.PRINT.STRESS_TENSOR"),
    ],
)
def test_a_template_without_stress_is_known(old: str, new: str, reason: str | None) -> None:
    settings = Cp2kSettings(template=TEMPLATE.replace(old, new, 1)).model_dump(mode="json")
    assert Cp2k().no_virial(settings) == reason


def test_the_defaults_have_a_stress_and_keywords_may_remove_it() -> None:
    assert Cp2k().no_virial(recipe().settings) is None
    without = recipe(keywords={"FORCE_EVAL": {"STRESS_TENSOR": "none"}})
    assert Cp2k().no_virial(without.settings) == "keywords: FORCE_EVAL.STRESS_TENSOR: NONE"
    assert "STRESS_TENSOR none" in lines(without)


# ---------------------------------------------------------------------------- own outputs


@pytest.mark.parametrize(
    ("periodicity", "has_virial"), [(None, True), ("XYZ", True), ("XY", False), ("NONE", False)]
)
def test_an_output_states_whether_its_stress_is_whole(
    tmp_path: Path, periodicity: str | None, has_virial: bool
) -> None:
    line = f" POISSON| Periodicity {periodicity:>58}\n" if periodicity else ""
    (tmp_path / "stdout").write_text(line + (OUTPUTS / "cp2k-low.out").read_text())
    outcome = Cp2k().read_outputs(tmp_path, HYDROGEN, 0)
    assert (outcome.virial is not None) == has_virial


@pytest.mark.parametrize(
    ("name", "frame", "energy", "force", "virial", "has_positions"),
    [
        ("cp2k-low", HYDROGEN, -31.53437716104883, -9.545929362304348, -5.16875573476538, False),
        ("cp2k-smeared", LITHIUM, -406.8862493062702, 0.08579855776394961, 0.2114022466, True),
    ],
)
def test_outputs_of_quiet_and_verbose_runs_have_the_numbers_of_the_trajectory_files(
    tmp_path: Path,
    name: str,
    frame: Frame,
    energy: float,
    force: float,
    virial: float,
    has_positions: bool,
) -> None:
    (tmp_path / "stdout").write_text((OUTPUTS / f"{name}.out").read_text())
    outcome = Cp2k().read_outputs(tmp_path, frame, 0)
    assert check_after(frame, outcome, AcceptanceLimits()) is None
    label = outcome.label()
    assert label.virial is not None
    assert label.energy == pytest.approx(energy, abs=1e-8)
    assert label.forces[0, 0] == pytest.approx(force, abs=1e-6)
    assert label.virial[1, 1] == pytest.approx(virial, abs=1e-6)
    assert (outcome.positions is not None) == has_positions
