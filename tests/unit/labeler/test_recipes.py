"""From `labels` to a recipe: complete, normalised, and wrong input said in one line."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from dpstream.services.labeler.attachments import attached
from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.codes.base import FileCode, cell_widths
from dpstream.services.labeler.recipes import make_recipe
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import LabelSettings

EMT = "ase.calculators.emt.EMT"


def test_defaults_are_written_out() -> None:
    recipe = make_recipe(LabelSettings())
    assert recipe.code == "tblite"
    assert recipe.version == metadata.version("tblite")
    assert recipe.settings["method"] == "GFN2-xTB"
    assert set(recipe.settings) == {
        "method",
        "accuracy",
        "max_iterations",
        "electronic_temperature",
    }


def test_same_numbers_same_recipe() -> None:
    implicit = make_recipe(LabelSettings())
    explicit = make_recipe(
        LabelSettings(settings={"method": "GFN2-xTB", "electronic_temperature": 300})
    )
    assert implicit.digest == explicit.digest


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": {"method": "GFN1-xTB"}},
        {"settings": {"accuracy": 0.01}},
        {"charge": 2},
        {"multiplicity": 3},
        {"code": "pyscf"},
    ],
)
def test_other_numbers_other_recipe(changed: dict[str, Any]) -> None:
    assert make_recipe(LabelSettings(**changed)).digest != make_recipe(LabelSettings()).digest


def test_caps_are_no_part_of_the_recipe() -> None:
    capped = LabelSettings(max_force=5.0, min_distance=0.9, force=True, bundle=1, max_seconds=1.0)
    assert make_recipe(capped).digest == make_recipe(LabelSettings()).digest


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"code": "tblit"}, ["labels.code", "'tblit'", "did you mean 'tblite'"]),
        ({"code": "qqqq"}, ["labels.code", "abacus, ase, cp2k", "pyscf, qe, siesta, tblite, vasp"]),
        ({"settings": {"metod": 1}}, ["labels.settings.metod", "did you mean 'method'"]),
        ({"settings": {"method": "GFN3"}}, ["labels.settings.method", "GFN3", "GFN1-xTB"]),
        ({"settings": {"max_iterations": 0}}, ["labels.settings.max_iterations", "0"]),
        ({"code": "pyscf", "settings": {"functional": "pbe"}}, ["functional", "allowed", "xc"]),
        ({"code": "ase"}, ["labels.settings.calculator", "missing"]),
        ({"code": "ase", "settings": {"calculator": "EMT"}}, ["calculator", "dotted name"]),
        (
            {"code": "ase", "settings": {"calculator": "nosuchpackage.Calc"}},
            ["calculator", "nosuchpackage"],
        ),
        ({"code": "ase", "settings": {"calculator": EMT}, "charge": 1}, ["labels.charge"]),
    ],
)
def test_wrong_input_is_one_line(labels: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SpecError) as raised:
        make_recipe(LabelSettings(**labels))
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_missing_code_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(SpecError, match=r"tblite is not installed; pip install 'dpstream\[lab"):
        make_recipe(LabelSettings())


def test_a_stated_version_allows_its_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers with either share the recipe, and hence labels."""
    recipes = []
    for installed in ("0.4.0", "0.4.2"):
        monkeypatch.setattr(metadata, "version", lambda _, installed=installed: installed)
        recipes.append(make_recipe(LabelSettings(version="0.4")))
        emt = {"code": "ase", "settings": {"calculator": EMT}, "version": "0.4"}
        assert make_recipe(LabelSettings.model_validate(emt)).version == "0.4"
        for other in ("0.40", "0.5", "0.4.1"):
            with pytest.raises(SpecError, match=rf"labels.version: '{other}', but tblite 0"):
                make_recipe(LabelSettings(version=other))
    assert recipes[0] == recipes[1]
    assert recipes[0].version == "0.4"


def test_a_stated_version_keeps_the_digest_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "3.2.0")
    settings = {"model": "teacher.pb", "sha256": "0123456789abcdef"}
    labels = LabelSettings(code="deepmd", settings=settings, version="3.2")
    assert make_recipe(labels).version == "3.2; model 0123456789abcdef"


def test_programs_are_named_once() -> None:
    emt = make_recipe(LabelSettings(code="ase", settings={"calculator": EMT}))
    assert emt.program == f"ase {metadata.version('ase')}"
    assert make_recipe(LabelSettings()).program == f"tblite {metadata.version('tblite')}"


def test_an_ase_calculators_version_names_its_package() -> None:
    emt = make_recipe(LabelSettings(code="ase", settings={"calculator": EMT}))
    assert emt.version == f"ase {metadata.version('ase')}"
    other = make_recipe(LabelSettings(code="ase", settings={"calculator": "tblite.ase.TBLite"}))
    assert other.version.startswith(f"tblite {metadata.version('tblite')}")


def test_codes_are_registered_under_their_names_with_described_settings() -> None:
    for name, code in CODES.items():
        assert code.name == name
        assert isinstance(code, FileCode) == (
            name not in ("tblite", "pyscf", "ase", "deepmd", "dataset")
        )
        for setting in code.settings.model_fields.values():
            assert setting.description


def test_what_is_no_first_principles_result_says_so() -> None:
    assert CODES["tblite"].semi_empirical({})
    assert not CODES["pyscf"].semi_empirical({})
    assert CODES["ase"].semi_empirical({"calculator": EMT})
    assert CODES["pyscf"].method({"xc": "pbe", "basis": "def2-svp"}) == "pbe/def2-svp"


def test_cell_widths_are_between_faces() -> None:
    fcc = 4.05 / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0.0]])
    np.testing.assert_allclose(cell_widths(fcc), 4.05 / np.sqrt(3))


@pytest.mark.slow
def test_submitting_imports_no_code() -> None:
    script = (
        "import sys\n"
        "from dpstream.services.labeler.recipes import make_recipe\n"
        "from dpstream.shared.spec import LabelSettings\n"
        "make_recipe(LabelSettings()), make_recipe(LabelSettings(code='pyscf'))\n"
        "print([m for m in ('tblite', 'pyscf', 'tensorflow') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "name", ["../../../x", "/tmp/x", "..", ".hidden", "a/b", "a\x00", "x\n", "", "a" * 101]
)
def test_an_attached_file_stays_in_its_folder(name: str) -> None:
    settings = {"files": [{"file": name, "sha256": "0" * 64, "size": 3}]}
    with pytest.raises(ValidationError, match="file"):
        list(attached(settings))
