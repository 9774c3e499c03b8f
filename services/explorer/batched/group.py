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
from ase.data import atomic_numbers
from torch_sim.integrators.md import MDState

from dpstream.services.explorer.batched.integration import Coupling, Integration, integration
from dpstream.services.explorer.batched.model import (
    DEVICE,
    DTYPE,
    Drivers,
    Frames,
    Rows,
    member,
)
from dpstream.services.explorer.batched.proximity import may_overlap
from dpstream.services.explorer.batched.replica import BAROSTAT, RANDOM, ReplicaState, Terms
from dpstream.services.explorer.lammps.sanity import unphysical
from dpstream.shared.atoms.deviation import max_force_deviation, verdict, virial_deviation
from dpstream.shared.atoms.frames import FARTHEST, Floats
from dpstream.shared.values import Trust


@dataclass
class Request:
    """The checks that a replica is to make: `checks` at most, `streak` consecutive failed ones
    before them; `frames`: the file for the results. `seen`: positions, cell, force deviation,
    virial deviation and step of those made."""

    checks: int
    streak: int
    frames: str
    stopped: str | None = None
    seen: list[tuple[Floats, Floats, float, float, int]] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.stopped is not None or len(self.seen) >= self.checks

    def result(self) -> dict[str, Any]:
        """Writes the frames: positions `(n, n_atoms, 3)` Å, cells `(n, 3, 3)` Å, devi_f `(n,)`
        eV/Å, devi_v `(n,)` eV, steps `(n,)`. Returns `made` = n, `streak` and `stopped`."""
        names = ("positions", "cells", "devi_f", "devi_v", "steps")
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
        ways = (terms.models, terms.ensemble, terms.timestep, terms.every)
        # A batch draws its random numbers from one sequence.
        alone = id(self) if terms.pinned and terms.ensemble in RANDOM else None
        return (*ways, terms.pinned, self.state.cell is None, alone)

    def check_elements(self) -> None:
        """Raises ValueError if a model lacks an element of the replica."""
        for path in self.terms.models:
            unknown = {*self.state.species} - {*member(path).type_map}
            if unknown:
                raise ValueError(f"the model has no element {min(unknown)}")


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
        self.motion = self._begun()

    def check(self) -> None:
        """Integrates up to the next check and judges every replica whose request is not over."""
        torch.use_deterministic_algorithms(self.terms.pinned, warn_only=True)
        self.motion.refresh(self._seed())
        for _ in range(self.terms.every):
            self.motion.step()
        self.steps += self.terms.every
        forces, virials = self._judged()
        suspects = self._suspects()
        positions, cells = self._geometry()
        for number, (each, atoms) in enumerate(zip(self.replicas, self.slices, strict=True)):
            request = each.request
            if request is None or request.over:
                continue
            here = positions[atoms], cells[number]
            if suspects[number]:
                request.stopped = self._problem(each, *here)
            if request.stopped is None:
                self._look(each, request, here, forces[:, atoms], virials[number])

    def write_back(self) -> None:
        """Gives the replicas their states."""
        positions, cells = self._geometry()
        momenta = self.motion.state.momenta.cpu().numpy()
        chains, barostats = (x.cpu().numpy() for x in (self.motion.chains, self.motion.barostats))
        for number, (each, atoms) in enumerate(zip(self.replicas, self.slices, strict=True)):
            each.state = replace(
                each.state,
                positions=positions[atoms].copy(),
                momenta=momenta[atoms].copy(),
                cell=None if self.vacuum else cells[number].copy(),
                chain=chains[number].copy(),
                barostat=barostats[number].copy(),
                step=each.state.step + self.steps,
            )
        self.steps = 0

    # ------------------------------------------------------------------------------- internals

    def _begun(self) -> Integration:
        states = [each.state for each in self.replicas]
        sizes = _tensor([len(each.species) for each in states], torch.int64)
        positions = _tensor(np.concatenate([each.positions for each in states]))
        state = MDState(
            positions=positions,
            masses=_tensor(np.concatenate([each.masses for each in states])),
            cell=_columns([each.cell for each in states]),
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
        return integration(state, model, self._coupling())

    def _coupling(self) -> Coupling:
        terms, states = [r.terms for r in self.replicas], [r.state for r in self.replicas]
        own = ("temperature", "pressure", "tau_t", "tau_p", "freedoms")
        barostats = [np.zeros(BAROSTAT) if s.barostat is None else s.barostat for s in states]
        return Coupling(
            ensemble=self.terms.ensemble,
            timestep=self.terms.timestep,
            **{name: _tensor([getattr(each, name) for each in terms]) for name in own},
            chains=_tensor([each.chain for each in states]),
            barostats=_tensor(barostats),
            references=_columns([s.cell if s.reference is None else s.reference for s in states]),
        )

    def _seed(self) -> int:
        """For the steps up to the next check: the same for the same replicas at the same step."""
        numbers = [(each.terms.seed, each.state.step + self.steps) for each in self.replicas]
        return int(np.random.SeedSequence(np.ravel(numbers).tolist()).generate_state(1)[0])

    def _geometry(self) -> tuple[Floats, Floats]:
        """Positions `(all atoms, 3)` and cells `(n_replicas, 3, 3)`, Å."""
        state = self.motion.state
        return state.positions.cpu().numpy(), state.cell.mT.contiguous().cpu().numpy()

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
        def stacked(name: str) -> torch.Tensor | None:
            found = [getattr(state, name) for state in states]
            return None if found[0] is None else _tensor(np.stack(found))

        coordinates = stacked("positions")
        assert coordinates is not None
        species = [[atomic_numbers[symbol] for symbol in state.species] for state in states]
        numbers = _tensor(species, torch.int64)
        return Frames(coordinates, numbers, stacked("cell"), stacked("fparam"), stacked("aparam"))

    def _judged(self) -> tuple[Floats, Floats]:
        """Forces `(n_models, all atoms, 3)` eV/Å and, replica by replica, virials `(n_replicas,
        n_models, 3, 3)` eV of all members."""
        models = [member(path) for path in self.terms.models]
        state = self.motion.state
        forces = torch.empty(len(models), *state.positions.shape, dtype=DTYPE, device=DEVICE)
        virials = torch.empty(len(self.replicas), len(models), 3, 3, dtype=DTYPE, device=DEVICE)
        for rows in self.by_size:
            frames = rows.at(state)
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
            frames = rows.at(self.motion.state)
            if frames.boxes is not None:
                near = may_overlap(frames.coordinates, frames.boxes, limits[rows.replicas])
                lost = (frames.coordinates.abs() >= FARTHEST).any(dim=2).any(dim=1)
                found[rows.replicas] = near | lost
        suspects: list[bool] = found.tolist()
        return suspects

    def _problem(self, each: Replica, positions: Floats, cell: Floats) -> str | None:
        """Reason why this geometry ends the trajectory, or None."""
        if not (np.abs(positions) < FARTHEST).all():  # also true for NaN
            return "atoms are lost"
        reach = member(self.terms.models[0]).cutoff if self.vacuum else None
        return unphysical(positions, cell, each.terms.overlap, reach)

    def _look(
        self,
        each: Replica,
        request: Request,
        here: tuple[Floats, Floats],
        forces: Floats,
        virials: Floats,
    ) -> None:
        """One check of a replica by its positions and cell, and all members' forces and virials."""
        positions, cell = here
        levels = Trust.model_validate(each.terms.trust)
        devi_f = float(max_force_deviation(forces, levels.relative))
        devi_v = 0.0
        if not self.vacuum:
            devi_v = float(virial_deviation(virials, len(positions), levels.relative_v))
        if not (math.isfinite(devi_f) and math.isfinite(devi_v)):
            request.stopped = "deviation is not a number"
            return
        step = each.state.step + self.steps
        request.seen.append((positions.copy(), cell.copy(), devi_f, devi_v, step))
        failed = verdict(devi_f, None if self.vacuum else devi_v, levels) == "failed"
        request.streak = request.streak + 1 if failed else 0
        if request.streak >= each.terms.stop_after:
            request.stopped = f"{request.streak} checks in a row above the upper trust level"


def _columns(cells: Sequence[Floats | None]) -> torch.Tensor:
    """TorchSim's cells, whose vectors are columns; of unit length in vacuum."""
    return _tensor([np.eye(3) if cell is None else cell.T for cell in cells])


def _tensor(values: Any, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    return torch.as_tensor(np.array(values), dtype=dtype, device=DEVICE).clone()


def grouped(replicas: Mapping[str, Replica]) -> list[Group]:
    """The replicas that have a request, in groups of one kind."""
    kinds: dict[Hashable, list[Replica]] = {}
    for each in replicas.values():
        if each.request is not None:
            kinds.setdefault(each.kind, []).append(each)
    return [Group(each) for each in kinds.values()]
