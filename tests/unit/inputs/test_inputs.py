"""What a spec names is read, checked and brought into canonical form; problems are one line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import ase.io
import dpdata
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from dpstream.inputs import read_labelled
from dpstream.inputs.check_spec import _small_cells
from dpstream.inputs.gather import gather
from dpstream.inputs.read_labelled import Imported
from dpstream.shared.atoms.frames import canonical, closest_pair, frame_key, from_ase, min_distance
from dpstream.shared.errors import SpecError
from dpstream.shared.runtime.child_process import Limits
from dpstream.shared.runtime.parser import MIB, Parser
from dpstream.shared.spec import Spec

pytestmark = pytest.mark.usefixtures("one_parser")

RNG = np.random.default_rng(5)
READS = read_labelled._reads
"""Which `one_parser` replaces."""


def spec(elements: Sequence[str] = ("C", "H"), **sections: Any) -> Spec:
    document: dict[str, Any] = {
        "name": "test",
        "type_map": list(elements),
        "systems": {"a": {"structures": ["a.*"]}},
        "initial": {"perturb": {"copies": 3}},
        "stages": [{"name": "warm", "systems": ["a"], "temperatures": [300]}],
    }
    return Spec.model_validate({**document, **sections})


def problem(tmp_path: Path, wanted: Spec) -> str:
    with pytest.raises(SpecError) as caught:
        gather(wanted, tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    return text


def copper(seed: int = 0, cell: Any = None) -> Atoms:
    """A rattled, sheared copper cell with EMT energy, forces and stress; in upper-triangular and
    unsorted form, so that canonicalising has something to do."""
    atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
    atoms.symbols[[0, 3]] = "Al"
    atoms.rattle(0.1, seed=seed)
    strain = np.array([[0.03, 0.02, 0.01], [0.0, -0.02, 0.03], [0.0, 0.0, 0.01]])
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
    atoms.calc = EMT()
    return atoms


def frozen(atoms: Atoms, **results: Any) -> Atoms:
    """A copy that carries results as a file would."""
    copy = atoms.copy()
    copy.calc = SinglePointCalculator(copy, **results)
    return copy


def labelled(atoms: Atoms) -> Atoms:
    return frozen(
        atoms,
        energy=atoms.get_potential_energy(),
        forces=atoms.get_forces(),
        stress=atoms.get_stress(),
    )


# ------------------------------------------------------------------------------ structures


def test_a_molecule_is_read_and_perturbed(tmp_path: Path) -> None:
    molecule("CH4").write(tmp_path / "a.xyz")
    gathered = gather(spec(), tmp_path)
    (frame,) = gathered.systems["a"]
    assert frame.formula == "C1H4"
    assert frame.cell is None
    assert len(gathered.initial) == 3
    assert len({frame_key(copy) for copy in gathered.initial}) == 3
    assert gathered.warnings == []


def test_everything_gathered_is_canonical_and_repeatable(tmp_path: Path) -> None:
    copper().write(tmp_path / "a.extxyz")
    wanted = spec(["Al", "Cu"], labels={"force": True})
    first, second = gather(wanted, tmp_path), gather(wanted, tmp_path)
    frames = first.systems["a"] + first.initial
    for frame, again in zip(frames, second.systems["a"] + second.initial, strict=True):
        assert frame_key(frame) == frame_key(canonical(frame).frame) == frame_key(again)
    other = gather(spec(["Al", "Cu"], labels={"force": True}, seed=2), tmp_path)
    assert frame_key(other.initial[0]) != frame_key(first.initial[0])


@pytest.mark.slow
def test_files_are_poscar_cif_and_several_frames(tmp_path: Path) -> None:
    cell = bulk("Si", cubic=True).repeat(2)
    ase.io.write(tmp_path / "a.POSCAR", cell, format="vasp")
    ase.io.write(tmp_path / "a.cif", bulk("Si", cubic=True).repeat((2, 2, 3)))
    ase.io.write(tmp_path / "a.extxyz", [cell.repeat((2, 1, 1)), cell.repeat((1, 1, 2))])
    frames = gather(spec(["Si"]), tmp_path).systems["a"]
    assert sorted(len(frame.species) for frame in frames) == [64, 96, 128, 128]


def test_structures_that_occur_again_are_told(tmp_path: Path) -> None:
    for name in ("a.xyz", "a.2.xyz"):
        molecule("CH4").write(tmp_path / name)
    gathered = gather(spec(), tmp_path)
    assert len(gathered.systems["a"]) == 1
    assert gathered.warnings == [
        "systems.a.structures: 1 of 2 structures are duplicates; each is taken once"
    ]


def test_no_file_matches(tmp_path: Path) -> None:
    text = problem(tmp_path, spec())
    assert text == f"systems.a.structures: no file matches 'a.*' in {tmp_path}"


def test_unreadable_and_empty_files(tmp_path: Path) -> None:
    (tmp_path / "a.POSCAR").write_text("methane\n1.0\nthis is no cell\n")
    text = problem(tmp_path, spec())
    assert text.startswith(f"systems.a.structures: {tmp_path / 'a.POSCAR'}: cannot be read as a ")
    (tmp_path / "a.POSCAR").write_text("")
    text = problem(tmp_path, spec())
    assert text == f"systems.a.structures: {tmp_path / 'a.POSCAR'}: is empty"


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.d").mkdir()
    assert "a.d: is a folder" in problem(tmp_path, spec())


def test_element_outside_the_type_map(tmp_path: Path) -> None:
    molecule("CH3OH").write(tmp_path / "a.xyz")
    assert problem(tmp_path, spec()).endswith("a.xyz: element O is not in type_map (C, H)")


def test_overlap_names_pair_distance_and_file(tmp_path: Path) -> None:
    atoms = Atoms("HCH", [[0, 0, 0.0], [0, 0, 1.1], [0, 0, 1.4]])
    atoms.write(tmp_path / "a.xyz")
    text = problem(tmp_path, spec())
    assert "a.xyz: atoms C1 and H3 are 0.300 Å apart, closer than labels.min_distance" in text


def test_overlap_through_the_boundary(tmp_path: Path) -> None:
    Atoms("H2", [[0.1, 5, 5], [9.8, 5, 5]], cell=[10, 10, 10], pbc=True).write(
        tmp_path / "a.extxyz"
    )
    assert "0.300 Å apart" in problem(tmp_path, spec())


def test_closest_pair_of_a_sound_frame_is_none() -> None:
    assert closest_pair(from_ase(molecule("CH4")), 0.5) is None


def test_partly_periodic(tmp_path: Path) -> None:
    atoms = Atoms("C", cell=[8, 8, 8], pbc=[True, True, False])
    atoms.write(tmp_path / "a.extxyz")
    assert "periodic along x, y only; allowed: all three directions or none" in problem(
        tmp_path, spec()
    )
    dropped = {"a": {"structures": ["a.*"], "periodic": False}}
    assert gather(spec(systems=dropped), tmp_path).systems["a"][0].cell is None


def test_left_handed_and_flat_cells(tmp_path: Path) -> None:
    Atoms("C", cell=[[0, 9, 0], [9, 0, 0], [0, 0, 9]], pbc=True).write(tmp_path / "a.extxyz")
    gathered = gather(spec(labels={"multiplicity": 1}), tmp_path)
    (frame,) = gathered.systems["a"]
    assert frame.cell is not None
    assert np.linalg.det(frame.cell) == pytest.approx(729)
    (told,) = [text for text in gathered.warnings if "left-handed" in text]
    assert told.startswith("systems.a.structures: 1 with a left-handed cell inverted (−a, −b, −c")
    assert told.endswith("a.extxyz")
    Atoms("C", cell=[[9, 0, 0], [0, 9, 0], [9, 9, 0]], pbc=True).write(tmp_path / "a.extxyz")
    assert problem(tmp_path, spec()).endswith(
        "periodic, but its cell is missing or has (almost) no volume"
    )


def test_periodic_asked_of_a_file_without_cell(tmp_path: Path) -> None:
    molecule("CH4").write(tmp_path / "a.xyz")
    wanted = spec(systems={"a": {"structures": ["a.xyz"], "periodic": True}})
    assert "periodic, but its cell is missing or has (almost) no volume" in problem(
        tmp_path, wanted
    )


@pytest.mark.slow
def test_all_structures_are_taken_up_to_a_number_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [Atoms("CH", [[0, 0, 0], [0, 0, 1.0 + 0.001 * i]]) for i in range(300)]
    ase.io.write(tmp_path / "a.extxyz", frames)
    wanted = spec(labels={"multiplicity": 2})
    gathered = gather(wanted, tmp_path)
    assert len(gathered.systems["a"]) == 300
    assert not gathered.warnings
    monkeypatch.setattr("dpstream.inputs.gather.MOST_FRAMES", 299)
    found = 300 + len(gathered.initial)
    assert problem(tmp_path, wanted) == (
        f"systems, initial: {found} structures to start with; at most 299 allowed"
    )


# ------------------------------------------------------------------------------ perturbation


@pytest.mark.slow
def test_copies_too_close_are_drawn_again_or_refused(tmp_path: Path) -> None:
    molecule("CH4").write(tmp_path / "a.xyz")
    wanted = spec(
        initial={"perturb": {"copies": 40, "displace": 0.5}}, labels={"min_distance": 0.9}
    )
    assert min(min_distance(copy) for copy in gather(wanted, tmp_path).initial) >= 0.9
    molecule("C60").write(tmp_path / "a.xyz")
    wanted = spec(initial={"perturb": {"displace": 2.0}}, labels={"min_distance": 1.2})
    assert problem(tmp_path, wanted).startswith("initial.perturb.displace: 2 Å keeps bringing")


# ------------------------------------------------------------------------------ labelled sets


def read(tmp_path: Path, pattern: str, elements: Sequence[str] = ("Al", "Cu")) -> list[Imported]:
    return read_labelled.read_labelled([pattern], tmp_path, elements, "initial.data").items


def check_against_emt(items: Sequence[Imported]) -> None:
    """The labels are those of the canonical frames: rotated and reordered together, the virial
    being −dE/dε by finite differences."""
    for item in items:
        atoms = Atoms(item.frame.species, item.frame.positions, cell=item.frame.cell, pbc=True)
        atoms.calc = EMT()
        assert item.label.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        assert np.allclose(item.label.forces, atoms.get_forces(), atol=1e-4)
        assert item.label.virial is not None
        for i, j in combinations_with_replacement(range(3), 2):
            numeric = _virial(atoms, i, j)
            assert np.allclose(item.label.virial[[i, j], [j, i]], numeric, atol=2e-3)


def _virial(atoms: Atoms, i: int, j: int, step: float = 1e-4) -> float:
    energies = []
    for sign in (1, -1):
        strain = np.zeros((3, 3))
        strain[i, j] += sign * step / 2
        strain[j, i] += sign * step / 2
        copy = atoms.copy()
        copy.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
        copy.calc = EMT()
        energies.append(copy.get_potential_energy())
    return float(-(energies[0] - energies[1]) / (2 * step))


@pytest.mark.slow
def test_extxyz_is_canonicalised_with_its_vectors(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "set.extxyz", [labelled(copper(seed)) for seed in range(2)])
    items = read(tmp_path, "set.extxyz")
    assert [item.frame.species for item in items] == [("Al",) * 2 + ("Cu",) * 6] * 2
    check_against_emt(items)


@pytest.fixture
def system(tmp_path: Path) -> dpdata.LabeledSystem:
    ase.io.write(tmp_path / "set.extxyz", [labelled(copper(seed)) for seed in range(3)])
    frames = ase.io.read(tmp_path / "set.extxyz", index=":")
    merged = dpdata.LabeledSystem(frames[0], fmt="ase/structure")
    for atoms in frames[1:]:
        merged.append(dpdata.LabeledSystem(atoms, fmt="ase/structure"))
    return merged


@pytest.mark.slow
@pytest.mark.parametrize("form", ["deepmd/npy", "deepmd/raw"])
def test_deepmd_folders(tmp_path: Path, system: dpdata.LabeledSystem, form: str) -> None:
    system.to(form, str(tmp_path / "data" / "alcu"))
    for pattern in ("data/alcu", "data", "dat*"):
        items = read(tmp_path, pattern)
        assert len(items) == 3
    check_against_emt(items)


@pytest.mark.slow
def test_deepmd_hdf5_with_and_without_a_system(
    tmp_path: Path, system: dpdata.LabeledSystem
) -> None:
    system.to("deepmd/hdf5", f"{tmp_path}/data.hdf5#/one")
    with h5py.File(tmp_path / "data.hdf5", "a") as file:
        file.copy("one", "two")
    assert len(read(tmp_path, "data.hdf5")) == 6
    items = read(tmp_path, "data.hdf5#/one")
    assert len(items) == 3
    check_against_emt(items)
    with pytest.raises(SpecError, match=r"data\.hdf5#/none: no such group; it has one, two"):
        read(tmp_path, "data.hdf5#/none")


@pytest.mark.slow
def test_deepmd_types_without_names_count_in_model_order(
    tmp_path: Path, system: dpdata.LabeledSystem
) -> None:
    system.to("deepmd/npy", str(tmp_path / "data"))
    names = (tmp_path / "data/type_map.raw").read_text().split()
    (tmp_path / "data/type_map.raw").unlink()
    items = read(tmp_path, "data", names)
    check_against_emt(items)


def test_molecules_lose_box_and_virial(tmp_path: Path) -> None:
    atoms = frozen(molecule("CH4"), energy=-1.0, forces=np.zeros((5, 3)))
    ase.io.write(tmp_path / "set.extxyz", atoms)
    (item,) = read(tmp_path, "set.extxyz", ["C", "H"])
    assert item.frame.cell is None
    assert item.label.virial is None


def test_an_internal_energy_among_free_energies_is_warned_of(tmp_path: Path) -> None:
    molecule("CH4").write(tmp_path / "a.xyz")
    atoms = frozen(molecule("CH4"), energy=-1.0, free_energy=-1.5, forces=np.zeros((5, 3)))
    ase.io.write(tmp_path / "set.extxyz", atoms)
    source: dict[str, Any] = {"file": "set.extxyz"}
    free = spec(initial={"data": [source]})
    internal = spec(initial={"data": [source | {"energy": "energy"}]})
    said = [[w for w in gather(s, tmp_path).warnings if "energy" in w] for s in (free, internal)]
    assert said[0] == []
    assert said[1][0].startswith("initial.data: set.extxyz: has the internal energy, but labels.")


def test_the_force_consistent_energy_is_taken(tmp_path: Path) -> None:
    atoms = frozen(molecule("CH4"), energy=-1.0, free_energy=-1.5, forces=np.zeros((5, 3)))
    ase.io.write(tmp_path / "set.extxyz", atoms)
    (item,) = read(tmp_path, "set.extxyz", ["C", "H"])
    assert item.label.energy == -1.5


def test_sets_without_energy_or_forces(tmp_path: Path, system: dpdata.LabeledSystem) -> None:
    ase.io.write(tmp_path / "bare.extxyz", molecule("CH4"))
    with pytest.raises(
        SpecError, match=r"energy missing; a labelled set needs .*\. It has no numbers"
    ):
        read(tmp_path, "bare.extxyz", ["C", "H"])
    ase.io.write(tmp_path / "half.extxyz", frozen(molecule("CH4"), energy=-1.0))
    with pytest.raises(SpecError, match=r"forces missing; .* It has energy; name it in the spec"):
        read(tmp_path, "half.extxyz", ["C", "H"])
    system.to("deepmd/npy", str(tmp_path / "data"))
    (tmp_path / "data/set.000/force.npy").unlink()
    with pytest.raises(SpecError, match=r"force\.npy is missing"):
        read(tmp_path, "data")


def test_sets_that_do_not_fit(tmp_path: Path, system: dpdata.LabeledSystem) -> None:
    system.to("deepmd/npy", str(tmp_path / "data"))
    with pytest.raises(SpecError, match=r"data: element Cu is not in type_map \(Al\)"):
        read(tmp_path, "data", ["Al"])
    with pytest.raises(SpecError, match=r"initial\.data: no file matches 'gone'"):
        read(tmp_path, "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match="empty: contains no converged frame"):
        read(tmp_path, "empty")


def test_garbage_named_outcar(tmp_path: Path) -> None:
    (tmp_path / "OUTCAR").write_text("not from VASP\n")
    with pytest.raises(SpecError, match="OUTCAR"):
        read(tmp_path, "OUTCAR")


@pytest.fixture
def confined_parsers(one_parser: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user: a parser may read what its set consists of, and nothing beside it."""
    monkeypatch.setattr(read_labelled, "_reads", READS)
    monkeypatch.delenv("DPSTREAM_CONFINE_READ")
    monkeypatch.delenv("DPSTREAM_CONFINE_WRITE")


