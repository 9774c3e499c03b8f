"""Reads existing labelled sets into canonical frames and labels.

DeePMD-kit folders and HDF5 files and VASP's OUTCAR go through dpdata, which converts to eV, Å and
DeePMD's virial; anything else through ASE, whose stress has the opposite sign per volume.
"""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np

from dpstream.inputs.structure_faults import XYZ, WrongLine, fault_in
from dpstream.shared.atoms.frames import (
    PARAMETERS,
    WEIGHTS,
    Floats,
    Frame,
    FrameLabel,
    canonical,
    from_ase,
)
from dpstream.shared.atoms.records import Record
from dpstream.shared.errors import ParserFailed, SpecError, errors_at
from dpstream.shared.runtime.child_process import Limits
from dpstream.shared.runtime.parser import MIB, Parser, Unreadable

HDF5 = (".hdf5", ".h5")


@dataclass(frozen=True, eq=False)
class Imported:
    """A canonical frame, its label in the frame's order and orientation, and its source file.
    Frame parameters and atomic weights come from files with DeePMD-kit's names or, in extended
    xyz, from info keys and columns with these names."""

    frame: Frame
    label: FrameLabel
    source: str


def read_labelled(
    patterns: Sequence[str], folder: Path, type_map: Sequence[str], key: str
) -> list[Imported]:
    """Read all labelled frames that `patterns` match, relative to `folder`, in an expendable
    process: the files may come from anywhere. Raises `SpecError` naming spec key `key` and the file
    that cannot be read."""
    items = [item for p in patterns for item in _read_pattern(p, folder, type_map, key)]
    return [_checked(item, type_map, key) for item in items]


def _read_pattern(
    pattern: str, folder: Path, type_map: Sequence[str], key: str
) -> Iterator[Imported]:
    name, _, inside = pattern.partition("#")
    paths = find_files(name, folder, key)
    arguments = {
        "paths": {str(path): str(_absolute(path)) for path in paths},
        "inside": inside,
        "type_map": list(type_map),
        "key": key,
    }
    try:
        parser, limits = _parser(_reads(paths, folder)), _limits(sum(map(_size, paths)))
        records = parser.records("labelled", arguments, limits)
        for record in records[:1]:
            for text in record.facts.get("warnings", ()):
                warn(str(text), UserWarning, stacklevel=2)
        yield from map(_imported, records[1:])
    except (Unreadable, ParserFailed) as error:
        if isinstance(error, Unreadable) and error.kind == "SpecError":
            raise SpecError(error.reason) from error
        raise SpecError(f"{key}: {pattern}: cannot be read as a labelled set: {error}") from error


def _absolute(path: Path) -> Path:
    """The parser need not reach the working directory. A link keeps its name, which may say what it
    is."""
    return path.parent.resolve() / path.name


