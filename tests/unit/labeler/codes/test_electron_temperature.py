"""Electron temperatures: which frame is which, what each labeling code is told, what is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ase.build import bulk
from pydantic import ValidationError

from dpstream.services.labeler import programs
from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.codes.base import FileCode, Thermal
from dpstream.services.labeler.codes.qe.qe import input_lines
from dpstream.services.labeler.recipes import make_recipe, recipe_for
from dpstream.shared.atoms.electron_temperature import electron_temperature, heated
from dpstream.shared.atoms.frames import Frame, canonical, frame_key, from_ase
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import LabelSettings, Spec
from dpstream.shared.values import Condition, Recipe
from tests.support.programs.code_settings import NACL, SETTINGS

AL = canonical(from_ase(bulk("Al", cubic=True))).frame
KELVIN = 20000.0
EV, RY = 1.7234666524, 0.1266724625
"""k_B × 20000 K; CODATA 2018."""
FIELDS = {"code": "tblite", "version": "1", "charge": 0, "multiplicity": 1}
UPF = {"file": "Al.UPF", "sha256": "0" * 64, "size": 1}
QE = {"pseudopotentials": {"Al": UPF}, "ecutwfc": 12, "kpoints": [2, 2, 2]}
CP2K: dict[str, Any] = {
    "kpoints": [2, 2, 2],
    "keywords": {"FORCE_EVAL": {"DFT": {"SCF": {"ADDED_MOS": 10, "EPS_SCF": "1.0E-8"}}}},
}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is installed here, it is version 7."""
    monkeypatch.setattr(programs, "stated_version", lambda *_: "7")


def recipe(code: str, settings: Mapping[str, Any], frame: Frame, **labels: Any) -> Recipe:
    """By which `frame` is labelled."""
    given = LabelSettings(code=code, settings=dict(settings), version="7", **labels)
    return recipe_for(make_recipe(given), frame)


def hot(code: str, settings: Mapping[str, Any], frame: Frame = AL) -> Recipe:
    frame = heated(frame, "fparam", KELVIN)
    return recipe(code, settings, frame, electron_temperature="fparam")


# ----------------------------------------------------------------------------------- identity


def test_equal_atoms_with_other_electrons_share_no_label() -> None:
    cold, warm = (heated(AL, "fparam", kelvin) for kelvin in (300.0, 5000.0))
    assert len({frame_key(frame) for frame in (AL, cold, warm)}) == 3
    whole = make_recipe(LabelSettings(electron_temperature="fparam"))
    by_cold, by_warm = recipe_for(whole, cold), recipe_for(whole, warm)
    assert len({each.digest for each in (whole, by_cold, by_warm)}) == 3
    # The label is that of a campaign which says the same in the code's own words.
    same = make_recipe(LabelSettings(settings={"electronic_temperature": 5000.0}))
    assert by_warm.digest == same.digest
    assert by_cold.electron_temperature is None


def test_recipes_without_electron_temperature_are_what_they_were() -> None:
    plain = Recipe(**FIELDS, settings={})
    assert "electron_temperature" not in plain.model_dump(exclude_defaults=True)
    assert plain.digest == "3a2bd174014e5ee1"


def test_of_a_frame_or_of_each_atom() -> None:
    for carrier in ("fparam", "aparam"):
        frame = heated(AL, carrier, 1000.0)
        assert electron_temperature(frame, carrier) == 1000.0
        assert frame.parameters.keys() == {carrier}
    uneven = heated(AL, "aparam", 1000.0)
    assert uneven.aparam is not None
    uneven.aparam[0] = 2000.0
    for frame in (AL, uneven, heated(AL, "aparam", 0.0)):
        with pytest.raises(ValueError, match="aparam"):
            electron_temperature(frame, "aparam")


# ----------------------------------------------------------------------------------- labeling


def written(code: str, settings: Mapping[str, Any], place: Path) -> dict[str, str]:
    program = CODES[code]
    assert isinstance(program, FileCode)
    run = place / "hot"
    run.mkdir()
    program.write_inputs(canonical(NACL).frame, hot(code, settings, canonical(NACL).frame), run)
    return {path.name: path.read_text() for path in run.iterdir()}


def test_vasp(potentials_folder: Path) -> None:
    own = {"incar": "ISMEAR = 0\nSIGMA = 0.05\nKSPACING = 0.3\n"}
    incar = written("vasp", {**SETTINGS["vasp"], **own}, potentials_folder)["INCAR"].splitlines()
    assert incar[:2] == ["ISMEAR = -1", f"SIGMA = {EV:.10f}"]  # VASP takes the first of two
    assert incar[2:] == own["incar"].splitlines()


