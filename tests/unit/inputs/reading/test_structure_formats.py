"""Structures are read by what files contain; what a frame cannot hold is refused."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import ase.io
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms

from dpstream.inputs.read_structures import read_structures
from dpstream.inputs.reading import recognise
from dpstream.inputs.reading.ase_files import read_ase, read_dpdata
from dpstream.shared.errors import SpecError

CIF = """data_alloy
_cell_length_a 3.7
_cell_length_b 3.7
_cell_length_c 3.7
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_occupancy
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
"""
FULL = "Cu1 Cu 1.0 0 0 0\n"


def refusal(path: Path) -> str:
    with pytest.raises(SpecError) as refused:
        read_structures(path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        ("Cu2 Cu 0.75 .5 .5 .5\nAu2 Au 0.25 .5 .5 .5\n", "75% Cu, 25% Au"),
        ("Cu2 Cu 0.5 .5 .5 .5\n", "50% Cu, 50% vacant"),
        ("Cu2 Cu 0.5 .5 .5 .5\nAu2 Au 0.25 .5 .5 .5\n", "50% Cu, 25% Au, 25% vacant"),
    ],
)
def test_partly_occupied_sites_are_refused(sites: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "alloy.cif"
    path.write_text(CIF + FULL + sites)
    text = refusal(path)
    assert text.startswith(f"{path}: site 2 at (0.5, 0.5, 0.5) is partly occupied ({words}); ")
    assert "ordered supercell" in text


def test_sites_that_are_full_are_read(tmp_path: Path) -> None:
    path = tmp_path / "alloy.cif"
    path.write_text(CIF + FULL + "Au2 Au 1.0000 .5 .5 .5\n")
    assert read_ase(path)[0].get_chemical_formula() == "AuCu"


LAMMPS = """water

3 atoms
2 atom types
0 6 xlo xhi
0 6 ylo yhi
0 6 zlo zhi
{masses}
Atoms # atomic

