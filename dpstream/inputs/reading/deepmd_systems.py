"""Reads DeePMD-kit's systems, in folders and HDF5 files, standard and mixed type, through dpdata.

dpdata expands patterns in the names that it is given and takes what follows `#` for a group, so it
is never shown a name of the user's: folders are read from within, groups as open objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpstream.inputs.reading.found import FoundFrame, results
from dpstream.inputs.reading.patterns import folders, inside, passed_over
from dpstream.shared.atoms.frames import PARAMETERS, WEIGHTS, Frame
from dpstream.shared.errors import SpecError

MIXED = "real_atom_types"
READ = {"coord", "box", "energy", "force", "virial", MIXED, *PARAMETERS, *WEIGHTS}
"""Arrays of a set that are read."""


class TypeNames(NamedTuple):
    """Elements of types 0, 1, …: of sets without type_map.raw, or, if `is_given`, of all."""

    names: Sequence[str]
    is_given: bool = False


def systems_in(folder: Path, tell: Callable[[str], None] = lambda text: None) -> list[Path]:
    """DeePMD-kit's systems in a folder, at any depth, behind links too; each folder once. Folders
    without permission to read are reported."""
    locked: list[Path] = []
    systems = [each for each in folders(folder, locked.append) if (each / "type.raw").exists()]
    for remark in passed_over(locked):
        tell(remark)
    return systems


def files_of(system: Path) -> Iterator[Path]:
    """The files of a system that are opened, and arrays beside them."""
    for pattern in ("*.raw", "set.*/*.npy"):
        yield from system.glob(pattern)


def is_mixed(system: Path) -> bool:
    return any((part / f"{MIXED}.npy").exists() for part in system.glob("set.*"))


def read_system(
    folder: Path, names: TypeNames, tell: Callable[[str], None]
) -> Iterator[FoundFrame]:
    """The frames of a system. Missing names of types are reported. Raises `SpecError` without
    energy or force."""
    import dpdata  # deferred: slow to import

    sets = sorted(folder.glob("set.*"))
    for part in sets or [folder]:
        _require(part, ".npy" if sets else ".raw")
    _register_further(dpdata)
    if not names.is_given:
        _check_types(np.loadtxt(folder / "type.raw", dtype=int), _type_map(folder), str(folder))
    _tell_unread({file.stem for part in sets for file in part.glob("*.npy")}, tell)
    with inside(folder):
        if is_mixed(folder):
            parts = dpdata.formats.deepmd.mixed.to_system_data(".", labels=True)
        else:
            form = "deepmd/npy" if sets else "deepmd/raw"
            parts = [dpdata.LabeledSystem(".", fmt=form).data]
    for data in parts:
        yield from _frames(_named(data, names, str(folder), tell))


def read_hdf5(
    path: Path, group_name: str, names: TypeNames, tell: Callable[[str], None]
) -> Iterator[FoundFrame]:
    """The frames of one group of an HDF5 file, or of all systems in it; as `read_system`."""
    import dpdata
    import h5py

    _register_further(dpdata)
    with h5py.File(path, "r") as file:
        groups = [group_name.strip("/")] if group_name else _groups(file)
        for name in groups:
            if name and name not in file:
                raise SpecError(f"{path}#/{name}: no such group; it has {', '.join(_groups(file))}")
            group = file[name] if name else file
            given = [str(each, "utf-8") for each in group.get("type_map.raw", ())]
            if not names.is_given:
                _check_types(group["type.raw"][:], given, f"{path}#/{name}")
            sets = [each for key, each in group.items() if key.startswith("set.")]
            _tell_unread({key.removesuffix(".npy") for each in sets for key in each}, tell)
            for data in _of_group(dpdata, group):
                yield from _frames(_named(data, names, f"{path}#/{name}", tell))


def _of_group(dpdata: Any, group: Any) -> list[dict[str, Any]]:
    sets = [each for key, each in group.items() if key.startswith("set.")]
    if not any(f"{MIXED}.npy" in each for each in sets):
        return [dpdata.LabeledSystem(group, fmt="deepmd/hdf5").data]
    found: list[dict[str, Any]] = dpdata.formats.deepmd.mixed.to_system_data(
        group,
        labels=True,
        load_func=lambda g, type_map, labels: dpdata.formats.deepmd.hdf5.to_system_data(
            g, "", type_map=type_map, labels=labels
        ),
    )
    return found


def _groups(file: Any) -> list[str]:
    """DeePMD systems inside an HDF5 file."""
    groups: list[str] = []
    file.visit(lambda name: groups.append(name) if name.endswith("type.raw") else None)
    return sorted(name.removesuffix("type.raw").strip("/") for name in groups)


def _require(folder: Path, suffix: str) -> None:
    for name in ("energy", "force"):
        if not (folder / f"{name}{suffix}").exists():
            raise SpecError(
                f"{folder}: {name}{suffix} is missing; a labelled set needs energy and force"
            )


def _register_further(dpdata: Any) -> None:
    """Register arrays with dpdata that it would ignore otherwise."""
    from dpdata.data_type import Axis, DataType

    shapes = {"fparam": (-1,), "aparam": (Axis.NATOMS, -1)} | dict.fromkeys(WEIGHTS, (Axis.NATOMS,))
    for name, shape in shapes.items():
        kind = DataType(name, np.ndarray, (Axis.NFRAMES, *shape), required=False, deepmd_name=name)
        dpdata.System.register_data_type(kind)
        dpdata.LabeledSystem.register_data_type(kind)


def _tell_unread(names: set[str], tell: Callable[[str], None]) -> None:
    unread = sorted(names - READ)
    if unread:
        tell(f"not read: {', '.join(unread)}")


def _type_map(folder: Path) -> list[str]:
    path = folder / "type_map.raw"
    return path.read_text().split() if path.exists() else []


def _check_types(types: Any, names: Sequence[str], where: str) -> None:
    """Raises `SpecError` for types that the set's own type map does not name."""
    if names and np.max(types, initial=-1) >= len(names):
        raise SpecError(
            f"{where}: has atoms of type {np.max(types)}, but type_map.raw names only "
            f"{', '.join(names)}"
        )