def test_abacus(potentials_folder: Path) -> None:
    own = {"input": {"smearing_method": "gauss", "smearing_sigma": 0.01, "kspacing": 0.1}}
    lines = written("abacus", {**SETTINGS["abacus"], **own}, potentials_folder)[
        "INPUT"
    ].splitlines()
    assert [line for line in lines if "smearing" in line] == [
        "smearing_method fd",
        f"smearing_sigma {RY:.10f}",
    ]
    assert "kspacing 0.1" in lines


def test_siesta(potentials_folder: Path) -> None:
    own = {"fdf": "ElectronicTemperature 300 K\nMeshCutoff 300 Ry\n"}
    text = written("siesta", {**SETTINGS["siesta"], **own}, potentials_folder)["input.fdf"]
    assert "OccupationFunction FD" in text
    assert re.findall(r"ElectronicTemperature (\S+ K)", text)[0] == "20000.0 K"  # the first counts


def test_qe() -> None:
    own = {"smearing": "gaussian", "degauss": 0.03, "system": {"occupations": "fixed", "nbnd": 20}}
    found = hot("qe", QE | own)
    text = "\n".join(input_lines(AL, found.settings, 0))
    for key, value in {"occupations": "'smearing'", "smearing": "'fermi-dirac'"}.items():
        assert re.findall(rf"^ *{key} *= *(\S+?),?$", text, re.MULTILINE) == [value]
    assert float(re.findall(r"degauss *= *([\d.e-]+)", text)[0]) == pytest.approx(RY, rel=1e-8)
    assert "nbnd = 20" in text


def test_cp2k() -> None:
    scf = hot("cp2k", CP2K).settings["keywords"]["FORCE_EVAL"]["DFT"]["SCF"]
    smear = {"_": True, "METHOD": "FERMI_DIRAC", "ELECTRONIC_TEMPERATURE": KELVIN}
    assert scf == {"ADDED_MOS": 10, "EPS_SCF": "1.0E-8", "SMEAR": smear}


def complaint(code: str, settings: Mapping[str, Any]) -> str:
    with pytest.raises(SpecError) as raised:
        hot(code, settings)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kpoints": None}, "labels.settings.kpoints: missing; labels.electron_temperature"),
        ({"keywords": {}}, "labels.settings.keywords.FORCE_EVAL.DFT.SCF.ADDED_MOS: missing"),
    ],
)
def test_cp2k_has_no_smearing_everywhere(changes: dict[str, Any], words: str) -> None:
    assert complaint("cp2k", {**CP2K, **changes}).startswith(
        f"labels.electron_temperature: {words}"
    )


@pytest.mark.usefixtures("potentials_folder")
@pytest.mark.parametrize("code", ["gaussian", "pwmat"])
def test_codes_that_cannot_are_refused(code: str) -> None:
    able = ", ".join(sorted(name for name, each in CODES.items() if isinstance(each, Thermal)))
    assert able == "abacus, cp2k, qe, siesta, tblite, vasp"
    said = (
        f"labels.electron_temperature: {code} does not support an electron temperature; "
        f"supported by: {able}"
    )
    assert complaint(code, SETTINGS[code]) == said


# ------------------------------------------------------------------------------------- the spec


def spec(**changes: Any) -> Spec:
    stage = {"name": "one", "systems": ["s"], "temperatures": [300, 600]}
    stage |= changes.pop("stage", {})
    net = {"fitting_net": {"numb_fparam": 1}}
    document = {
        "name": "hot",
        "type_map": ["Al"],
        "systems": {"s": {"structures": ["al.vasp"], "fparam": [300.0]}},
        "initial": {"perturb": {}},
        "training": {"input": {"model": net}},
        "stages": [stage],
        "labels": {"electron_temperature": "fparam"},
    }
    return Spec.model_validate({**document, **changes})


def test_electrons_go_beside_the_atoms_temperatures() -> None:
    (stage,) = spec(stage={"electron_temperatures": [1000, 20000]}).stages
    found = [(c.temperature, c.electrons) for c in stage.conditions()]
    assert found == [(300, 1000), (600, 20000)]
    assert str(next(stage.conditions())) == "s 300 K electrons 1000 K"
    (stage,) = spec().stages
    assert [c.electrons for c in stage.conditions()] == [None, None]
    assert str(Condition(system="s", temperature=3)) == "s 3 K"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stage": {"electron_temperatures": [1]}}, "electron_temperatures: 1 for 2 temperatures"),
        (
            {"stage": {"electron_temperatures": [1, 2]}, "labels": {}},
            "stages.0.electron_temperatures: requires labels.electron_temperature",
        ),
        (
            {"labels": {"electron_temperature": "aparam"}},
            "aparam: requires training.input.model.fitting_net.numb_aparam: 1",
        ),
        (
            {"systems": {"s": {"structures": ["al.vasp"], "fparam": [0]}}},
            "systems.s.fparam: an electron temperature must be above 0 K",
        ),
        (
            {"initial": {"perturb": {}, "dimers": {"distances": [2.0]}}},
            "initial.dimers: dimers carry no fparam",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(words)):
        spec(**changes)
