"""Frames, batches of frames and labels: arrays, canonical form, keys, encodings.

A frame is brought to canonical form before it is labelled, so that its key identifies its content
and labels can be shared between campaigns. Units everywhere: eV, Å, amu, ps, K, bar (LAMMPS
`metal`). Cells are row vectors.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dpstream.shared.errors import SpecError, errors_at

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

GRID = 1e-6
"""Å; cells and positions are rounded to this grid, and the rounded frame is labelled."""

FARTHEST = 1e8
"""Å; larger coordinates cannot resolve the grid in double precision."""

PARAMETERS = ("fparam", "aparam")
"""Optional model inputs of a frame, named as DeePMD-kit's files."""
WEIGHTS = ("atom_pref", "atom_ener_coeff")
"""Optional weights of a label's atoms in the loss, named as DeePMD-kit's files."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One atomic configuration.

    species: chemical symbols, `(n_atoms,)`; positions: `(n_atoms, 3)` Å;
    cell: `(3, 3)` row vectors in Å, or None for a molecule in vacuum;
    fparam: `(n_fparam,)`, aparam: `(n_atoms, n_aparam)`: further model inputs, such as an electron
    temperature, in the user's units, or None.
    """

    species: tuple[str, ...]
    positions: Floats
    cell: Floats | None = None
    fparam: Floats | None = None
    aparam: Floats | None = None

    def __post_init__(self) -> None:
        if self.positions.shape != (len(self.species), 3):
            raise ValueError(
                f"positions have shape {self.positions.shape}; must be ({len(self.species)}, 3)"
            )
        if self.cell is not None and self.cell.shape != (3, 3):
            raise ValueError(f"cell has shape {self.cell.shape}; must be (3, 3)")
        if self.fparam is not None and self.fparam.ndim != 1:
            raise ValueError(f"fparam has shape {self.fparam.shape}; must be (n_fparam,)")
        if self.aparam is not None and self.aparam.shape[:-1] != (len(self.species),):
            raise ValueError(
                f"aparam has shape {self.aparam.shape}; must be ({len(self.species)}, n_aparam)"
            )

    @property
    def formula(self) -> str:
        """Composition in alphabetical order, e.g. `C1H4`."""
        return "".join(f"{s}{self.species.count(s)}" for s in sorted(set(self.species)))

    @property
    def parameters(self) -> dict[str, Floats]:
        """The frame's parameters that are not None, by name."""
        given = {"fparam": self.fparam, "aparam": self.aparam}
        return {name: values for name, values in given.items() if values is not None}

    def with_parameters(self, parameters: Mapping[str, Floats]) -> Frame:
        """A copy with `parameters`, by name, in place of its own."""
        fparam, aparam = (parameters.get(name) for name in PARAMETERS)
        return replace(self, fparam=fparam, aparam=aparam)

    @property
    def kind(self) -> tuple[Any, ...]:
        """Properties shared by the frames of a batch: species in order, periodicity, parameters."""
        sizes = [(name, values.shape[-1]) for name, values in self.parameters.items()]
        return (self.species, self.cell is None, *sizes)


@dataclass(frozen=True, eq=False)
class FrameLabel:
    """Energy `()` eV, forces `(n_atoms, 3)` eV/Å, virial `(3, 3)` = −dE/dε in eV (periodic
    frames only) of one frame from one labeling recipe. `atom_pref` `(n_atoms,)` are weights of the
    forces in the loss; with `atom_ener_coeff` c `(n_atoms,)` the energy is Σ c_i E_i."""

    energy: float
    forces: Floats
    virial: Floats | None = None
    atom_pref: Floats | None = None
    atom_ener_coeff: Floats | None = None

    @property
    def weights(self) -> dict[str, Floats]:
        """The label's atomic weights that are not None, by name."""
        given = {"atom_pref": self.atom_pref, "atom_ener_coeff": self.atom_ener_coeff}
        return {name: values for name, values in given.items() if values is not None}


