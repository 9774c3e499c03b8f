"""Dataset versions: the chain of manifests, what is fetched, and the files written from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.io import read

from dpstream.shared.atoms import dataset
from dpstream.shared.atoms.dataset import (
    Labelled,
    labelled_batch,
    load_dataset,
    write_deepmd,
    write_extxyz,
)
from dpstream.shared.atoms.frames import Batch, Frame, FrameLabel, encode_labelled
from dpstream.shared.values import Dataset, Ref


class Objects:
    """A store of bytes that counts what is fetched."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.fetched: list[str] = []

    def put(self, key: str, data: bytes) -> Ref:
        self.data[key] = data
        return Ref.to(key, data)

    def fetch(self, ref: Ref) -> bytes:
        self.fetched.append(ref.uri)
        return self.data[ref.uri]

    def manifest(self, version: int, **fields: object) -> Ref:
        body = Dataset.model_validate({"version": version, **fields}).model_dump_json()
        return self.put(f"dataset/{version}.json", body.encode())


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Objects:
    monkeypatch.setattr(dataset, "_decoded", dataset._Decoded(dataset.CACHE_BYTES))
    return Objects()


def molecule(seed: int, species: tuple[str, ...] = ("C", "H", "H")) -> Labelled:
    rng = np.random.default_rng(seed)
    shape = (len(species), 3)
    label = FrameLabel(float(rng.normal()), rng.normal(size=shape))
    return Labelled(Frame(species, rng.normal(size=shape)), label, {"code": "test"})


def crystal(seed: int, virial: bool = True) -> Labelled:
    rng = np.random.default_rng(seed)
    frame = Frame(("O", "H"), rng.normal(size=(2, 3)), np.eye(3) * 4 + rng.normal(size=(3, 3)) / 9)
    tensor = rng.normal(size=(3, 3))
    label = FrameLabel(-1.5, rng.normal(size=(2, 3)), tensor + tensor.T if virial else None)
    return Labelled(frame, label, {})


def stored(objects: Objects, seed: int) -> Ref:
    item = molecule(seed)
    data = encode_labelled(item.frame, item.label, item.provenance)
    return objects.put(f"labels/{seed}.json", data)


def packed(objects: Objects, items: list[Labelled]) -> Ref:
    arrays = {
        "energy": np.array([i.label.energy for i in items]),
        "forces": np.stack([i.label.forces for i in items]),
    }
    if items[0].label.virial is not None:
        arrays["virial"] = np.stack([i.label.virial for i in items if i.label.virial is not None])
    batch = Batch.of([i.frame for i in items], **arrays)
    return objects.put(f"packs/{len(objects.data)}.npz", batch.dumps())


def test_chain_of_versions_comes_oldest_first(objects: Objects) -> None:
    pack = packed(objects, [crystal(1), crystal(2)])
    first = objects.manifest(1, packs=[pack])
    second = objects.manifest(2, parent=first, labels=[stored(objects, 3)])
    third = objects.manifest(3, parent=second, labels=[stored(objects, 4)])
    items = load_dataset(objects.fetch, third)
    expected = [crystal(1), crystal(2), molecule(3), molecule(4)]
    assert [i.label.energy for i in items] == [e.label.energy for e in expected]
    for item, wanted in zip(items, expected, strict=True):
        np.testing.assert_array_equal(item.frame.positions, wanted.frame.positions)
        np.testing.assert_array_equal(item.label.forces, wanted.label.forces)
    np.testing.assert_array_equal(items[1].label.virial, crystal(2).label.virial)
    assert items[2].provenance == {"code": "test"}


def test_only_what_is_new_is_fetched(objects: Objects) -> None:
    first = objects.manifest(1, labels=[stored(objects, 1), stored(objects, 2)])
    load_dataset(objects.fetch, first)
    objects.fetched.clear()
    second = objects.manifest(2, parent=first, labels=[stored(objects, 3)])
    assert len(load_dataset(objects.fetch, second)) == 3
    assert objects.fetched == ["dataset/2.json", "labels/3.json"]