@pytest.mark.slow
@pytest.mark.usefixtures("confined_parsers")
def test_confined_the_parser_reads_sets_inside_and_outside_of_the_specs_folder(
    tmp_path: Path,
) -> None:
    for place in (tmp_path / "spec", tmp_path / "elsewhere"):
        place.mkdir()
        ase.io.write(place / "set.extxyz", labelled(copper()))
    for pattern in ("set.extxyz", "../elsewhere/*.extxyz", f"{tmp_path}/elsewhere/set.extxyz"):
        assert len(read(tmp_path / "spec", pattern)) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("confined_parsers")
def test_confined_the_parser_follows_the_links_of_a_data_folder(
    tmp_path: Path, system: dpdata.LabeledSystem
) -> None:
    system.to("deepmd/npy", str(tmp_path / "archive" / "system"))
    data = tmp_path / "spec" / "data"
    data.mkdir(parents=True)
    for entry in (tmp_path / "archive" / "system").iterdir():
        (data / entry.name).symlink_to(entry)
    for name in ("gone", "itself"):
        (data / name).symlink_to(name if name == "itself" else tmp_path / name)
    ase.io.write(tmp_path / "archive" / "blob", labelled(copper()), format="extxyz")
    (tmp_path / "spec" / "set.extxyz").symlink_to("../archive/blob")
    assert read(tmp_path / "spec", "data")
    assert read(tmp_path / "spec", "set.extxyz")