@dataclass(frozen=True, eq=False)
class Batch:
    """Frames of one composition in one atom order.

    species `(n_atoms,)`; positions `(n_frames, n_atoms, 3)` Å; cells `(n_frames, 3, 3)` Å or None;
    `arrays` holds further per-frame arrays, first axis n_frames (deviations in eV/Å, steps, …;
    fparam and aparam are those of the frames).
    """

    species: tuple[str, ...]
    positions: Floats
    cells: Floats | None = None
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Frame:
        cell = None if self.cells is None else self.cells[index]
        own = {name: self.arrays[name][index] for name in PARAMETERS if name in self.arrays}
        return Frame(self.species, self.positions[index], cell, **own)

    def __iter__(self) -> Iterator[Frame]:
        return (self[i] for i in range(len(self)))

    def take(self, indices: Sequence[int]) -> Batch:
        rows = np.asarray(indices, dtype=np.int64)
        return Batch(
            self.species,
            self.positions[rows],
            None if self.cells is None else self.cells[rows],
            {name: values[rows] for name, values in self.arrays.items()},
        )

    def dumps(self) -> bytes:
        """The batch as an `.npz` archive; equal batches give equal bytes. Raises ValueError for
        arrays of Python objects, which would need pickle."""
        if any(values.dtype.hasobject for values in self.arrays.values()):
            raise ValueError("the arrays of a batch must be numeric, not Python objects")
        columns: dict[str, npt.NDArray[Any]] = {f"x_{k}": v for k, v in self.arrays.items()}
        columns |= {"species": np.array(self.species), "positions": self.positions}
        if self.cells is not None:
            columns["cells"] = self.cells
        out = io.BytesIO()
        np.savez(out, **columns)  # type: ignore[arg-type]
        return out.getvalue()

    @staticmethod
    def loads(data: bytes) -> Batch:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            species, positions = archive["species"], archive["positions"]
            if positions.ndim == 3 and species.shape != positions.shape[1:2]:
                raise ValueError(f"{species.size} species of {positions.shape[1]} atoms")
            return Batch(
                tuple(str(s) for s in species),
                positions,
                archive["cells"] if "cells" in archive.files else None,
                {k[2:]: archive[k] for k in archive.files if k.startswith("x_")},
            )

    @staticmethod
    def of(frames: Sequence[Frame], **arrays: npt.NDArray[Any]) -> Batch:
        """One batch from frames of the same kind. Raises ValueError if their kinds differ."""
        first = frames[0]
        if any(frame.kind != first.kind for frame in frames):
            raise ValueError(
                "the frames of a batch must have the same species order, periodicity and parameters"
            )
        own = {name: np.stack([f.parameters[name] for f in frames]) for name in first.parameters}
        cells = [frame.cell for frame in frames if frame.cell is not None]
        positions = np.stack([frame.positions for frame in frames])
        arrays = {**arrays, **own}
        return Batch(first.species, positions, np.stack(cells) if cells else None, arrays)

    @staticmethod
    def grouped(frames: Sequence[Frame], also: Sequence[Hashable] = ()) -> list[list[int]]:
        """Groups of indices of frames that fit in one batch, in order of first appearance; frames
        with different values in `also` are separated."""
        groups: dict[Hashable, list[int]] = {}
        for index, frame in enumerate(frames):
            kind = (frame.kind, also[index] if also else None)
            groups.setdefault(kind, []).append(index)
        return list(groups.values())


@dataclass(frozen=True, eq=False)
class Canonical:
    """A frame in canonical form, with the transformation back to the caller's frame.

    `order[i]` is the caller's index of canonical atom i; `rotation` rotates the caller's row
    vectors into the canonical orientation (`v @ rotation`).
    """

    frame: Frame
    order: Ints
    rotation: Floats

    def forces_back(self, forces: Floats) -> Floats:
        """Forces `(n_atoms, 3)` in the caller's order and orientation."""
        result = np.empty_like(forces)
        result[self.order] = forces @ self.rotation.T
        return result


