"""DeePMD-kit's frozen PyTorch models on batches of frames, and as a model of TorchSim.

All tensors stay on the device. TorchScript's optimisation is off: it changes the last digits after
the first evaluations, and then a trajectory would depend on what the process did before.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import deepmd.pt.cxx_op  # noqa: F401  registers the operations of compressed models
import torch
from ase.data import atomic_numbers
from deepmd.pt.utils import env
from torch_sim.models.interface import ModelInterface
from torch_sim.state import SimState

DEVICE: torch.device = env.DEVICE
DTYPE = torch.float64
ON_GPU = DEVICE.type == "cuda"
PINNED_FRAMES = 8
"""On a GPU, frames of pinned replicas are evaluated in batches of this many, filled up with copies:
the library may choose another kernel, with other last digits, for another shape."""


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames with the same number of atoms: coordinates `(n, n_atoms, 3)` Å, atomic numbers `(n,
    n_atoms)`, boxes `(n, 3, 3)` Å, or None in vacuum, fparam `(n, n_fparam)`, aparam `(n, n_atoms,
    n_aparam)`, or None."""

    coordinates: torch.Tensor
    numbers: torch.Tensor
    boxes: torch.Tensor | None
    fparam: torch.Tensor | None
    aparam: torch.Tensor | None

    def take(self, rows: torch.Tensor) -> Frames:
        return Frames(*(None if each is None else each[rows] for each in vars(self).values()))


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Energies `(n,)` eV, forces `(n, n_atoms, 3)` eV/Å, virials `(n, 3, 3)` eV, meaningless in
    vacuum."""

    energies: torch.Tensor
    forces: torch.Tensor
    virials: torch.Tensor


class Member:
    """One member of a committee. `most`: atoms evaluated at once; halved when the device has no
    memory left."""

    def __init__(self, path: str) -> None:
        self.module = torch.jit.load(path, map_location=DEVICE)
        self.module.eval()
        self.cutoff = float(self.module.get_rcut())
        self.with_fparam = self.module.get_dim_fparam() > 0
        self.with_aparam = self.module.get_dim_aparam() > 0
        self.type_map = list(self.module.get_type_map())
        self.types = types_by_number(self.type_map)
        self.most: int | None = None

    def evaluate(self, frames: Frames, pinned: bool) -> Evaluated:
        """Evaluates frames, in as many parts as the memory of the device requires; pinned ones on a
        GPU in batches of `PINNED_FRAMES`."""
        atoms, n = frames.numbers.shape[1], len(frames.numbers)
        fixed = PINNED_FRAMES if pinned and ON_GPU else None
        while True:
            size = fixed or (n if self.most is None else max(1, self.most // atoms))
            try:
                parts = [
                    self._part(frames, rows, fixed or len(rows))
                    for rows in torch.arange(n, device=DEVICE).split(size)
                ]
            except RuntimeError as error:
                if fixed or size == 1 or "out of memory" not in str(error):
                    raise
                self.most = min(size, n) * atoms // 2
                torch.cuda.empty_cache()
                continue
            return parts[0] if len(parts) == 1 else _joined(parts)

    def _part(self, frames: Frames, rows: torch.Tensor, size: int) -> Evaluated:
        n = len(rows)
        part = frames.take(filled_up(rows, size))
        with torch.jit.optimized_execution(False):
            found = self.module(
                part.coordinates,
                self.types[part.numbers],
                box=part.boxes,
                fparam=part.fparam if self.with_fparam else None,
                aparam=part.aparam if self.with_aparam else None,
            )
        return Evaluated(
            found["energy"].detach()[:n, 0],
            found["force"].detach()[:n],
            found["virial"].detach()[:n].reshape(n, 3, 3),
        )


def types_by_number(symbols: Sequence[str]) -> torch.Tensor:
    """The type of each element in a model whose types are `symbols`, by atomic number. A model that
    began with a user's may number them otherwise than the campaign."""
    types = torch.zeros(len(atomic_numbers), dtype=torch.int64, device=DEVICE)
    for number, symbol in enumerate(symbols):
        if symbol in atomic_numbers:
            types[atomic_numbers[symbol]] = number
    return types


def filled_up(rows: torch.Tensor, size: int) -> torch.Tensor:
    """`rows` with copies of the last one, `size` in all."""
    return torch.cat([rows, rows[-1:].expand(size - len(rows))])


def _joined(parts: Sequence[Evaluated]) -> Evaluated:
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Evaluated(*(torch.cat(column) for column in columns))


@functools.lru_cache(maxsize=32)
def member(path: str) -> Member:
    return Member(path)


@dataclass(frozen=True, eq=False)
class Rows:
    """Replicas of a batch with the same driver and number of atoms: their numbers `(n,)`, the
    numbers of their atoms `(n, n_atoms)`, and their frames, whose coordinates and boxes are
    replaced."""

    driver: Member
    replicas: torch.Tensor
    atoms: torch.Tensor
    frames: Frames

    def at(self, state: SimState) -> Frames:
        """The frames at the positions and cells of a batch."""
        boxes = self.frames.boxes
        if boxes is not None:
            boxes = state.cell.mT[self.replicas].contiguous()
        return replace(self.frames, coordinates=state.positions[self.atoms], boxes=boxes)


class Drivers(ModelInterface):  # type: ignore[misc]
    """The potential energy of a batch, in which every replica is moved by its own driver."""

    def __init__(self, rows: Sequence[Rows], pinned: bool) -> None:
        super().__init__()
        self.rows, self.pinned = rows, pinned
        self._device, self._dtype = DEVICE, DTYPE
        self._compute_forces, self._compute_stress = True, True

    def forward(self, state: SimState, **_: object) -> dict[str, torch.Tensor]:
        """Energies `(n_replicas,)` eV, forces `(all atoms, 3)` eV/Å, and stresses `(n_replicas, 3,
        3)` eV/Å³, positive under tension, which mean nothing in vacuum."""
        forces = torch.empty_like(state.positions)
        energies = torch.empty(len(state.cell), dtype=DTYPE, device=DEVICE)
        virials = torch.empty_like(state.cell)
        for rows in self.rows:
            found = rows.driver.evaluate(rows.at(state), self.pinned)
            forces[rows.atoms] = found.forces
            energies[rows.replicas] = found.energies
            virials[rows.replicas] = found.virials
        volumes = torch.linalg.det(state.cell)
        return {
            "energy": energies,
            "forces": forces,
            "stress": -virials / volumes[:, None, None],
        }