def _named(
    data: dict[str, Any], given: TypeNames, where: str, tell: Callable[[str], None]
) -> dict[str, Any]:
    """The data with elements for types that dpdata has no names for."""
    kinds, needed = [str(name) for name in data["atom_names"]], int(max(data["atom_types"])) + 1
    names = given.names
    if not given.is_given and not any(name.startswith("Type_") for name in kinds):
        _check_types(data["atom_types"], kinds, where)
        return data
    if needed > len(names):
        raise SpecError(
            f"{where}: has atoms of type {needed - 1}, but type_map has only {', '.join(names)}; "
            "give the elements of the set's types: {file: …, type_map: […]}"
        )
    if not given.is_given:
        tell(f"no type_map.raw, so types 0, 1, … are read as {', '.join(names)}")
    return {**data, "atom_names": list(names)}


def _frames(data: dict[str, Any]) -> Iterator[FoundFrame]:
    """Frames of a dpdata system: coords and forces `(n, a, 3)`, cells and virials `(n, 3, 3)`,
    virial = −dE/dε in eV."""
    species = tuple(str(data["atom_names"][t]) for t in data["atom_types"])
    periodic, virials = not data.get("nopbc", False), data.get("virials")
    further = [name for name in (*PARAMETERS, *WEIGHTS) if name in data]
    for i, positions in enumerate(data["coords"]):
        cell = np.array(data["cells"][i], dtype=np.float64) if periodic else None
        own = {name: np.array(data[name][i], dtype=np.float64) for name in further}
        parameters = {name: own.pop(name) for name in PARAMETERS if name in own}
        frame = Frame(species, np.array(positions, dtype=np.float64), cell, **parameters)
        virial = None if virials is None else virials[i]
        yield FoundFrame(frame, results(data["energies"][i], data["forces"][i], virial), own)