1 1 1.0 1.0 1.0
2 2 1.8 1.6 1.0
3 2 0.2 1.6 1.0
"""
MASSES = "\nMasses\n\n1 15.999  # O\n2 2.014\n"


def lammps(path: Path, masses: str = MASSES) -> Path:
    path.write_text(LAMMPS.format(masses=masses))
    return path


@pytest.mark.parametrize("name", ["conf.lmp", "data.water", "POSCAR.old"])
def test_elements_of_lammps_data_are_those_of_its_masses(name: str, tmp_path: Path) -> None:
    (atoms,) = read_structures(lammps(tmp_path / name))
    assert atoms.get_chemical_formula() == "H2O"
    for order in (["H", "O"], ["O", "H"], ["C", "O", "H"]):
        (atoms,) = read_dpdata(tmp_path / name, "lammps/lmp", order)
        assert atoms.get_chemical_formula() == "H2O"


def test_lammps_data_without_masses_is_refused_or_read_in_the_order_of_types(
    tmp_path: Path,
) -> None:
    path = lammps(tmp_path / "conf.data", "")
    assert "LAMMPS data without Masses" in refusal(path)
    (atoms,) = read_dpdata(path, "lammps/lmp", ["O", "H"])
    assert atoms.get_chemical_formula() == "H2O"


DUMP = """ITEM: TIMESTEP
0
ITEM: NUMBER OF ATOMS
3
ITEM: BOX BOUNDS pp pp pp
0 6
0 6
0 6
ITEM: ATOMS id type {element}x y z
1 1 {O}1.0 1.0 1.0
2 2 {H}1.8 1.6 1.0
3 2 {H}0.2 1.6 1.0
"""


def test_elements_of_a_dump_are_its_own_or_told(tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "a.dump"
    path.write_text(DUMP.format(element="element ", O="O ", H="H "))
    (atoms,) = read_dpdata(path, "lammps/dump", ["H", "O"], told.append)
    assert (atoms.get_chemical_formula(), told) == ("H2O", [])
    path.write_text(DUMP.format(element="", O="", H=""))
    (atoms,) = read_dpdata(path, "lammps/dump", ["H", "O"], told.append)
    assert (atoms.get_chemical_formula(), told) == ("HO2", ["types 1, 2, … are read as H, O"])


@pytest.mark.parametrize("name", ["run[1].lmp", "a#b.lmp"])
def test_dpdata_is_shown_plain_names(name: str, tmp_path: Path) -> None:
    (atoms,) = read_dpdata(lammps(tmp_path / name), "lammps/lmp", ["O", "H"])
    assert atoms.get_chemical_formula() == "H2O"


def test_masses_of_no_element_of_the_type_map_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"conf.lmp: Masses: type 1 has the mass 15.999, of no el"):
        read_dpdata(lammps(tmp_path / "conf.lmp"), "lammps/lmp", ["C", "H"])


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
@pytest.mark.parametrize("name", ["POSCAR", "si.cif", "structure-7", "conf.lmp", "ch4.xyz"])
def test_compressed_structures(
    name: str, suffix: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    if name == "conf.lmp":
        lammps(plain)
    elif name == "ch4.xyz":
        ase.io.write(plain, molecule("CH4"), format="xyz")
    else:
        ase.io.write(plain, bulk("Si"), format="cif" if name == "si.cif" else "vasp")
    packed = tmp_path / f"{name}{suffix}"
    packed.write_bytes(pack(plain.read_bytes()))
    formula = {"conf.lmp": "H2O", "ch4.xyz": "CH4"}.get(name, "Si2")
    assert read_structures(packed)[0].get_chemical_formula() == formula
    if name == "conf.lmp":
        (atoms,) = read_dpdata(packed, "lammps/lmp", ["O", "H"])
        assert atoms.get_chemical_formula() == "H2O"


@pytest.mark.parametrize("name", ["gatheredPOSCARS", "found.dat"])
@pytest.mark.parametrize("fixed", [[], [0]], ids=["plain", "selective"])
def test_several_poscars_in_one_file_are_several_structures(
    name: str, fixed: list[int], tmp_path: Path
) -> None:
    atoms = bulk("Si", cubic=True)
    atoms.set_constraint(FixAtoms(fixed) if fixed else None)
    ase.io.write(tmp_path / "one", atoms, format="vasp", direct=True)
    text = (tmp_path / "one").read_text()
    assert ("Selective" in text) == bool(fixed)
    (tmp_path / name).write_text(text * 3)
    assert [len(atoms) for atoms in read_ase(tmp_path / name)] == [8] * 3
    (tmp_path / name).write_text(text * 2 + text.replace("8\n", "8 x\n"))
    assert "must be numbers of atoms" in refusal(tmp_path / name)


def test_left_handed_poscars_by_dpdatas_name_of_the_format(tmp_path: Path) -> None:
    cell = [[0, 6, 0], [6, 0, 0], [0, 0, 6]]
    ase.io.write(tmp_path / "one", Atoms("C", cell=cell, pbc=True), format="vasp")
    (atoms,) = read_dpdata(tmp_path / "one", "vasp/poscar", ["C"])
    assert atoms.get_chemical_formula() == "C"


def test_velocities_are_no_second_structure(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "CONTCAR", bulk("Si", cubic=True), format="vasp")
    with (tmp_path / "CONTCAR").open("a") as file:
        file.write("\n" + "  0.1E-02  0.2E-02  0.3E-02\n" * 8)
    assert len(read_ase(tmp_path / "CONTCAR")) == 1


@pytest.mark.parametrize("name", ["train.xyz", "train.dat"])
@pytest.mark.parametrize("largest", [10_000_000, 10])
def test_no_frame_after_a_wrong_line_is_lost_without_a_word(
    name: str, largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpstream.inputs.structure_faults.LARGEST", largest)
    atoms = Atoms("CH", [[0, 0, 0], [0, 0, 1.1]], cell=[6, 6, 6], pbc=True)
    path = tmp_path / name
    ase.io.write(path, [atoms] * 3, format="extxyz")
    assert len(read_ase(path)) == 3
    text = path.read_text()
    path.write_text(text + "\n\n")
    assert len(read_ase(path)) == 3
    path.write_text(f"{text}what is this\n{text}")
    assert f"{name}: {'line 13' if largest > 10 else 'cannot be read'}" in refusal(path)
    path.write_text(f"{text}\n{text}")
    assert f"{name}: line 13: " in refusal(path)


def test_a_file_that_is_cut_off_is_no_compressed_file(tmp_path: Path) -> None:
    path = tmp_path / "POSCAR.gz"
    path.write_bytes(gzip.compress(b"Si\n" * 1000)[:20])
    assert "POSCAR.gz: " in refusal(path)


def test_a_file_that_unpacks_to_too_much_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recognise, "SMALL", 1000)
    path = tmp_path / "a.xyz.gz"
    path.write_bytes(gzip.compress(b"0" * 100_000))
    assert "a.xyz.gz: unpacks to more than 12 times its size; unpack it yourself" in refusal(path)


def test_extended_xyz_under_the_name_of_another_format(tmp_path: Path) -> None:
    atoms = Atoms("CH", [[0, 0, 0], [0, 0, 1.1]], cell=[6, 6, 6], pbc=True)
    for name in ("POSCARs.dat", "OUTCAR", "vasprun.xml"):
        ase.io.write(tmp_path / name, [atoms, atoms], format="extxyz")
        assert len(read_ase(tmp_path / name)) == 2


@pytest.mark.parametrize("name", ["run[1].xyz", "a#b.xyz", "what*.xyz", "at@300.xyz"])
def test_any_name(name: str, tmp_path: Path) -> None:
    ase.io.write(tmp_path / "plain.xyz", molecule("CH4"))
    (tmp_path / "plain.xyz").rename(tmp_path / name)
    assert len(read_ase(tmp_path / name)) == 1
