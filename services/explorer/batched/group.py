"""Replicas that are integrated together, from check to check. Only the child process imports this.

A group is made from the replicas that run, and written back to them when one joins or leaves.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_sim.integrators.md import MDState

from dpstream.services.explorer.batched.integration import (
    Step,
    Thermostats,
    conserving,
    thermostatted,
)
from dpstream.services.explorer.batched.model import (
    DEVICE,
    DTYPE,
    Drivers,
    Frames,
    Rows,
    member,
)
from dpstream.services.explorer.batched.proximity import may_overlap
from dpstream.services.explorer.batched.replica import ReplicaState, Terms
from dpstream.services.explorer.lammps.sanity import unphysical
from dpstream.shared.atoms.deviation import max_force_deviation, verdict, virial_deviation
from dpstream.shared.atoms.frames import FARTHEST, Floats
from dpstream.shared.values import Trust


@dataclass
class Request:
    """The checks that a replica is to make: `checks` at most, `streak` consecutive failed ones
    before them; `frames`: the file for the results. `seen`: positions, force deviation, virial
    deviation and step of those made."""

    checks: int
    streak: int
    frames: str
    stopped: str | None = None
    seen: list[tuple[Floats, float, float, int]] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.stopped is not None or len(self.seen) >= self.checks

    def result(self) -> dict[str, Any]:
        """Writes the frames: positions `(n, n_atoms, 3)` Å, devi_f `(n,)` eV/Å, devi_v `(n,)` eV,
        steps `(n,)`. Returns `made` = n, `streak` and `stopped`."""
        names = ("positions", "devi_f", "devi_v", "steps")
        columns: dict[str, Any] = dict(zip(names, zip(*self.seen, strict=True), strict=False))
        with Path(self.frames).open("wb") as file:
            np.savez(file, **columns)
        return {"made": len(self.seen), "streak": self.streak, "stopped": self.stopped}


@dataclass(eq=False)
class Replica:
    """A replica with the request that it works on, None between two of them."""

    terms: Terms
    state: ReplicaState
    request: Request | None = None

    @property
    def kind(self) -> Hashable:
        """Replicas of one kind fit in one group."""
        terms = self.terms
        ways = (terms.models, terms.type_map, terms.ensemble, terms.timestep, terms.every)
        return (*ways, terms.pinned, self.state.cell is None)


class Group:
    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = replicas
        self.terms = replicas[0].terms
        self.vacuum = replicas[0].state.cell is None
        self.steps = 0
        sizes = [len(each.state.species) for each in replicas]
        self.slices = [slice(end - n, end) for n, end in zip(sizes, np.cumsum(sizes), strict=True)]
        torch.use_deterministic_algorithms(self.terms.pinned, warn_only=True)
        self.by_driver = list(self._rows(by_driver=True))
        self.by_size = list(self._rows(by_driver=False))
        self.state, self._step = self._begun()

    def check(self) -> None:
        """Integrates up to the next check and judges every replica whose request is not over."""
        torch.use_deterministic_algorithms(self.terms.pinned, warn_only=True)
        for _ in range(self.terms.every):
            self.state = self._step(self.state)
        self.steps += self.terms.every
        forces, virials = self._judged()
        suspects = self._suspects()
        positions = self.state.positions.cpu().numpy()
        for number, (each, atoms) in enumerate(zip(self.replicas, self.slices, strict=True)):
            request = each.request
            if request is None or request.over:
                continue
            if suspects[number]:
                request.stopped = self._problem(each, positions[atoms])
            if request.stopped is None:
                self._look(each, request, positions[atoms], forces[:, atoms], virials[number])

    def write_back(self) -> None:
        """Gives the replicas their states."""
        positions, momenta = self.state.positions.cpu().numpy(), self.state.momenta.cpu().numpy()
        for number, (each, atoms) in enumerate(zip(self.replicas, self.slices, strict=True)):
            chain = each.state.chain
            if self.terms.ensemble == "nvt":
                own = self.state.chain
                chain = torch.stack([own.positions, own.momenta])[:, :, number].cpu().numpy()
            each.state = replace(
                each.state,
                positions=positions[atoms].copy(),
                momenta=momenta[atoms].copy(),
                chain=chain,
                step=each.state.step + self.steps,
            )
        self.steps = 0

    # ------------------------------------------------------------------------------- internals

    def _begun(self) -> tuple[Any, Step]:
        states = [each.state for each in self.replicas]
        sizes = _tensor([len(each.species) for each in states], torch.int64)
        cells = [np.eye(3) if each.cell is None else each.cell.T for each in states]
        positions = _tensor(np.concatenate([each.positions for each in states]))
        state = MDState(
            positions=positions,
            masses=_tensor(np.concatenate([each.masses for each in states])),
            cell=_tensor(np.array(cells)),
            pbc=False,  # DeePMD-kit wraps atoms itself
            atomic_numbers=torch.zeros(len(positions), dtype=torch.int64, device=DEVICE),
            system_idx=torch.arange(len(states), device=DEVICE).repeat_interleave(sizes),
            momenta=_tensor(np.concatenate([each.momenta for each in states])),
            energy=torch.zeros(len(states), dtype=DTYPE, device=DEVICE),
            forces=torch.zeros_like(positions),
        )
        model = Drivers(self.by_driver, self.terms.pinned)
        found = model(state)
        state.energy, state.forces = found["energy"], found["forces"]
        if self.terms.ensemble == "nve":
            return conserving(state, model, self.terms.timestep)
        return thermostatted(state, model, self.terms.timestep, self._thermostats())

    def _thermostats(self) -> Thermostats:
        terms = [each.terms for each in self.replicas]
        chains = _tensor(np.stack([each.state.chain for each in self.replicas], axis=-1))
        return Thermostats(
            temperature=_tensor([each.temperature for each in terms]),
            tau=_tensor([each.tau_t for each in terms]),
            freedoms=_tensor([each.freedoms for each in terms]),
            positions=chains[0].clone(),
            momenta=chains[1].clone(),
        )

    def _rows(self, by_driver: bool) -> Iterator[Rows]:
        """Replicas of equal size, and of the same driver if `by_driver`."""
        groups: dict[tuple[int, int], list[int]] = {}
        for number, each in enumerate(self.replicas):
            driver = each.terms.driver % len(self.terms.models) if by_driver else 0
            groups.setdefault((driver, len(each.state.species)), []).append(number)
        for (driver, _), numbers in groups.items():
            states = [self.replicas[number].state for number in numbers]
            atoms = [np.arange(self.slices[n].start, self.slices[n].stop) for n in numbers]
            yield Rows(
                member(self.terms.models[driver]),
                _tensor(numbers, torch.int64),
                _tensor(np.array(atoms), torch.int64),
                self._frames(states),
            )

    def _frames(self, states: Sequence[ReplicaState]) -> Frames:
        numbers = {symbol: number for number, symbol in enumerate(self.terms.type_map)}

        def stacked(name: str) -> torch.Tensor | None:
            found = [getattr(state, name) for state in states]
            return None if found[0] is None else _tensor(np.stack(found))

        coordinates = stacked("positions")
        assert coordinates is not None
        types = _tensor([[numbers[s] for s in state.species] for state in states], torch.int64)
        return Frames(coordinates, types, stacked("cell"), stacked("fparam"), stacked("aparam"))

    def _judged(self) -> tuple[Floats, Floats]:
        """Forces `(n_models, all atoms, 3)` eV/Å and, replica by replica, virials `(n_replicas,
        n_models, 3, 3)` eV of all members."""
        models = [member(path) for path in self.terms.models]
        forces = torch.empty(len(models), *self.state.positions.shape, dtype=DTYPE, device=DEVICE)
        virials = torch.empty(len(self.replicas), len(models), 3, 3, dtype=DTYPE, device=DEVICE)
        for rows in self.by_size:
            frames = rows.at(self.state.positions)
            for number, each in enumerate(models):
                found = each.evaluate(frames, self.terms.pinned)
                forces[number, rows.atoms] = found.forces
                virials[rows.replicas, number] = found.virials
        return forces.cpu().numpy(), virials.cpu().numpy()

    def _suspects(self) -> list[bool]:
        """Which replicas `_problem` has to examine."""
        found = torch.ones(len(self.replicas), dtype=torch.bool, device=DEVICE)
        limits = _tensor([each.terms.overlap for each in self.replicas])
        for rows in self.by_size:
            frames = rows.at(self.state.positions)
            if frames.boxes is not None:
                near = may_overlap(frames.coordinates, frames.boxes, limits[rows.replicas])
                lost = (frames.coordinates.abs() >= FARTHEST).any(dim=2).any(dim=1)
                found[rows.replicas] = near | lost
        suspects: list[bool] = found.tolist()
        return suspects

    def _problem(self, each: Replica, positions: Floats) -> str | None:
        """Reason why these positions end the trajectory, or None."""
        if not (np.abs(positions) < FARTHEST).all():  # also true for NaN
            return "atoms are lost"
        cell = np.eye(3) if each.state.cell is None else each.state.cell
        reach = member(self.terms.models[0]).cutoff if self.vacuum else None
        return unphysical(positions, cell, each.terms.overlap, reach)

    def _look(
        self, each: Replica, request: Request, positions: Floats, forces: Floats, virials: Floats
    ) -> None:
        """One check of a replica by its positions, and all members' forces and virials."""
        levels = Trust.model_validate(each.terms.trust)
        devi_f = float(max_force_deviation(forces, levels.relative))
        devi_v = 0.0
        if not self.vacuum:
            devi_v = float(virial_deviation(virials, len(positions), levels.relative_v))
        if not (math.isfinite(devi_f) and math.isfinite(devi_v)):
            request.stopped = "deviation is not a number"
            return
        request.seen.append((positions.copy(), devi_f, devi_v, each.state.step + self.steps))
        failed = verdict(devi_f, None if self.vacuum else devi_v, levels) == "failed"
        request.streak = request.streak + 1 if failed else 0
        if request.streak >= each.terms.stop_after:
            request.stopped = f"{request.streak} checks in a row above the upper trust level"


def _tensor(values: Any, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    return torch.as_tensor(np.array(values), dtype=dtype, device=DEVICE).clone()


def grouped(replicas: Mapping[str, Replica]) -> list[Group]:
    """The replicas that have a request, in groups of one kind."""
    kinds: dict[Hashable, list[Replica]] = {}
    for each in replicas.values():
        if each.request is not None:
            kinds.setdefault(each.kind, []).append(each)
    return [Group(each) for each in kinds.values()]
