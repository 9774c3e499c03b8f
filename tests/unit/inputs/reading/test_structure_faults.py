"""Errors in files of structures name the line and the word."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from dpstream.inputs.read_structures import read_structures
from dpstream.shared.errors import SpecError

XYZ = "2\ncopper\nCu 0 0 0\nCu 0 0 2.5\n"
POSCAR = "Cu\n1.0\n3.6 0 0\n0 3.6 0\n0 0 3.6\nCu\n1\nDirect\n0 0 0\n"


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("a.xyz", XYZ.replace("Cu 0 0 0", "Qq 0 0 0"), "line 3: 'Qq' is not an element"),
        ("a.xyz", XYZ.replace("2.5", "2,5"), "line 4: '2,5' is not a number; expected x y z"),
        ("a.xyz", XYZ.replace("0 0 2.5", "0 0"), "line 4: 2 numbers; expected 3: x y z"),
        ("a.xyz", XYZ + XYZ.replace("2\n", "two\n"), "line 5: 'two' is not a number"),
        ("a.xyz", XYZ.replace("2\n", "3\n"), "line 1: 3 atoms, but the file ends"),
        ("POSCAR", POSCAR.replace("1.0", "one"), "line 2: 'one' is not a number; expected the sc"),
        ("POSCAR", POSCAR.replace("0 3.6 0", "0 3.6"), "line 4: 2 numbers; expected 3: a vector"),
        ("POSCAR", POSCAR.replace("Cu\n1\n", "CU\n1\n"), "line 6: 'CU' is not an element; did yo"),
        ("POSCAR", POSCAR.replace("\n1\n", "\nx\n"), "line 7: 'x' is not a number; expected a num"),
        ("POSCAR", POSCAR.replace("\n1\n", "\n2\n"), "line 10: missing; expected coordinates of 2"),
        ("POSCAR_1", POSCAR.replace("0 0 0\n", "0 0 O\n"), "line 9: 'O' is not a number"),
    ],
)
def test_the_first_wrong_line_is_named(tmp_path: Path, name: str, text: str, fault: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(SpecError) as raised:
        read_structures(path)
    assert str(raised.value).startswith(f"{path}: {fault}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        XYZ + XYZ + "\n",
        XYZ.replace("Cu", "CU"),
        "2\nProperties=pos:R:3:species:S:1\n0 0 0 Cu\n0 0 2.5 Cu\n",
        "2\nProperties=id:I:1:species:S:1:pos:R:3\n1 Cu 0 0 0\n2 Cu 0 0 2.5\n",
        XYZ + "VEC1 9 0 0\nVEC2 0 9 0\nVEC3 0 0 9\n",
    ],
)
def test_what_ase_reads_to_the_end_has_no_fault(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.xyz").write_text(text)
    assert all(set(atoms.symbols) == {"Cu"} for atoms in read_structures(tmp_path / "a.xyz"))


def test_compressed_files_are_left_to_ase(tmp_path: Path) -> None:
    (tmp_path / "POSCAR.gz").write_bytes(gzip.compress(POSCAR.encode()))
    (atoms,) = read_structures(tmp_path / "POSCAR.gz")
    assert str(atoms.symbols) == "Cu"


def test_another_format_keeps_the_readers_words(tmp_path: Path) -> None:
    path = tmp_path / "a.cif"
    path.write_text("nonsense\n")
    with pytest.raises(SpecError, match="cannot be read as a structure"):
        read_structures(path)
