"""Labels of several campaigns as one dataset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ase.io import read

from dpstream.commands.collect import collect
from dpstream.shared.atoms.frames import frame_key, from_ase
from dpstream.shared.errors import SpecError
from dpstream.shared.values import ImportedSet, Recipe
from tests.support.campaigns import sample_ledger

HARSH = Recipe(
    code="tblite", version="0.8.0", settings={"method": "GFN1-xTB"}, charge=1, multiplicity=2
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Campaigns of one recipe, two with imported sets, and one of another."""
    folder = tmp_path / "root"
    sample_ledger.write_sample(folder)
    with monkeypatch.context() as changed:
        changed.setattr(sample_ledger, "NAME", "twin")
        sample_ledger.write_beginning(folder)
        free = ImportedSet(name="a", found=3, taken=2, left_out={"forces": 1}, energies=("free",))
        internal = ImportedSet(name="b", found=1, taken=1, energies=("internal",))
        changed.setattr(sample_ledger, "NAME", "free")
        changed.setattr(sample_ledger, "IMPORTED", (free,))
        sample_ledger.write_beginning(folder)
        changed.setattr(sample_ledger, "NAME", "internal")
        changed.setattr(sample_ledger, "IMPORTED", (internal,))
        sample_ledger.write_beginning(folder)
        changed.setattr(sample_ledger, "NAME", "harsh")
        changed.setattr(sample_ledger, "RECIPE", HARSH)
        sample_ledger.write_beginning(folder)
    return folder


def keys(folder: Path) -> list[str]:
    return [frame_key(from_ase(atoms)) for atoms in read(folder / "dataset.extxyz", ":")]


def test_shared_frames_come_in_once(tmp_path: Path, root: Path) -> None:
    collect([sample_ledger.NAME, "twin"], tmp_path / "out", root=str(root))
    assert keys(tmp_path / "out") == [
        sample_ledger.KEYS[sample_ledger.INITIAL],
        sample_ledger.KEYS[sample_ledger.TRAINED],
    ]
    about = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert about["campaigns"] == {sample_ledger.NAME: 2, "twin": 1}
    assert about["recipes"] == {sample_ledger.RECIPE.digest: sample_ledger.RECIPE.model_dump()}
    assert (tmp_path / "out" / about["systems"][0] / "type.raw").exists()


def test_audit_labels_are_taken_when_asked_for(tmp_path: Path, root: Path) -> None:
    collect([sample_ledger.NAME], tmp_path / "out", audit=True, root=str(root))
    assert sample_ledger.KEYS[sample_ledger.AUDITED] in keys(tmp_path / "out")


def test_recipes_are_not_mixed_unless_told(tmp_path: Path, root: Path) -> None:
    both, out = [sample_ledger.NAME, "harsh"], tmp_path / "out"
    with pytest.raises(
        SpecError, match=r"different recipes.*choose one with --recipe, or give --mix"
    ):
        collect(both, out, root=str(root))
    assert not out.exists()
    collect(both, out, recipe=HARSH.digest[:6], root=str(root))
    assert keys(out) == [sample_ledger.KEYS[sample_ledger.INITIAL]]
    collect(both, out, mix=True, root=str(root))
    assert len(keys(out)) == 3


def test_imported_energies_of_two_kinds_do_not_mix(tmp_path: Path, root: Path) -> None:
    with pytest.raises(
        SpecError, match=r"CAMPAIGN: free \(a\) has the free energy and internal \(b"
    ):
        collect(["free", "internal"], tmp_path / "out", root=str(root))
    collect(["free", "twin"], tmp_path / "out", root=str(root))
    about = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert about["imported"]["free"][0]["left_out"] == {"forces": 1}


def test_what_cannot_be_collected(tmp_path: Path, root: Path) -> None:
    with pytest.raises(SpecError, match="unknown recipe; known"):
        collect(["twin"], tmp_path / "out", recipe="f00", root=str(root))
    with pytest.raises(SpecError, match="no campaign 'twim'; did you mean 'twin'"):
        collect(["twim"], tmp_path / "out", root=str(root))
    with pytest.raises(SpecError, match="--type-map: H: lacks C"):
        collect(["twin"], tmp_path / "out", type_map="H", root=str(root))
    with pytest.raises(SpecError, match="'Q' is not a chemical symbol"):
        collect(["twin"], tmp_path / "out", type_map="C,Q", root=str(root))


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, root: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(SpecError, match="contains files that are not from dpstream collect"):
        collect(["twin"], tmp_path, root=str(root))