def test_cache_is_bounded(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = [stored(objects, seed) for seed in range(4)]
    monkeypatch.setattr(dataset, "_decoded", dataset._Decoded(refs[2].size + refs[3].size))
    manifest = objects.manifest(1, labels=refs)
    load_dataset(objects.fetch, manifest)
    assert dataset._decoded._size <= dataset._decoded.limit
    assert len(dataset._decoded._items) <= 2
    objects.fetched.clear()
    assert len(load_dataset(objects.fetch, manifest)) == 4
    assert "labels/0.json" in objects.fetched


def test_audit_sets_carry_origin_and_weight(objects: Objects) -> None:
    refs = [stored(objects, 1), stored(objects, 2)]
    audit = objects.manifest(1, labels=refs, origins=["a", "b"], weights=[2.0, 0.5])
    plain = objects.manifest(2, labels=refs)
    assert [(i.origin, i.weight) for i in load_dataset(objects.fetch, audit)] == [
        ("a", 2.0),
        ("b", 0.5),
    ]
    assert [(i.origin, i.weight) for i in load_dataset(objects.fetch, plain)] == [("", 1.0)] * 2


def test_mismatched_origins_are_refused(objects: Objects) -> None:
    manifest = objects.manifest(7, labels=[stored(objects, 1)], origins=["a", "b"])
    with pytest.raises(ValueError, match="version 7 has 1 labels, 2 origins"):
        load_dataset(objects.fetch, manifest)


def test_pack_without_labels_is_refused(objects: Objects) -> None:
    batch = Batch.of([molecule(1).frame], energy=np.zeros(1))
    manifest = objects.manifest(1, packs=[objects.put("packs/bad.npz", batch.dumps())])
    with pytest.raises(ValueError, match="has no forces"):
        load_dataset(objects.fetch, manifest)


def test_a_pack_has_a_virial_of_all_its_labels_or_of_none() -> None:
    frame = Frame(("H",), np.zeros((1, 3)), np.eye(3) * 9)
    have, lack = (FrameLabel(0.0, np.zeros((1, 3)), virial) for virial in (np.eye(3), None))
    assert "virial" in labelled_batch([(frame, have), (frame, have)]).arrays
    assert "virial" not in labelled_batch([(frame, lack), (frame, lack)]).arrays
    with pytest.raises(ValueError, match="1 of 2 labels have a virial"):
        labelled_batch([(frame, have), (frame, lack)])


def test_deepmd_systems_by_composition_and_periodicity(tmp_path: Path) -> None:
    items = [molecule(1), crystal(2), molecule(3), crystal(4), crystal(5, virial=False)]
    folders = write_deepmd(items, tmp_path, ["O", "H", "C"])
    assert [f.name for f in folders] == ["C1H2-nopbc", "H1O1", "H1O1-novirial"]
    gas, solid, bare = folders
    assert (gas / "nopbc").exists()
    assert not (solid / "nopbc").exists()
    assert (gas / "type_map.raw").read_text().split() == ["O", "H", "C"]
    energies = np.load(gas / "set.000" / "energy.npy")
    np.testing.assert_array_equal(energies, [items[0].label.energy, items[2].label.energy])
    np.testing.assert_array_equal(
        np.load(solid / "set.000" / "virial.npy"),
        np.stack([crystal(2).label.virial, crystal(4).label.virial]).reshape(2, 9),
    )
    np.testing.assert_array_equal(
        np.load(solid / "set.000" / "box.npy")[1], crystal(4).frame.cell.reshape(-1)
    )
    assert not (bare / "set.000" / "virial.npy").exists()
    assert not (gas / "set.000" / "virial.npy").exists()


def test_atoms_are_sorted_by_type_whatever_order_they_came_in(tmp_path: Path) -> None:
    one, other = molecule(1, ("H", "C", "H")), molecule(2, ("C", "H", "H"))
    (folder,) = write_deepmd([one, other], tmp_path, ["H", "C"])
    assert (folder / "type.raw").read_text().split() == ["0", "0", "1"]
    forces = np.load(folder / "set.000" / "force.npy").reshape(2, 3, 3)
    coordinates = np.load(folder / "set.000" / "coord.npy").reshape(2, 3, 3)
    np.testing.assert_array_equal(forces[0], one.label.forces[[0, 2, 1]])
    np.testing.assert_array_equal(forces[1], other.label.forces[[1, 2, 0]])
    np.testing.assert_array_equal(coordinates[1], other.frame.positions[[1, 2, 0]])


def test_unknown_species_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="C not in type_map"):
        write_deepmd([molecule(1)], tmp_path, ["H", "O"])


def test_deepmd_systems_read_back_by_dpdata(tmp_path: Path) -> None:
    import dpdata

    (folder,) = write_deepmd([crystal(1), crystal(2)], tmp_path, ["O", "H"])
    data = dpdata.LabeledSystem(str(folder), fmt="deepmd/npy").data
    np.testing.assert_allclose(data["forces"][1], crystal(2).label.forces)
    np.testing.assert_allclose(data["virials"][0], crystal(1).label.virial)
    assert data["atom_names"] == ["O", "H"]


def test_extxyz_reads_back_with_ase_signs(tmp_path: Path) -> None:
    items = [molecule(1), crystal(2)]
    write_extxyz(items, tmp_path / "all.xyz")
    gas, solid = read(tmp_path / "all.xyz", ":")
    assert not gas.pbc.any()
    assert gas.get_potential_energy() == pytest.approx(items[0].label.energy)
    np.testing.assert_allclose(gas.get_forces(), items[0].label.forces, atol=1e-7)
    virial = -solid.get_stress(voigt=False) * solid.get_volume()
    np.testing.assert_allclose(virial, items[1].label.virial, atol=1e-6)
    assert solid.get_chemical_symbols() == ["O", "H"]


def test_stress_of_a_stretched_solid_is_positive(tmp_path: Path) -> None:
    """Under tension the energy grows with the strain: virial −dE/dε < 0, ASE's stress > 0."""
    from ase.build import bulk
    from ase.calculators.emt import EMT

    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell * 1.03, scale_atoms=True)
    atoms.calc = EMT()
    h = 1e-4
    energies = []
    for scale in (1 + h, 1 - h):
        strained = atoms.copy()
        strained.set_cell(atoms.cell * scale, scale_atoms=True)
        strained.calc = EMT()
        energies.append(strained.get_potential_energy())
    trace = -(energies[0] - energies[1]) / (2 * h)
    label = FrameLabel(0.0, atoms.get_forces(), np.eye(3) * trace / 3)
    frame = Frame(("Cu",) * 4, atoms.positions, np.array(atoms.cell[:]))
    write_extxyz([Labelled(frame, label, {})], tmp_path / "cu.xyz")
    written = read(tmp_path / "cu.xyz").get_stress()
    np.testing.assert_allclose(written[:3], atoms.get_stress()[:3], rtol=1e-3)
    assert written[0] > 0
