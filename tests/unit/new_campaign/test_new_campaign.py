"""`dpstream new` with structures: a short spec that is valid as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.io import write

from dpstream.inputs.gather import gather
from dpstream.new_campaign.elements import CRYSTALS
from dpstream.new_campaign.folder import create
from dpstream.new_campaign.labels import SETTINGS
from dpstream.new_campaign.short import given, short_spec, symbols_in
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import load_spec

STRUCTURES: dict[str, Any] = {
    "methane.xyz": molecule("CH4"),
    "salt.cif": bulk("NaCl", "rocksalt", 5.64, cubic=True),
    "slab.vasp": fcc111("Al", (2, 2, 4), vacuum=8.0),
    "box.extxyz": Atoms("OH2", molecule("H2O").positions, cell=[3.1] * 3, pbc=True).repeat(3),
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with structures, and potentials of this machine."""
    (tmp_path / "Al").write_text("potential")
    (tmp_path / "Ti.upf").write_text("potential")
    folders = f"vasp={tmp_path}; abacus={tmp_path}"
    monkeypatch.setenv("DPSTREAM_LABELER_POTENTIALS", folders)
    for name, atoms in STRUCTURES.items():
        write(tmp_path / name, atoms)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "code", "elements", "kind"),
    [
        ("methane.xyz", "tblite", [], None),
        ("methane.xyz", "pyscf", ["H", "C", "O"], "molecule"),
        ("methane.xyz", "gaussian", [], None),
        ("salt.cif", "tblite", [], None),
        ("salt.cif", "cp2k", ["Cl", "Na"], "bulk"),
        ("slab.vasp", "vasp", [], "surface"),
        ("box.extxyz", "cp2k", [], "liquid"),
        (None, "ase", ["Cu"], None),
        (None, "tblite", ["Si"], None),
        (None, "abacus", ["Ti"], None),
    ],
)
def test_the_spec_is_short_valid_and_plausible(
    files: Path, file: str | None, code: str, elements: list[str], kind: Any
) -> None:
    structures = given([files / file] if file else [], elements)
    text = short_spec("mine", structures, code, elements, kind)
    assert len(text.splitlines()) <= 60
    path = create("mine", files, text, structures.files)
    spec = load_spec(path)
    data = gather(spec, path.parent)
    assert len(data.initial) == 20
    assert data.warnings + data.absurd == []
    assert spec.labels.code == code
    if elements:
        assert spec.type_map == tuple(elements)


def test_the_stages_of_an_element_follow_its_melting_point(files: Path) -> None:
    text = short_spec("mine", given([], ["Cu"]), "tblite", ["Cu"], None)
    spec = load_spec(create("mine", files, text, given([], ["Cu"]).files))
    assert spec.material is not None
    assert (spec.material.Tm, spec.material.B) == CRYSTALS["Cu"]


def test_crystals_are_repeated_and_slabs_in_the_plane_only(files: Path) -> None:
    gamma = short_spec("mine", given([], ["Al"]), "cp2k", [], None)
    mesh = short_spec("mine", given([], ["Al"]), "qe", [], None)
    slab = short_spec("mine", given([files / "slab.vasp"], []), "qe", [], "surface")
    assert "supercell: [2, 2, 2]      # 32 atoms" in gamma
    assert "supercell: [2, 2, 2]      # 32 atoms" in mesh
    assert "supercell: [2, 2, 1]" in slab


@pytest.mark.parametrize(
    ("file", "code", "elements", "kind", "error"),
    [
        ("methane.xyz", "qe", [], None, "--code qe: computes cells only; put the molecule into"),
        ("salt.cif", "pyscf", [], None, "--code pyscf: computes molecules only"),
        ("salt.cif", "vaps", [], None, "--code vaps; did you mean 'vasp'?; allowed: tblite"),
        ("salt.cif", "siesta", [], None, "--code siesta; write docs/labeling/siesta.md's"),
        ("salt.cif", "tblite", ["Na"], None, "--elements: lacks Cl, which the structures contain"),
        ("salt.cif", "tblite", [], "molecule", "--kind molecule: the structures have cells"),
        ("methane.xyz", "tblite", [], "bulk", "--kind bulk: the structures have no cell"),
        ("none.xyz", "tblite", [], None, "none.xyz: no such file"),
        (".", "tblite", [], None, ": is a folder; give files of structures"),
        (None, "tblite", ["O"], None, "--elements O: no crystal of it is known"),
        (None, "tblite", ["Na", "Cl"], None, "--structure: give files, or one element"),
    ],
)
def test_mistakes_are_one_line(
    files: Path, file: str | None, code: str, elements: list[str], kind: Any, error: str
) -> None:
    with pytest.raises(SpecError) as raised:
        short_spec("mine", given([files / file] if file else [], elements), code, elements, kind)
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)


def test_symbols_are_chemical() -> None:
    assert symbols_in("Na, Cl") == ["Na", "Cl"]
    with pytest.raises(SpecError, match=r"--elements cu: no chemical symbol; did you mean 'Cu'"):
        symbols_in("cu")


def test_every_code_has_settings_that_validate(files: Path) -> None:
    for code in SETTINGS:
        molecular = code in ("pyscf", "gaussian")
        structures = given([files / ("methane.xyz" if molecular else "salt.cif")], [])
        path = create(code, files, short_spec(code, structures, code, [], None), structures.files)
        assert load_spec(path).labels.settings == SETTINGS[code](
            ["C", "H"] if molecular else ["Na", "Cl"]
        )
