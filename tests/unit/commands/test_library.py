"""A library that campaigns contribute to and look things up in."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
import yaml
from ase.io import read

from dpstream.commands.library import add, entries, find
from dpstream.services.labeler.recipes import make_recipe, recipe_for
from dpstream.shared.atoms.frames import frame_key, from_ase
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import LabelSettings
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import LabelInputs, Recipe
from tests.support.campaigns import sample_ledger


@pytest.fixture
def place(tmp_path: Path) -> str:
    """A library with one finished campaign in it."""
    sample_ledger.write_sample(tmp_path / "root")
    add(str(tmp_path / "library"), sample_ledger.NAME, str(tmp_path / "root"))
    return str(tmp_path / "library")


def test_an_entry_says_what_there_is(place: str) -> None:
    (entry,) = entries(FolderStore(Path(place)))
    assert (entry.campaign, entry.recipe, entry.elements) == (
        sample_ledger.NAME,
        sample_ledger.RECIPE,
        ("C", "H"),
    )
    assert entry.formulas == {"C1H4": 3}
    assert entry.conditions == ("methane 50 K",)
    assert entry.model is not None
    assert entry.model.final


def test_model_and_labels_are_found_and_fetched(place: str, tmp_path: Path) -> None:
    find(place, "C,H", output=tmp_path / "found")
    assert (tmp_path / "found" / "models" / "told.pb").read_text() == "compressed final"
    frames = read(tmp_path / "found" / "dataset.extxyz", ":")
    expected = [
        sample_ledger.KEYS[n]
        for n in (sample_ledger.INITIAL, sample_ledger.TRAINED, sample_ledger.AUDITED)
    ]
    assert sorted(frame_key(from_ase(atoms)) for atoms in frames) == sorted(expected)
    assert (tmp_path / "found" / "deepmd" / "C1H4-nopbc" / "type.raw").exists()


@pytest.mark.parametrize(
    ("elements", "model", "labels"),
    [("C", True, False), ("C,H,O", False, True), ("H,C", True, True)],
)
def test_models_know_all_elements_and_labels_have_no_other(
    place: str, elements: str, model: bool, labels: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    find(place, elements)
    said = capsys.readouterr().out
    assert ("model of" in said, "labels of" in said) == (model, labels)


def test_nothing_is_exit_status_one(place: str) -> None:
    for words in ({"elements": "Cu"}, {"elements": "C,H", "recipe": "f00d"}):
        with pytest.raises(typer.Exit) as ended:
            find(place, **words)
        assert ended.value.exit_code == 1


def test_labels_are_in_the_cache_of_a_campaign_run_there(place: str, tmp_path: Path) -> None:
    ours, theirs = (
        sorted(FolderStore(p).list("labels/")) for p in (tmp_path / "root", Path(place))
    )
    assert theirs == ours
    assert theirs


def test_contributed_again_only_what_is_new_is_copied(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    add(place, sample_ledger.NAME, str(tmp_path / "root"))
    assert "3 labels, 1 model (C, H); 0 new objects" in capsys.readouterr().out
    assert len(list(entries(FolderStore(Path(place))))) == 1


def test_labels_of_two_recipes_are_not_mixed(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Recipe(
        code="tblite", version="1", settings={"method": "GFN1-xTB"}, charge=0, multiplicity=1
    )
    monkeypatch.setattr(sample_ledger, "NAME", "other")
    monkeypatch.setattr(sample_ledger, "RECIPE", other)
    sample_ledger.write_beginning(tmp_path / "root")
    add(place, "other", str(tmp_path / "root"))
    with pytest.raises(SpecError, match=r"labels of 2 recipes match: .*GFN2-xTB .*; choose one"):
        find(place, "C,H", output=tmp_path / "found")
    find(place, "C,H", recipe=other.digest[:8], output=tmp_path / "found")
    assert len(read(tmp_path / "found" / "dataset.extxyz", ":")) == 1


def contributed(
    place: str, root: Path, monkeypatch: pytest.MonkeyPatch, name: str, recipe: Recipe
) -> None:
    """One label, of CH4, by a recipe of its own."""
    monkeypatch.setattr(sample_ledger, "NAME", name)
    monkeypatch.setattr(sample_ledger, "RECIPE", recipe)
    sample_ledger.write_beginning(root)
    add(place, name, str(root))


def test_labels_are_found_by_what_their_composition_is_computed_by(
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain, root = sample_ledger.RECIPE, tmp_path / "root"
    water = plain.model_copy(update={"compositions": {"H2O1": LabelInputs(charge=-1)}})
    cation = plain.model_copy(
        update={"compositions": {"C1H4": LabelInputs(charge=1, multiplicity=2)}}
    )
    assert len({plain.digest, water.digest, cation.digest}) == 3
    contributed(place, root, monkeypatch, "water", water)
    find(place, "C,H", output=tmp_path / "alike")  # CH4 is computed alike: one recipe
    assert len(read(tmp_path / "alike" / "dataset.extxyz", ":")) == 3
    contributed(place, root, monkeypatch, "cation", cation)
    with pytest.raises(SpecError, match="labels of 3 recipes"):
        find(place, "C,H", output=tmp_path / "refused")
    own = recipe_for(cation, sample_ledger.FRAMES[0]).digest
    for digest, names in (
        (plain.digest, {"told", "water"}),
        (cation.digest, {"cation"}),
        (own, {"cation"}),
    ):
        capsys.readouterr()
        find(place, "C,H", recipe=digest)
        said = capsys.readouterr().out
        assert {name for name in ("told", "water", "cation") if f"\n{name} " in said} == names


def test_a_recipe_file_finds_what_it_would_compute(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {"code": "tblite", "compositions": {"H2O1": {"charge": -1}}}
    recipe = make_recipe(LabelSettings.model_validate(labels))
    contributed(place, tmp_path / "root", monkeypatch, "water", recipe)
    for name, given, found in (
        ("plain", {"code": "tblite"}, True),
        ("cation", {"code": "tblite", "compositions": {"C1H4": {"charge": 1}}}, False),
    ):
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump({"labels": given}))
        if found:
            find(place, "C,H", recipe=str(file), output=tmp_path / name)
            assert len(read(tmp_path / name / "dataset.extxyz", ":")) == 1
        else:
            with pytest.raises(typer.Exit):
                find(place, "C,H", recipe=str(file))


def test_what_is_no_library(place: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such folder"):
        find(str(tmp_path / "gone"), "C")
    (Path(place) / "library" / "told-x.json").write_text("{}")
    with pytest.raises(SpecError, match=r"library/told-x.json: not a valid library entry"):
        find(place, "C")