def test_names_in_messages_are_those_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spec").mkdir()
    (tmp_path / "bad.extxyz").write_text("garbage\n")
    ase.io.write(tmp_path / "good.extxyz", labelled(copper()))
    monkeypatch.chdir(tmp_path / "spec")
    with pytest.raises(SpecError) as refused:
        read(Path(), "../bad.extxyz")
    said = str(refused.value)
    assert said.startswith("initial.data: ../bad.extxyz: line 1: 'garbage' is not")
    assert str(tmp_path) not in str(refused.value)
    assert [item.source for item in read(Path(), "../good.extxyz")] == ["../good.extxyz"]


@pytest.mark.slow
def test_a_set_that_announces_a_quadrillion_of_atoms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(seconds=2.0, memory=256 * MIB, file=MIB)
    monkeypatch.setattr("dpstream.inputs.read_labelled._limits", lambda size: limits)
    (tmp_path / "set.extxyz").write_text("1000000000000000\ncomment\n")
    with pytest.raises(SpecError, match=r"initial\.data: set\.extxyz: cannot be read as"):
        read(tmp_path, "set.extxyz")


@pytest.mark.slow
def test_what_a_reader_warns_of_is_a_warning_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dpdata says by Python warnings what it doubts: the elements of an OUTCAR."""
    atoms = labelled(copper())
    ase.io.write(tmp_path / "set.extxyz", atoms)
    atoms.write(tmp_path / "a.extxyz")

    parser = Parser("tests.support.workers.warning_reader", tmp_path / "parser")
    wanted = spec(["Al", "Cu"], initial={"data": ["set.extxyz"]}, labels={"force": True})
    with monkeypatch.context() as patched:
        patched.setattr("dpstream.inputs.read_labelled._parser", lambda reads: parser)
        said = gather(wanted, tmp_path).warnings
    parser.close()
    assert said[0] == (
        "initial.data: set.extxyz: 1 frame found (extxyz), all taken; energy as given; "
        "structures were unconverged: [2]"
    )


@pytest.mark.slow
def test_imported_frames_are_taken_once_and_never_held_out_too(tmp_path: Path) -> None:
    atoms = labelled(copper())
    ase.io.write(tmp_path / "set.extxyz", [atoms, atoms])
    atoms.write(tmp_path / "a.extxyz")
    common: dict[str, Any] = {"initial": {"data": ["set.extxyz"]}, "labels": {"force": True}}
    gathered = gather(spec(["Al", "Cu"], **common), tmp_path)
    assert len(gathered.labelled) == 1
    assert gathered.initial == []
    held_out = spec(["Al", "Cu"], **common, verification={"data": ["set.extxyz"]})
    assert "held-out frames must not be trained on" in problem(tmp_path, held_out)


# ------------------------------------------------------------------------------ consistency


def test_periodic_frames_need_a_code_for_cells(tmp_path: Path) -> None:
    bulk("C", cubic=True).write(tmp_path / "a.extxyz")
    text = problem(tmp_path, spec(labels={"code": "pyscf"}))
    assert "is periodic, but labels.code pyscf supports molecules only" in text
    assert "tblite" in text


def test_unknown_labeling_code(tmp_path: Path) -> None:
    molecule("CH4").write(tmp_path / "a.xyz")
    text = problem(tmp_path, spec(labels={"code": "tblit"}))
    assert text.startswith("labels.code: ")
    assert "did you mean 'tblite'?" in text


def test_electrons_that_cannot_have_the_spin(tmp_path: Path) -> None:
    molecule("CH3").write(tmp_path / "a.xyz")
    assert "9 electrons" in problem(tmp_path, spec())
    assert gather(spec(labels={"multiplicity": 2}), tmp_path).systems


def test_barostat_needs_cell_and_virial(tmp_path: Path) -> None:
    stage = {
        "name": "npt",
        "systems": ["a"],
        "temperatures": [300],
        "pressures": [1],
        "md": {"ensemble": "npt"},
    }
    molecule("CH4").write(tmp_path / "a.xyz")
    assert problem(tmp_path, spec(stages=[stage])) == (
        "stages.0.md.ensemble: npt requires a cell; systems.a has none"
    )
    Atoms("C2", [[0, 0, 0], [0, 0, 1.2]], cell=[9, 9, 9], pbc=True).write(tmp_path / "a.extxyz")
    (tmp_path / "a.xyz").unlink()
    assert "requires models trained on the virial" in problem(tmp_path, spec(stages=[stage]))
    zero = {"input": {"loss": {"start_pref_v": 0, "limit_pref_v": 0.0}}}
    said = gather(spec(stages=[stage], training=zero), tmp_path).warnings
    assert any("not trained on the virial" in text for text in said), "zero was said on purpose"
    loss = {"input": {"loss": {"start_pref_v": 0.02, "limit_pref_v": 1}}}
    assert gather(spec(stages=[stage], training=loss), tmp_path).systems


def test_material_needs_cells(tmp_path: Path) -> None:
    molecule("CH4").write(tmp_path / "a.xyz")
    wanted = spec(stages=[], material={"Tm": 90, "B": 1})
    assert "systems.a has no cell" in problem(tmp_path, wanted)


def test_budget_below_the_initial_frames(tmp_path: Path) -> None:
    molecule("CH4").write(tmp_path / "a.xyz")
    text = problem(tmp_path, spec(budget={"labels": 2}))
    assert text == (
        "budget.labels: 2 is less than the 3 initial frames to label; raise it to 3 or more"
    )


@pytest.mark.parametrize(
    ("descriptor", "cutoff"),
    [
        ({"rcut": 7.5}, 7.5),
        ({"type": "dpa2", "repinit": {"rcut": 7.5}, "repformer": {"rcut": 4.0}}, 7.5),
        ({"type": "dpa3", "repflow": {"e_rcut": 7.5, "a_rcut": 4.0}}, 7.5),
        ({"type": "hybrid", "list": [{"rcut": 4.0}, {"rcut": 7.5}]}, 7.5),
        ({"type": "dpa3", "repflow": {}}, 6.0),
    ],
)
def test_the_cutoff_of_every_descriptor(descriptor: dict[str, Any], cutoff: float) -> None:
    wanted = spec(["Si"], training={"input": {"model": {"descriptor": descriptor}}})
    (warning,) = _small_cells(wanted, "a", [from_ase(bulk("Si", cubic=True))])
    assert f"less than the model's cutoff ({cutoff:g} Å)" in warning


def test_warnings(tmp_path: Path) -> None:
    bulk("Si", cubic=True).write(tmp_path / "a.extxyz")
    wanted = spec(
        ["Si"],
        md={"timestep": 0.008},
        audit={"per_round": 1, "min_frames": 30},
        stages=[{"name": "warm", "systems": ["a"], "temperatures": [300]}],
    )
    said = "\n".join(gather(wanted, tmp_path).warnings)
    assert "5.43 Å wide, less than the model's cutoff (6 Å)" in said
    assert "0.008 ps is 8 fs" in said
    assert "audit.min_frames: 30 cannot be reached" in said
    assert "Gamma point only" in said
    unaudited = gather(spec(["Si"], audit={"per_round": 0}), tmp_path)
    assert any("no audit" in warning for warning in unaudited.warnings)


BAD_INPUTS = [
    ({"model": {"descriptor": {"rcutt": 5.0}}}, "training.input: model.descriptor: undefined key"),
    ({"los": {}}, "training.input: undefined key `los`"),
    ({"learning_rate": {"start_lr": "fast"}}, "training.input: learning_rate: key `start_lr`"),
]


@pytest.mark.parametrize(("given", "expected"), BAD_INPUTS)
def test_training_input_is_judged_by_deepmd(
    tmp_path: Path, given: dict[str, Any], expected: str
) -> None:
    molecule("CH4").write(tmp_path / "a.xyz")
    pytest.importorskip("deepmd")
    assert problem(tmp_path, spec(training={"input": given})).startswith(expected)


def test_copies_are_dealt_over_scales(tmp_path: Path) -> None:
    copper().write(tmp_path / "a.extxyz")
    perturb = {"copies": 4, "displace": 1e-6, "strain": 0.0, "scale": [0.9, 1.1]}
    wanted = spec(["Al", "Cu"], labels={"force": True}, initial={"perturb": perturb})
    gathered = gather(wanted, tmp_path)
    (frame,) = gathered.systems["a"]
    assert frame.cell is not None
    volumes = [np.linalg.det(f.cell) for f in gathered.initial if f.cell is not None]
    expected = [np.linalg.det(frame.cell) * factor**3 for factor in (0.9, 1.1, 0.9, 1.1)]
    assert volumes == pytest.approx(expected, rel=1e-4)


def test_the_elements_of_an_alloy_are_distributed_over_its_sites(tmp_path: Path) -> None:
    alloy = bulk("Cu", "fcc", a=3.6, cubic=True) * (2, 2, 1)
    alloy.symbols[:4] = "Au"
    ase.io.write(tmp_path / "a.extxyz", [alloy, alloy])

    def gold(**system: Any) -> list[set[tuple[float, ...]]]:
        """The sites of gold in each structure; the sites as a whole stay the same."""
        systems = {"a": {"structures": ["a.extxyz"], **system}}
        wanted = spec(["Au", "Cu"], systems=systems, labels={"force": True})
        frames = gather(wanted, tmp_path).systems["a"]
        sites = [np.round(frame.positions, 6).tolist() for frame in frames]
        assert len({frozenset(map(tuple, each)) for each in sites}) == 1
        return [set(map(tuple, each[:4])) for each in sites]

    (given,), (first, second) = gold(), gold(shuffle=True)
    assert len(first) == len(second) == 4
    assert given != first
    assert first != second
    assert gold(shuffle=True) == [first, second], "reproducible"


def test_slabs_and_supercells_of_a_structure(tmp_path: Path) -> None:
    bulk("Cu", cubic=True).write(tmp_path / "a.extxyz")
    slabs = {"miller": [[1, 0, 0], [1, 1, 1]], "layers": 2, "vacuum": [8, 12]}
    system = {"structures": ["a.extxyz"], "slabs": slabs, "supercell": [2, 1, 1]}
    wanted = spec(["Cu"], systems={"a": system}, labels={"force": True})
    frames = gather(wanted, tmp_path).systems["a"]
    assert [len(frame.species) for frame in frames] == [16] * 4
    molecule("CH4").write(tmp_path / "a.extxyz")
    wanted = spec(systems={"a": {**system, "structures": ["a.extxyz"]}})
    assert problem(tmp_path, wanted).endswith("a.extxyz: C1H4 has no cell")


def test_engines_are_checked_on_every_structure(tmp_path: Path) -> None:
    molecule("CH4").write(tmp_path / "a.xyz")
    stage = {"name": "warm", "systems": ["a"], "temperatures": [300]}
    bond = {"kind": "distance", "groups": [["C1"], ["H7"]], "width": 0.1}
    wanted = spec(stages=[{**stage, "engine": {"kind": "colvars", "variables": [bond]}}])
    said = "stages.0.engine: a 300 K: there is no atom H7: the structure has 4 H"
    assert problem(tmp_path, wanted) == said
    wanted = spec(stages=[{**stage, "engine": {"kind": "plumed", "input": "LOAD FILE=x.cpp"}}])
    assert "line 1: 'LOAD' runs code" in problem(tmp_path, wanted)
    assert gather(wanted, tmp_path, trusting=True).systems
