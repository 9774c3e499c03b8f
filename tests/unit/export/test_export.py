"""Export: models, data, an MD example, and with `full` a root of its own."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase.io import read

from dpstream.export.folder import MARKER, export
from dpstream.services.coordinator.views.why import why
from dpstream.shared.atoms.frames import frame_key, from_ase
from dpstream.shared.errors import SpecError
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns import sample_ledger


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return sample_ledger.write_sample(tmp_path / "root")


@pytest.fixture
def folder(tmp_path: Path, store: FolderStore) -> Path:
    export(store, sample_ledger.NAME, tmp_path / "out")
    return tmp_path / "out"


def _keys(path: Path) -> list[str]:
    return [frame_key(from_ase(atoms)) for atoms in read(path, ":")]


def test_models_compressed_and_frozen(folder: Path) -> None:
    names = {path.name: path.read_text() for path in (folder / "models").iterdir()}
    assert names == {
        "final.pb": "compressed final",
        "final-frozen.pb": "frozen final",
        "committee-0.pb": "compressed train-0",
        "committee-0-frozen.pb": "frozen train-0",
        "committee-1.pb": "compressed train-1",
        "committee-1-frozen.pb": "frozen train-1",
    }


def test_training_labels_without_audit_and_rejected_frames(folder: Path) -> None:
    expected = [
        sample_ledger.KEYS[sample_ledger.INITIAL],
        sample_ledger.KEYS[sample_ledger.TRAINED],
    ]
    assert _keys(folder / "dataset" / "dataset.extxyz") == expected
    assert _keys(folder / "audit" / "audit.extxyz") == [sample_ledger.KEYS[sample_ledger.AUDITED]]
    system = folder / "dataset" / "deepmd" / "C1H4-nopbc"
    assert np.load(system / "set.000" / "energy.npy").tolist() == [-10.0, -11.0]


def test_labels_no_dataset_version_holds_yet_are_there_too(tmp_path: Path) -> None:
    store = sample_ledger.write_half(tmp_path / "root")
    export(store, sample_ledger.NAME, tmp_path / "out")
    expected = [
        sample_ledger.KEYS[sample_ledger.INITIAL],
        sample_ledger.KEYS[sample_ledger.TRAINED],
    ]
    assert _keys(tmp_path / "out" / "dataset" / "dataset.extxyz") == expected


def test_the_training_can_be_repeated(folder: Path) -> None:
    document = json.loads((folder / "dataset" / "input.json").read_text())
    systems = document["training"]["training_data"]["systems"]
    assert all((folder / "dataset" / system / "type.raw").exists() for system in systems)
    assert document["training"]["numb_steps"] == 100


def test_an_md_example_that_points_at_the_final_model(folder: Path) -> None:
    text = (folder / "md-example" / "in.lammps").read_text()
    assert "pair_style deepmd ../models/final.pb\npair_coeff * * C H\n" in text
    assert "boundary m m m" in text
    assert "5 atoms" in (folder / "md-example" / "structure.data").read_text()
    assert "cd md-example && lmp -in in.lammps" in (folder / "README.txt").read_text()


def test_the_readme_names_demo_labels(folder: Path) -> None:
    assert "semi-empirical demo labels" in (folder / "README.txt").read_text()


def test_a_full_export_is_a_root_of_its_own(tmp_path: Path, store: FolderStore) -> None:
    store.put("campaigns/told/lock", b"")
    store.put(f"labels/{sample_ledger.RECIPE.digest}/00/{'0' * 32}.json", b"of another campaign")
    export(store, sample_ledger.NAME, tmp_path / "out", full=True)
    copy = FolderStore(tmp_path / "out")
    assert why(copy, sample_ledger.NAME, sample_ledger.KEYS[1]) == why(
        store, sample_ledger.NAME, sample_ledger.KEYS[1]
    )
    assert len(list(copy.list("labels/"))) == 3
    assert not copy.exists("campaigns/told/lock")
    export(copy, sample_ledger.NAME, tmp_path / "again")
    one, other = (p / "dataset" / "dataset.extxyz" for p in (tmp_path / "out", tmp_path / "again"))
    assert one.read_bytes() == other.read_bytes()


def test_a_plain_export_holds_no_ledger(folder: Path) -> None:
    assert not (folder / "campaigns").exists()


def test_export_over_an_earlier_one_leaves_nothing_stale(store: FolderStore, folder: Path) -> None:
    (folder / "models" / "committee-9.pb").write_text("of an earlier export")
    export(store, sample_ledger.NAME, folder)
    assert not (folder / "models" / "committee-9.pb").exists()
    assert (folder / "models" / "final.pb").exists()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, store: FolderStore) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(SpecError, match="contains files that are not from an export of told"):
        export(store, sample_ledger.NAME, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_an_export_of_another_campaign_is_left_alone(store: FolderStore, folder: Path) -> None:
    (folder / MARKER).write_text(json.dumps({"campaign": "told", "spec": "of another"}))
    with pytest.raises(SpecError, match="contains files that are not from"):
        export(store, sample_ledger.NAME, folder)
    assert (folder / "models" / "final.pb").exists()


def test_a_file_in_the_way(tmp_path: Path, store: FolderStore) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SpecError, match="is a file"):
        export(store, sample_ledger.NAME, tmp_path / "out")


def test_a_campaign_without_models_says_so(tmp_path: Path) -> None:
    lines = export(
        sample_ledger.write_beginning(tmp_path / "root"), sample_ledger.NAME, tmp_path / "out"
    )
    assert lines[0] == "no committee is complete yet: no models"
    assert _keys(tmp_path / "out" / "dataset" / "dataset.extxyz") == [
        sample_ledger.KEYS[sample_ledger.INITIAL]
    ]
    assert not (tmp_path / "out" / "md-example").exists()
