"""Dataset versions: loads the labelled frames of a manifest and writes them for DeePMD-kit and ASE.

A manifest refers to its parent version, so that versions share the objects of their labels. Decoded
objects are cached by digest within a process.

Units: eV, Å. Virials are −dE/dε in eV, DeePMD's sign.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dpstream.shared.atoms.frames import (
    WEIGHTS,
    Batch,
    Floats,
    Frame,
    FrameLabel,
    decode_labelled,
    to_ase,
)
from dpstream.shared.values import Dataset, Ref

Fetch = Callable[[Ref], bytes]

CACHE_BYTES = 256 * 1024 * 1024
NO_BOX = 100.0
"""Å; edge of the box that DeePMD-kit requires even where it ignores it (`nopbc`)."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """A labelled frame with its provenance. `origin` is the trajectory from which an audit frame
    was drawn, `weight` its inverse inclusion probability."""

    frame: Frame
    label: FrameLabel
    provenance: dict[str, Any]
    origin: str = ""
    weight: float = 1.0


@dataclass
class _Decoded:
    """Cache of decoded objects by digest; evicts the least recently used. Shared by the threads of
    a process."""

    limit: int
    _items: OrderedDict[str, tuple[int, Any]] = field(default_factory=OrderedDict)
    _size: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, ref: Ref, fetch: Fetch, decode: Callable[[bytes], Any]) -> Any:
        """The decoded object behind `ref`; fetched only if it is not cached."""
        with self._lock:
            if ref.sha256 in self._items:
                self._items.move_to_end(ref.sha256)
                return self._items[ref.sha256][1]
        value = decode(fetch(ref))
        with self._lock:
            self._keep(ref, value)
        return value

    def _keep(self, ref: Ref, value: Any) -> None:
        if ref.sha256 in self._items or ref.size > self.limit:
            return
        self._items[ref.sha256] = (ref.size, value)
        self._size += ref.size
        while self._size > self.limit:
            _, (size, _) = self._items.popitem(last=False)
            self._size -= size


_decoded = _Decoded(CACHE_BYTES)


def load_dataset(fetch: Fetch, manifest: Ref) -> list[Labelled]:
    """All labelled frames of a dataset version, the oldest ancestor's first.

    `fetch` returns the bytes behind a reference and checks their digest; cached objects are not
    fetched again. Raises ValueError for a pack without labels and for a manifest whose origins or
    weights do not match its labels, and all exceptions of `fetch`.
    """
    versions: list[Dataset] = []
    ref: Ref | None = manifest
    while ref is not None:
        versions.append(_decoded.get(ref, fetch, Dataset.model_validate_json))
        ref = versions[-1].parent
    return [item for version in reversed(versions) for item in _items_of(fetch, version)]


def load_packs(fetch: Fetch, packs: Iterable[Ref]) -> list[Labelled]:
    """The labelled frames of batches; raises as `load_dataset`."""
    return [item for pack in packs for item in _decoded.get(pack, fetch, _decode_pack)]


def _items_of(fetch: Fetch, version: Dataset) -> Iterator[Labelled]:
    yield from load_packs(fetch, version.packs)
    origins = version.origins or ("",) * len(version.labels)
    weights = version.weights or (1.0,) * len(version.labels)
    if not len(origins) == len(weights) == len(version.labels):
        raise ValueError(
            f"dataset version {version.version} has {len(version.labels)} labels, "
            f"{len(version.origins)} origins and {len(version.weights)} weights"
        )
    for ref, origin, weight in zip(version.labels, origins, weights, strict=True):
        item: Labelled = _decoded.get(ref, fetch, _decode_label)
        yield replace(item, origin=origin, weight=weight)


def labelled_batch(labelled: Sequence[tuple[Frame, FrameLabel]]) -> Batch:
    """A labelled batch with arrays energy `(n,)` eV, forces `(n, a, 3)` eV/Å and, if present,
    virial `(n, 3, 3)` eV and atomic weights `(n, a)`. Raises ValueError if only some labels have a
    virial."""
    arrays = {
        "energy": np.array([label.energy for _, label in labelled]),
        "forces": np.stack([label.forces for _, label in labelled]),
    }
    virials = [label.virial for _, label in labelled if label.virial is not None]
    if len(virials) not in (0, len(labelled)):
        raise ValueError(f"{len(virials)} of {len(labelled)} labels have a virial")
    if virials:
        arrays["virial"] = np.stack(virials)
    for name in labelled[0][1].weights:
        arrays[name] = np.stack([label.weights[name] for _, label in labelled])
    return Batch.of([frame for frame, _ in labelled], **arrays)


def _decode_label(data: bytes) -> Labelled:
    return Labelled(*decode_labelled(data))


def _decode_pack(data: bytes) -> tuple[Labelled, ...]:
    """The frames of a labelled batch: arrays energy `(n_frames,)`, forces `(n_frames, n_atoms, 3)`
    and, if known, virial `(n_frames, 3, 3)` and the weights of atoms `(n_frames, n_atoms)`."""
    batch = Batch.loads(data)
    missing = [name for name in ("energy", "forces") if name not in batch.arrays]
    if missing:
        raise ValueError(f"a pack of {batch.species} has no {' and no '.join(missing)}")
    energies, forces = batch.arrays["energy"], batch.arrays["forces"]
    further = [name for name in ("virial", *WEIGHTS) if name in batch.arrays]
    return tuple(
        Labelled(
            frame,
            FrameLabel(
                float(energies[i]), forces[i], **{name: batch.arrays[name][i] for name in further}
            ),
            {"pack": i},
        )
        for i, frame in enumerate(batch)
    )


# ------------------------------------------------------------------------------- DeePMD-kit systems


def write_deepmd(labelled: Iterable[Labelled], folder: Path, type_map: Sequence[str]) -> list[Path]:
    """Standard DeePMD-kit systems under `folder`, one per composition and periodicity; the
    returned folders are named by formula, with `-nopbc` for molecules, `-novirial` for periodic
    frames labelled without virial, and the names of the parameters and weights that they have.
    Frames keep their order, atoms are sorted by type.

    Files: type.raw, type_map.raw, set.000/{coord,energy,force,box[,virial]}.npy in Å, eV, eV/Å,
    and {fparam,aparam,atom_pref,atom_ener_coeff}.npy where given
    (https://docs.deepmodeling.com/projects/deepmd, "Formats of a system"). Raises ValueError for
    a species that is not in `type_map`.
    """
    groups: dict[str, list[Labelled]] = {}
    for item in labelled:
        groups.setdefault(_system_name(item), []).append(item)
    systems = []
    for name in sorted(groups):
        _write_system(groups[name], folder / name, list(type_map))
        systems.append(folder / name)
    return systems


def write_deepmd_mixed(
    labelled: Iterable[Labelled], folder: Path, type_map: Sequence[str]
) -> list[Path]:
    """Systems of DeePMD-kit's mixed type under `folder`, one per number of atoms and whatever else
    the frames of a system share; as `write_deepmd`. The types of the atoms of each frame are in
    set.000/real_atom_types.npy."""
    groups: dict[str, list[Labelled]] = {}
    for item in labelled:
        _, *rest = _system_name(item).split("-")
        groups.setdefault("-".join([str(len(item.frame.species)), *rest]), []).append(item)
    for name, items in groups.items():
        _write_system(items, folder / name, list(type_map))
        types = [sorted(map(list(type_map).index, item.frame.species)) for item in items]
        np.save(folder / name / "set.000" / "real_atom_types.npy", np.array(types))
        (folder / name / "type.raw").write_text("0\n" * len(types[0]))
    return [folder / name for name in sorted(groups)]


def _system_name(item: Labelled) -> str:
    words = [item.frame.formula, *(["nopbc"] if item.frame.cell is None else [])]
    if item.frame.cell is not None and item.label.virial is None:
        words.append("novirial")
    sizes = [f"{name}{values.shape[-1]}" for name, values in item.frame.parameters.items()]
    return "-".join([*words, *sizes, *item.label.weights])


def _write_system(items: Sequence[Labelled], folder: Path, type_map: list[str]) -> None:
    unknown = sorted({symbol for item in items for symbol in item.frame.species} - set(type_map))
    if unknown:
        raise ValueError(f"{folder.name}: {', '.join(unknown)} not in type_map {type_map}")
    orders = [_by_type(item.frame, type_map) for item in items]
    types = [type_map.index(items[0].frame.species[i]) for i in orders[0]]
    pairs = list(zip(items, orders, strict=True))
    periodic = items[0].frame.cell is not None
    arrays = {
        "coord": [item.frame.positions[order] for item, order in pairs],
        "energy": [np.array(item.label.energy) for item in items],
        "force": [item.label.forces[order] for item, order in pairs],
        "box": [np.eye(3) * NO_BOX if i.frame.cell is None else i.frame.cell for i in items],
    }
    if periodic and items[0].label.virial is not None:
        arrays["virial"] = [i.label.virial for i in items if i.label.virial is not None]
    if items[0].frame.fparam is not None:
        arrays["fparam"] = [item.frame.parameters["fparam"] for item in items]
    if items[0].frame.aparam is not None:
        arrays["aparam"] = [item.frame.parameters["aparam"][order] for item, order in pairs]
    for name in items[0].label.weights:
        arrays[name] = [item.label.weights[name][order] for item, order in pairs]
    (folder / "set.000").mkdir(parents=True, exist_ok=True)
    for name, values in arrays.items():
        flat = np.stack(values).reshape(len(items), -1).astype(np.float64)
        np.save(folder / "set.000" / f"{name}.npy", flat[:, 0] if name == "energy" else flat)
    (folder / "type.raw").write_text("".join(f"{t}\n" for t in types))
    (folder / "type_map.raw").write_text("".join(f"{symbol}\n" for symbol in type_map))
    if not periodic:
        (folder / "nopbc").touch()


def _by_type(frame: Frame, type_map: Sequence[str]) -> list[int]:
    return sorted(range(len(frame.species)), key=lambda i: type_map.index(frame.species[i]))


# ----------------------------------------------------------------------------------- extended xyz


def write_extxyz(labelled: Iterable[Labelled], path: Path) -> None:
    """All frames as extended xyz with energy (eV), forces (eV/Å) and, where the virial is known,
    stress = −virial / volume (eV/Å³), ASE's sign: positive under tension. Parameters and weights
    are written under their own names."""
    from ase.io import write  # deferred: ASE is slow to import

    write(path, [labelled_atoms(item) for item in labelled], format="extxyz")


def labelled_atoms(item: Labelled) -> Any:
    """The frame as `ase.Atoms` with its label as results of a calculator, in ASE's units."""
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = to_ase(item.frame)
    for name, values in item.label.weights.items():
        atoms.set_array(name, values)
    results: dict[str, Any] = {"energy": item.label.energy, "forces": item.label.forces}
    if item.label.virial is not None and item.frame.cell is not None:
        results["stress"] = _voigt(-item.label.virial / atoms.get_volume())
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def _voigt(tensor: Floats) -> Floats:
    """xx, yy, zz, yz, xz, xy of a `(3, 3)` tensor, symmetrised."""
    symmetric = (tensor + tensor.T) / 2
    result: Floats = symmetric[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    return result
