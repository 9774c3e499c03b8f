"""A dataset in the forms that other programs train on.

deepmd-mixed/                   DeePMD-kit's mixed type: one system per number of atoms
extxyz/{train,valid}.extxyz     ASE's names energy, forces, stress (NequIP, Allegro, SchNetPack…)
mace/{train,valid}.xyz          REF_energy, REF_forces, REF_stress; weights of atoms, which MACE
                                ignores
dataset.db                      ASE's database, with the key and the split of each frame, and its
                                parameters and weights as data
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from dpstream.shared.atoms.dataset import (
    Labelled,
    labelled_atoms,
    write_deepmd_mixed,
    write_extxyz,
)
from dpstream.shared.atoms.frames import frame_key

VALIDATION = 0.1
"""Share of the frames in the validation split."""
Split = Literal["train", "valid"]
DATABASE = "dataset.db"


def split_of(key: str) -> Split:
    """The split of a frame, by its key: the same in every export, however large the dataset."""
    return "valid" if int(key[:8], 16) < VALIDATION * 2**32 else "train"


def write_formats(labelled: Sequence[Labelled], folder: Path, type_map: Sequence[str]) -> str:
    """Write all forms into `folder`; the line says what is there."""
    write_deepmd_mixed(labelled, folder / "deepmd-mixed", type_map)
    splits: dict[Split, list[Labelled]] = {"train": [], "valid": []}
    for item in labelled:
        splits[split_of(frame_key(item.frame))].append(item)
    for name, items in splits.items():
        _write_split(items, name, folder)
    _write_database(labelled, folder / DATABASE)
    counts = f"{len(splits['train'])} to train, {len(splits['valid'])} to validate"
    return f"{folder}: also as mixed type, for MACE, as extxyz ({counts}) and as ASE database"


def _write_split(items: Sequence[Labelled], name: Split, folder: Path) -> None:
    from ase.io import write  # deferred: ASE is slow to import

    for part in ("extxyz", "mace"):
        (folder / part).mkdir(exist_ok=True)
    if items:
        write_extxyz(items, folder / "extxyz" / f"{name}.extxyz")
        write(folder / "mace" / f"{name}.xyz", list(map(_for_mace, items)), format="extxyz")


def _for_mace(item: Labelled) -> Any:
    """The frame with names that ASE does not take for results of a calculator of its own."""
    atoms = labelled_atoms(item)
    results, atoms.calc = atoms.calc.results, None
    atoms.info["REF_energy"] = results["energy"]
    atoms.set_array("REF_forces", results["forces"])
    if "stress" in results:
        atoms.info["REF_stress"] = results["stress"]
    return atoms


def _write_database(labelled: Sequence[Labelled], path: Path) -> None:
    """A database stores neither info nor further arrays of `ase.Atoms`, but data beside them."""
    from ase.db import connect

    with connect(path) as database:
        for item in labelled:
            key = frame_key(item.frame)
            given = {**item.frame.parameters, **item.label.weights}
            atoms, names = labelled_atoms(item), {"frame_key": f"k{key}", "split": split_of(key)}
            database.write(atoms, data=given, **names)