def canonical(frame: Frame) -> Canonical:
    """The canonical form: lower-triangular cell, atoms sorted by species (stable), coordinates
    rounded to the 1e-6 Å grid and wrapped in integer arithmetic, so that canonical frames are fixed
    points. The vectors of a left-handed cell are replaced by their negatives, which span the same
    lattice: no atom moves, and energy, forces and virial stay as they are.

    Raises ValueError for a flat cell and for coordinates that are not finite.
    """
    for array in (frame.positions, frame.cell):
        if array is not None:
            _refuse_wild(array)
    if not all(np.isfinite(values).all() for values in frame.parameters.values()):
        raise ValueError("fparam and aparam must be finite numbers")
    order = np.argsort(np.array(frame.species, dtype=np.str_), kind="stable")
    species = tuple(frame.species[i] for i in order)
    aparam = None if frame.aparam is None else frame.aparam[order]
    if frame.cell is None:
        positions = _to_floats(_on_grid(frame.positions[order]))
        return Canonical(Frame(species, positions, None, frame.fparam, aparam), order, np.eye(3))
    vectors = right_handed(frame.cell)
    rotation = np.eye(3) if _is_lower_triangular(vectors) else _to_lower_triangular(vectors)
    cell = _on_grid(vectors @ rotation)
    cell[np.triu_indices(3, k=1)] = 0
    if not np.all(np.diag(cell) > 0):
        raise ValueError("the cell has (almost) no volume")
    positions = _to_floats(_wrap(_on_grid(frame.positions[order] @ rotation), cell))
    sorted_frame = Frame(species, positions, _to_floats(cell), frame.fparam, aparam)
    return Canonical(sorted_frame, order, rotation)


def is_left_handed(frame: Frame) -> bool:
    return frame.cell is not None and bool(np.linalg.det(frame.cell) < 0)


def right_handed(cell: Floats) -> Floats:
    """The cell vectors `(3, 3)`, or their negatives if they are left-handed."""
    return -cell if np.linalg.det(cell) < 0 else cell


def frame_key(frame: Frame) -> str:
    """Key of a canonical frame: SHA-256 over species, integer coordinates and parameters, if any (a
    frame at another electron temperature is another frame); 32 hexadecimal digits."""
    digest = hashlib.sha256(" ".join(frame.species).encode())
    for array in (frame.cell, frame.positions):
        digest.update(b"|" if array is None else _on_grid(array).astype("<i8").tobytes())
    for name, values in frame.parameters.items():
        digest.update(name.encode() + (values + 0.0).astype("<f8").tobytes())  # no −0
    return digest.hexdigest()[:32]


def _on_grid(values: Floats) -> Ints:
    _refuse_wild(values)
    grid: Ints = np.rint(values / GRID).astype(np.int64)
    return grid


def _refuse_wild(values: Floats) -> None:
    if not np.all(np.abs(values) < FARTHEST):  # also true for NaN
        raise ValueError("coordinates must be finite, and within 1e8 Å")


def _to_floats(grid: Ints) -> Floats:
    # Division by a power of ten rounds correctly: 1234567 becomes the float nearest 1.234567.
    values: Floats = grid / round(1 / GRID)
    return values


def _is_lower_triangular(cell: Floats) -> bool:
    return bool(np.all(np.triu(cell, 1) == 0) and np.all(np.diag(cell) > 0))


def _to_lower_triangular(cell: Floats) -> Floats:
    """The rotation R with `cell @ R` lower triangular and a positive diagonal, of a right-handed
    cell. Raises ValueError for a flat one."""
    if np.linalg.det(cell) <= 0:
        raise ValueError("the cell vectors must enclose a volume")
    q, r = np.linalg.qr(cell.T)
    signs = np.sign(np.diag(r))
    rotation: Floats = q * signs
    return rotation


def _wrap(positions: Ints, cell: Ints) -> Ints:
    """Wrap into the box between 0 and the cell's diagonal, which contains one image of each
    atom."""
    wrapped: Ints = positions.copy()
    for axis in (2, 1, 0):
        images = wrapped[:, axis] // cell[axis, axis]
        wrapped -= np.outer(images, cell[axis])
    return wrapped


def min_distance(frame: Frame) -> float:
    """Shortest interatomic distance in Å, including periodic images; inf beyond 6 Å."""
    for cutoff in (1.5, 6.0):
        pair = closest_pair(frame, cutoff)
        if pair is not None:
            return pair[2]
    return float("inf")


def closest_pair(frame: Frame, within: float) -> tuple[int, int, float] | None:
    """Indices and distance (Å) of the closest pair of atoms, including periodic images; None if no
    pair is closer than `within` Å."""
    from ase.neighborlist import neighbor_list  # deferred: ASE is slow to import

    first, second, distances = neighbor_list("ijd", to_ase(frame), within)
    if not len(distances):
        return None
    k = int(np.argmin(distances))
    return int(min(first[k], second[k])), int(max(first[k], second[k])), float(distances[k])


