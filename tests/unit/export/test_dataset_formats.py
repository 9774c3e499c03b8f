"""A dataset for other programs: the same labels in every form, a card, one archive."""

from __future__ import annotations

import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.db import connect

from dpstream.export.checksums import damaged_files
from dpstream.export.dataset_card import compositions
from dpstream.export.dataset_formats import VALIDATION, split_of, write_formats
from dpstream.export.folder import export
from dpstream.inputs.read_labelled import Imported, read_here
from dpstream.inputs.reading.sets import SetOptions
from dpstream.services.coordinator.views.why import why
from dpstream.shared.atoms.dataset import Labelled
from dpstream.shared.atoms.frames import Frame, FrameLabel, canonical, frame_key
from dpstream.shared.errors import SpecError
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import ImportedSet
from tests.support.campaigns import sample_ledger

TYPES = ("O", "H", "C")


def item(species: str, seed: int, periodic: bool = True, virial: bool = True) -> Labelled:
    rng = np.random.default_rng(seed)
    positions = np.arange(len(species))[:, None] * 1.3 + rng.normal(0, 0.1, (len(species), 3))
    frame = canonical(Frame(tuple(species), positions, np.eye(3) * 12 if periodic else None)).frame
    half = rng.normal(size=(3, 3))
    tensor = half + half.T if periodic and virial else None
    return Labelled(frame, FrameLabel(rng.normal(), rng.normal(size=(len(species), 3)), tensor), {})


DATASET = [
    *(item("OHH", seed) for seed in range(12)),
    *(item("CHO", seed) for seed in range(20, 32)),
    item("OHH", 40, periodic=False),
    item("OHH", 41, virial=False),
]
KEYS = {frame_key(each.frame): each.label for each in DATASET}


WEIGHTED = replace(DATASET[0], label=replace(DATASET[0].label, atom_pref=np.array([0.5, 1.0, 2.0])))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dataset")
    write_formats(DATASET, path, TYPES)
    return path


def read(*paths: Path) -> list[Imported]:
    names = {str(path): path for path in paths}
    return read_here(names, SetOptions(names=TYPES), "initial.data", "set")[1]


@pytest.mark.parametrize(
    "names",
    [
        ("deepmd-mixed",),
        ("extxyz/train.extxyz", "extxyz/valid.extxyz"),
        ("mace/train.xyz", "mace/valid.xyz"),
        ("dataset.db",),
    ],
)
def test_every_form_holds_the_same_labels(folder: Path, names: tuple[str, ...]) -> None:
    items = read(*(folder / name for name in names))
    assert {frame_key(each.frame) for each in items} == KEYS.keys()
    for each in items:
        label = KEYS[frame_key(each.frame)]
        assert each.label.energy == pytest.approx(label.energy, abs=1e-7)
        np.testing.assert_allclose(each.label.forces, label.forces, atol=1e-7)
        assert (each.label.virial is None) == (label.virial is None)
        if label.virial is not None:
            np.testing.assert_allclose(each.label.virial, label.virial, atol=1e-4)


@pytest.mark.parametrize("part", ["deepmd-mixed", "extxyz", "mace"])
def test_weights_of_atoms_are_kept(part: str, tmp_path: Path) -> None:
    write_formats([WEIGHTED], tmp_path, TYPES)
    where = tmp_path / part
    (each,) = read(*([where] if part == "deepmd-mixed" else where.iterdir()))
    np.testing.assert_allclose(each.label.weights["atom_pref"], [0.5, 1.0, 2.0])


def test_mixed_systems_hold_one_number_of_atoms_and_one_kind(folder: Path) -> None:
    names = sorted(path.name for path in (folder / "deepmd-mixed").iterdir())
    assert names == ["3", "3-nopbc", "3-novirial"]
    types = np.load(folder / "deepmd-mixed/3/set.000/real_atom_types.npy")
    assert sorted(map(tuple, types)) == [(0, 1, 1)] * 12 + [(0, 1, 2)] * 12


def test_a_frame_stays_in_its_split(folder: Path) -> None:
    shares = [split_of(f"{n * 2654435761 % 2**32:08x}") for n in range(2000)]
    assert shares.count("valid") / 2000 == pytest.approx(VALIDATION, abs=0.03)
    with connect(folder / "dataset.db") as database:
        for row in database.select():
            assert row.split == split_of(row.frame_key[1:])


def test_counts_and_forces_by_composition() -> None:
    rows = {(row.formula, row.periodic): row for row in compositions(DATASET)}
    assert rows.keys() == {("C1H1O1", True), ("H2O1", False), ("H2O1", True)}
    water = rows["H2O1", True]
    assert (water.frames, water.virials) == (13, 12)
    forces = np.concatenate([i.label.forces for i in [*DATASET[:12], DATASET[-1]]])
    assert water.forces == pytest.approx(np.sqrt(np.mean(forces**2)))


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return sample_ledger.write_sample(tmp_path / "root")