def _reads(paths: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    """What a parser of `paths` may read: `folder` if all are inside, else the innermost folder that
    they share; and the targets of links that lead elsewhere."""
    absolute, around = [_absolute(path) for path in paths], folder.resolve()
    if not all(path.is_relative_to(around) for path in absolute):
        around = Path(os.path.commonpath([path.parent for path in absolute]))
    entries = [*absolute, *(entry for path in absolute for entry in path.rglob("*"))]
    targets = {Path(os.path.realpath(entry)) for entry in entries if entry.is_symlink()}
    return around, *sorted(path for path in targets if not path.is_relative_to(around))


@cache
def _parser(reads: tuple[Path, ...]) -> Parser:
    """A parser that may read these files and folders."""
    folder = tempfile.TemporaryDirectory(prefix="dpstream-")
    parser = Parser("dpstream.inputs.parsing", Path(folder.name), reads)
    atexit.register(folder.cleanup)
    atexit.register(parser.close)
    return parser


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _limits(size: int) -> Limits:
    """Limits for files of `size` bytes, some of which are compressed."""
    seconds = 60.0 + 5e-6 * size
    return Limits(seconds, memory=1024 * MIB + 20 * size, file=256 * MIB + 16 * size)


def _imported(record: Record) -> Imported:
    """The inverse of `record_of`. Raises Unreadable for anything else."""
    try:
        frame, arrays = record.frame(), record.arrays
        atoms = len(frame.species)
        shapes = {"energy": (), "forces": (atoms, 3), "virial": (3, 3)}
        shapes |= dict.fromkeys(WEIGHTS, (atoms,))
        given = {name: arrays[name] for name in shapes if name in arrays}
        if any(values.shape != shapes[name] for name, values in given.items()):
            raise ValueError("arrays of a label have other shapes")
        label = FrameLabel(float(given.pop("energy")), **given)
        return Imported(frame, label, str(record.facts["source"]))
    except (ValueError, KeyError, TypeError) as error:
        raise Unreadable(f"the parser returned no labelled frame: {error}") from error


def record_of(item: Imported) -> Record:
    record, label = Record.of_frame(item.frame, source=item.source), item.label
    own = {"energy": np.array(label.energy), "forces": label.forces, **label.weights}
    if label.virial is not None:
        own["virial"] = label.virial
    return Record(record.facts, {**record.arrays, **own})


def read_here(
    paths: Mapping[str, Path], inside: str, type_map: Sequence[str], key: str
) -> Iterator[Imported]:
    """The labelled frames of `paths`, by the names that messages use, read in this process. Raises
    as `read_labelled`."""
    for name, path in paths.items():
        try:
            items = list(_read(path, inside, type_map))
        except SpecError as error:
            raise SpecError(str(error).replace(str(path), name)) from error
        except Exception as error:  # dpdata, h5py and ASE raise many kinds
            reason = one_line(error).replace(str(path), name)
            raise SpecError(f"{key}: {name}: cannot be read as a labelled set: {reason}") from error
        if not items:
            raise SpecError(f"{key}: {name}: contains no converged frame with energy and forces")
        for item in items:
            yield replace(item, source=item.source.replace(str(path), name))


def find_files(pattern: str, folder: Path, key: str) -> list[Path]:
    """Existing paths that match `pattern`, sorted. Raises `SpecError` if there are none."""
    base = Path(pattern).expanduser()
    if base.is_absolute():
        folder, pattern = Path(base.anchor), str(base.relative_to(base.anchor))
    if not pattern:
        raise SpecError(f"{key}: '' is not a file name")
    exact = folder / pattern
    try:
        matches = [exact] if exact.exists() else sorted(folder.glob(pattern))
    except (ValueError, OSError) as error:
        raise SpecError(f"{key}: {pattern!r}: {one_line(error)}") from error
    if not matches:
        raise SpecError(f"{key}: no file matches {pattern!r} in {folder.absolute()}")
    return matches


def one_line(error: Exception) -> str:
    """An exception as one line; its class is added if the message is a single word."""
    text = " ".join(str(error).split())
    return text if " " in text else f"{type(error).__name__}: {text}".rstrip(": ")


def _read(path: Path, inside: str, type_map: Sequence[str]) -> Iterator[Imported]:
    if path.suffix in HDF5:
        for group in [inside.strip("/")] if inside else _groups(path):
            source = f"{path}#/{group}"
            yield from _through_dpdata(source, "deepmd/hdf5", type_map, source)
    elif path.is_dir():
        for system in sorted(p.parent for p in path.rglob("type.raw")):
            yield from _deepmd_folder(system, type_map)
    elif "OUTCAR" in path.name:
        yield from _through_dpdata(str(path), "vasp/outcar", type_map, str(path))
    else:
        yield from _through_ase(path)


def _groups(path: Path) -> list[str]:
    """DeePMD systems inside an HDF5 file."""
    import h5py

    groups: list[str] = []
    with h5py.File(path, "r") as file:
        file.visit(lambda name: groups.append(name) if name.endswith("type.raw") else None)
    return sorted(name.removesuffix("type.raw").strip("/") for name in groups)


def _deepmd_folder(folder: Path, type_map: Sequence[str]) -> Iterator[Imported]:
    sets = sorted(folder.glob("set.*"))
    form = "deepmd/npy" if sets else "deepmd/raw"
    for part in sets or [folder]:
        _require(part, ".npy" if sets else ".raw")
    if any((part / "real_atom_types.npy").exists() for part in sets):
        form = "deepmd/npy/mixed"
    yield from _through_dpdata(str(folder), form, type_map, str(folder))


def _require(folder: Path, suffix: str) -> None:
    for name in ("energy", "force"):
        if not (folder / f"{name}{suffix}").exists():
            raise SpecError(
                f"{folder}: {name}{suffix} is missing; a labelled set needs energy and force"
            )


def _through_dpdata(
    name: str, form: str, type_map: Sequence[str], source: str
) -> Iterator[Imported]:
    import dpdata  # deferred: slow to import

    _register_further(dpdata)
    if form == "deepmd/npy/mixed":
        systems = list(dpdata.MultiSystems().load_systems_from_file(name, fmt=form))
    else:
        systems = [_load(dpdata, name, form, type_map)]
    for system in systems:
        yield from _frames(system.data, source)


def _register_further(dpdata: Any) -> None:
    """Register arrays with dpdata that it would ignore otherwise."""
    from dpdata.data_type import Axis, DataType

    shapes = {"fparam": (-1,), "aparam": (Axis.NATOMS, -1)} | dict.fromkeys(WEIGHTS, (Axis.NATOMS,))
    for name, shape in shapes.items():
        kind = DataType(name, np.ndarray, (Axis.NFRAMES, *shape), required=False, deepmd_name=name)
        dpdata.System.register_data_type(kind)
        dpdata.LabeledSystem.register_data_type(kind)


def _load(dpdata: Any, name: str, form: str, type_map: Sequence[str]) -> Any:
    """One system. Without a type_map.raw, DeePMD's types follow the model's order."""
    system = dpdata.LabeledSystem(name, fmt=form)
    if any(str(n).startswith("Type_") for n in system.data["atom_names"]):
        return dpdata.LabeledSystem(name, fmt=form, type_map=list(type_map))
    return system


def _frames(data: dict[str, Any], source: str) -> Iterator[Imported]:
    """Frames of a dpdata system: coords and forces `(n, a, 3)`, cells and virials `(n, 3, 3)`,
    virial = −dE/dε in eV."""
    species = tuple(str(data["atom_names"][t]) for t in data["atom_types"])
    periodic, virials = not data.get("nopbc", False), data.get("virials")
    further = [name for name in (*PARAMETERS, *WEIGHTS) if name in data]
    for i, positions in enumerate(data["coords"]):
        cell = np.array(data["cells"][i], dtype=np.float64) if periodic else None
        virial = None if virials is None else np.array(virials[i], dtype=np.float64)
        own = {name: np.array(data[name][i], dtype=np.float64) for name in further}
        parameters = {name: own.pop(name) for name in PARAMETERS if name in own}
        frame = Frame(species, np.array(positions, dtype=np.float64), cell, **parameters)
        forces = np.array(data["forces"][i], dtype=np.float64)
        label = FrameLabel(float(data["energies"][i]), forces, virial, **own)
        yield _canonical(frame, label, source)


def _through_ase(path: Path) -> Iterator[Imported]:
    for number, atoms in enumerate(read_ase(path)):
        results = {} if atoms.calc is None else atoms.calc.results
        # Forces are derivatives of the free energy if there is smearing.
        energy = results.get("free_energy", results.get("energy"))
        if energy is None or results.get("forces") is None:
            absent = "energy" if energy is None else "forces"
            raise SpecError(
                f"{path}: frame {number}: {absent} missing; a labelled set needs energy and forces"
            )
        with errors_at(f"{path}: frame {number}", ValueError):
            frame = from_ase(atoms)
        forces = np.array(results["forces"], dtype=np.float64)
        given = [name for name in WEIGHTS if name in atoms.arrays]
        own = {name: np.array(atoms.arrays[name], dtype=np.float64) for name in given}
        label = FrameLabel(float(energy), forces, _ase_virial(atoms, results), **own)
        yield _canonical(frame, label, str(path))


def _ase_virial(atoms: Any, results: dict[str, Any]) -> Floats | None:
    """−dE/dε in eV: the info key `virial` (as in QUIP), or −stress · V from ASE's stress."""
    given = atoms.info.get("virial")
    if given is not None:
        return np.array(given, dtype=np.float64).reshape(3, 3)
    stress = results.get("stress")
    if stress is None:
        return None
    from ase.stress import voigt_6_to_full_3x3_stress

    full = stress if np.shape(stress) == (3, 3) else voigt_6_to_full_3x3_stress(stress)
    return np.array(-full * atoms.get_volume(), dtype=np.float64)


def read_ase(path: Path) -> list[Any]:
    """Every frame of a file as `ase.Atoms`. Raises `SpecError` if ASE cannot read it: `WrongLine`
    where the line is known."""
    import ase.io

    if not path.is_file():
        raise SpecError(f"{path}: is a folder, not a file of structures")
    if path.stat().st_size == 0:
        raise SpecError(f"{path}: is empty")
    try:
        frames = list(ase.io.read(path, index=":"))
    except Exception as error:  # ASE's readers raise many kinds
        if (fault := fault_in(path)) is not None:
            raise WrongLine(f"{path}: {fault}") from error
        raise SpecError(f"{path}: cannot be read as a structure: {one_line(error)}") from error
    fault = fault_in(path) if path.suffix in XYZ else None
    if fault is not None:  # ASE reads xyz files up to the first line that begins no frame
        raise WrongLine(f"{path}: {fault}")
    if not frames or not all(len(atoms) for atoms in frames):
        raise SpecError(f"{path}: contains no atoms")
    return frames


def read_dpdata(path: Path, form: str, type_map: Sequence[str]) -> list[Any]:
    """Every frame of a file in dpdata's format `form` as `ase.Atoms`. Types in files without
    chemical symbols follow the model's order. Raises `SpecError`."""
    import dpdata  # deferred: slow to import

    try:
        system = dpdata.System(str(path), fmt=form, type_map=list(type_map))
        return list(system.to("ase/structure"))
    except Exception as error:  # dpdata's readers raise many kinds
        raise SpecError(f"{path}: cannot be read as {form}: {one_line(error)}") from error


def _canonical(frame: Frame, label: FrameLabel, source: str) -> Imported:
    """The frame in canonical form, with its label rotated and reordered accordingly."""
    with errors_at(source, ValueError):
        form = canonical(frame)
    turned = label.forces[form.order] @ form.rotation
    virial = None  # meaningless without a cell
    if label.virial is not None and form.frame.cell is not None:
        virial = form.rotation.T @ label.virial @ form.rotation
    weights = {name: values[form.order] for name, values in label.weights.items()}
    return Imported(form.frame, FrameLabel(label.energy, turned, virial, **weights), source)


def _checked(item: Imported, type_map: Sequence[str], key: str) -> Imported:
    unknown = sorted(set(item.frame.species) - set(type_map))
    if unknown:
        known = ", ".join(type_map)
        raise SpecError(f"{key}: {item.source}: element {unknown[0]} is not in type_map ({known})")
    arrays = [np.array(item.label.energy), item.frame.positions, item.label.forces]
    arrays += item.label.weights.values()
    if item.label.virial is not None:
        arrays.append(item.label.virial)
    if not all(np.isfinite(array).all() for array in arrays):
        raise SpecError(f"{key}: {item.source}: contains numbers that are not finite")
    return item