def to_ase(frame: Frame) -> Any:
    """The frame as `ase.Atoms`, with its parameters: `fparam` in the info, `aparam` in the
    arrays."""
    from ase import Atoms

    atoms = Atoms(list(frame.species), frame.positions, cell=frame.cell, pbc=frame.cell is not None)
    if frame.fparam is not None:
        atoms.info["fparam"] = frame.fparam
    if frame.aparam is not None:
        atoms.set_array("aparam", frame.aparam)
    return atoms


def from_ase(atoms: Any, periodic: bool | None = None) -> Frame:
    """A frame from `ase.Atoms`, with its parameters. `periodic`: in three directions or in none;
    None: as the atoms are.

    Raises ValueError for atoms that are periodic in one or two directions only, and for a periodic
    frame whose cell is flat or missing.
    """
    if periodic is None:
        if atoms.pbc.any() and not atoms.pbc.all():
            axes = ", ".join(axis for axis, on in zip("xyz", atoms.pbc, strict=True) if on)
            raise ValueError(
                f"periodic along {axes} only; allowed: all three directions or none "
                "(add vacuum, or set `periodic`)"
            )
        periodic = bool(atoms.pbc.all())
    cell = np.array(atoms.cell[:], dtype=np.float64) if periodic else None
    if cell is not None and abs(np.linalg.det(cell)) < 1e-6:
        raise ValueError("periodic, but its cell is missing or has (almost) no volume")
    positions = np.array(atoms.positions, dtype=np.float64)
    return Frame(tuple(atoms.get_chemical_symbols()), positions, cell, **_parameters_in(atoms))


def as_frame(given: Any, where: str) -> Frame:
    """Converts a user's `ase.Atoms` to a frame without parameters; a `Frame` is kept. The
    vectors of a left-handed cell are replaced by their negatives. Raises `SpecError`, naming
    `where`."""
    with errors_at(where, ValueError):
        frame = given if isinstance(given, Frame) else from_ase(given).with_parameters({})
    if not np.isfinite(frame.positions).all():
        raise SpecError(f"{where}: has positions that are not finite numbers")
    return frame if frame.cell is None else replace(frame, cell=right_handed(frame.cell))


def _parameters_in(atoms: Any) -> dict[str, Floats]:
    """Parameters of `ase.Atoms`: `fparam` in their info, `aparam` in their arrays."""
    given: dict[str, Floats] = {}
    if "fparam" in atoms.info:
        given["fparam"] = np.array(atoms.info["fparam"], dtype=np.float64).reshape(-1)
    if "aparam" in atoms.arrays:
        values = np.array(atoms.arrays["aparam"], dtype=np.float64)
        given["aparam"] = values.reshape(len(atoms), -1)
    return given


def encode_labelled(frame: Frame, label: FrameLabel, provenance: Mapping[str, Any]) -> bytes:
    """One labelled frame as JSON; floats are written without loss of precision."""
    document = {
        "species": list(frame.species),
        "positions": frame.positions.tolist(),
        "cell": None if frame.cell is None else frame.cell.tolist(),
        "energy": label.energy,
        "forces": label.forces.tolist(),
        "virial": None if label.virial is None else label.virial.tolist(),
        "provenance": dict(provenance),
    }
    further = {**frame.parameters, **label.weights}
    document |= {name: values.tolist() for name, values in further.items()}
    return json.dumps(document).encode()


def decode_labelled(data: bytes) -> tuple[Frame, FrameLabel, dict[str, Any]]:
    document = json.loads(data)
    cell, virial = document["cell"], document["virial"]
    named = [name for name in (*PARAMETERS, *WEIGHTS) if name in document]
    further = {name: np.array(document[name], dtype=np.float64) for name in named}
    frame = Frame(
        tuple(document["species"]),
        np.array(document["positions"], dtype=np.float64).reshape(-1, 3),
        None if cell is None else np.array(cell, dtype=np.float64),
        **{name: further[name] for name in PARAMETERS if name in further},
    )
    label = FrameLabel(
        float(document["energy"]),
        np.array(document["forces"], dtype=np.float64).reshape(-1, 3),
        None if virial is None else np.array(virial, dtype=np.float64),
        **{name: further[name] for name in WEIGHTS if name in further},
    )
    return frame, label, document["provenance"]