def test_the_card_states_contents_recipe_and_licence(tmp_path: Path, store: FolderStore) -> None:
    export(store, sample_ledger.NAME, tmp_path / "out", licence="CC-BY-4.0")
    card = (tmp_path / "out/dataset/README.md").read_text()
    assert card.startswith("---\nlicense: CC-BY-4.0\n---\n")
    assert "2 labelled frames of C, H" in card
    assert f"| recipe | {sample_ledger.RECIPE.digest} |" in card
    assert "semi-empirical demo labels" in card
    assert "| C1H4 | no | 2 | 0 | 0.0" in card
    export(store, sample_ledger.NAME, tmp_path / "out")
    assert "license: not stated" in (tmp_path / "out/dataset/README.md").read_text()
    assert list(damaged_files(tmp_path / "out")) == []


def test_the_card_lists_the_sources_of_imported_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ImportedSet(name="old/*.xyz", found=9, taken=7, left_out={"forces": 2})
    monkeypatch.setattr(sample_ledger, "IMPORTED", (given,))
    export(sample_ledger.write_sample(tmp_path / "root"), sample_ledger.NAME, tmp_path / "out")
    card = (tmp_path / "out/dataset/README.md").read_text()
    assert "- `old/*.xyz`: 7 of 9 frames taken; 2 without valid forces, left out\n" in card
    page = (tmp_path / "out/report.html").read_text()
    assert "old/*.xyz: 7 of 9 frames taken, 2 left out (forces)" in page


@pytest.mark.parametrize(
    ("kinds", "line", "said"),
    [
        (("free",), "the forces are |", "; free energy\n"),
        (("internal",), "the forces are; of imported labels as stated", "; internal energy\n"),
        (("",), "the forces are; of imported labels as stated", "; energy as given\n"),
    ],
)
def test_the_card_states_the_kinds_of_imported_energies(
    kinds: tuple[str, ...], line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ImportedSet(name="a.xyz", found=9, taken=9, energies=kinds)
    monkeypatch.setattr(sample_ledger, "IMPORTED", (given,))
    export(sample_ledger.write_sample(tmp_path / "root"), sample_ledger.NAME, tmp_path / "out")
    card = (tmp_path / "out/dataset/README.md").read_text()
    assert line in card
    assert f"- `a.xyz`: 9 of 9 frames taken{said}" in card


def test_the_database_keeps_parameters_and_weights(tmp_path: Path) -> None:
    plain = item("OHH", 1)
    frame = plain.frame.with_parameters({"fparam": np.array([0.5]), "aparam": np.eye(3)})
    label = replace(plain.label, atom_pref=np.array([1.0, 2.0, 0.5]))
    write_formats([Labelled(frame, label, {})], tmp_path, TYPES)
    with connect(tmp_path / "dataset.db") as database:
        (row,) = database.select()
    np.testing.assert_array_equal(row.data["fparam"], [0.5])
    np.testing.assert_array_equal(row.data["aparam"], np.eye(3))
    np.testing.assert_array_equal(row.data["atom_pref"], [1.0, 2.0, 0.5])
    assert len(read(tmp_path / "dataset.db")) == 1


def test_the_archive_is_a_store_once_unpacked(tmp_path: Path, store: FolderStore) -> None:
    lines = export(store, sample_ledger.NAME, tmp_path / "out", archive=True)
    assert lines[-1].startswith(f"{tmp_path / 'out.zip'}: all of it, with the ledger")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        archive.extractall(tmp_path / "elsewhere")
    whole = tmp_path / "elsewhere" / "out"
    arguments = (sample_ledger.NAME, sample_ledger.KEYS[1])
    assert why(FolderStore(whole), *arguments) == why(store, *arguments)
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=whole, check=True)


@pytest.mark.parametrize("holds", ["another", "text"])
def test_an_archive_replaces_only_an_earlier_one_of_the_campaign(
    holds: str, tmp_path: Path, store: FolderStore
) -> None:
    path = tmp_path / "out.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("out/.dpstream-export.json", '{"campaign": "another", "spec": "0"}')
    if holds == "text":
        path.write_text("mine\n")
    before = path.read_bytes()
    with pytest.raises(SpecError, match=r"out\.zip: is not an earlier archive of "):
        export(store, sample_ledger.NAME, tmp_path / "out", archive=True)
    assert path.read_bytes() == before
    assert not (tmp_path / "out").exists()
    path.unlink()
    for _ in range(2):
        export(store, sample_ledger.NAME, tmp_path / "out", archive=True)
