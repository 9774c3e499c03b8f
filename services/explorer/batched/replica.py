"""A replica of a batch: how it moves, and its state between two segments. Free of PyTorch, because
the worker and its child process both use it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import metadata
from typing import Any

import numpy as np
from ase.data import atomic_masses, atomic_numbers

from dpstream.services.explorer.lammps.script import COLDEST, frozen_freedoms
from dpstream.shared.atoms.frames import Floats, Frame, to_ase
from dpstream.shared.spec import Md
from dpstream.shared.values import Condition

CHAIN = 3
"""Thermostats of a Nosé–Hoover chain, as in LAMMPS."""
BAROSTAT = 2 + 2 * CHAIN
"""Numbers that a barostat saves, at most."""
DISTRIBUTION = "torch-sim-atomistic"
RANDOM = frozenset({"npt-aniso"})
"""Ensembles whose integrator draws random numbers."""


def has_barostats() -> bool:
    """Whether the installed TorchSim has barostats that sample npt."""
    major, minor = metadata.version(DISTRIBUTION).split(".")[:2]
    return (int(major), int(minor)) >= (0, 6)


@dataclass(frozen=True)
class Terms:
    """How a replica moves, and when it ends. `models`: paths of the committee, of which number
    `driver` moves the atoms; `timestep`, `tau_t`, `tau_p`: ps; `temperature`: K; `pressure`: bar;
    `freedoms`: degrees of freedom with kinetic energy; `overlap`: Å; `trust`: fields of a `Trust`;
    `pinned`: the same replica has to give the same frames; `seed`: of its random numbers, if its
    ensemble draws any."""

    models: tuple[str, ...]
    driver: int
    ensemble: str
    timestep: float
    every: int
    temperature: float
    pressure: float
    tau_t: float
    tau_p: float
    freedoms: int
    overlap: float
    stop_after: int
    trust: Mapping[str, float | None]
    pinned: bool
    seed: int

    @staticmethod
    def under(md: Md, condition: Condition, frame: Frame, **others: Any) -> Terms:
        """Terms of a trajectory that starts from `frame`; `others`: those that are not settings
        of the dynamics."""
        return Terms(
            ensemble=md.ensemble,
            timestep=md.timestep,
            every=md.every,
            temperature=max(condition.temperature, COLDEST),
            pressure=condition.pressure or 0.0,
            tau_t=md.tau_t,
            tau_p=md.tau_p,
            freedoms=freedoms(frame),
            overlap=md.overlap,
            stop_after=md.stop_after,
            **others,
        )

    @staticmethod
    def of(values: Mapping[str, Any]) -> Terms:
        """Terms that were sent as JSON."""
        return Terms(**{**values, "models": tuple(values["models"])})


@dataclass(frozen=True, eq=False)
class ReplicaState:
    """positions `(n_atoms, 3)` Å, not wrapped; momenta `(n_atoms, 3)` in √(amu eV); masses
    `(n_atoms,)` amu; cell `(3, 3)` Å, rows, or None in vacuum; fparam and aparam as those of a
    frame; chain `(2, CHAIN)`: positions and momenta of the thermostats; step `()`; barostat
    `(BAROSTAT,)`: its numbers; reference `(3, 3)` Å: the cell that they refer to."""

    species: tuple[str, ...]
    positions: Floats
    momenta: Floats
    masses: Floats
    cell: Floats | None
    fparam: Floats | None
    aparam: Floats | None
    chain: Floats
    step: int
    barostat: Floats | None = None
    reference: Floats | None = None

    def dumps(self) -> bytes:
        """The state as an `.npz` archive, without loss of precision."""
        out = io.BytesIO()
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        columns: dict[str, Any] = {k: np.asarray(v) for k, v in given.items() if v is not None}
        np.savez(out, **columns)
        return out.getvalue()

    @staticmethod
    def loads(data: bytes) -> ReplicaState:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            columns: dict[str, Any] = {each.name: None for each in fields(ReplicaState)}
            columns |= dict(archive)
        species = tuple(str(symbol) for symbol in columns["species"])
        return ReplicaState(**{**columns, "species": species, "step": int(columns["step"])})


def initial_state(frame: Frame, md: Md, temperature: float, seed: int) -> ReplicaState:
    """The replica at the start of a trajectory. Its velocities are those of LAMMPS' `velocity
    create … dist gaussian`: Maxwell–Boltzmann, without translation (and in vacuum without
    rotation), scaled to the temperature in K."""
    from ase.md.velocitydistribution import Stationary, ZeroRotation  # deferred: slow to import
    from ase.units import kB

    masses = np.array(
        [md.masses.get(s, float(atomic_masses[atomic_numbers[s]])) for s in frame.species]
    )
    atoms = to_ase(frame)
    atoms.set_masses(masses)
    rng = np.random.default_rng(seed)
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * np.sqrt(masses)[:, None])
    Stationary(atoms, preserve_temperature=False)
    if frame.cell is None:
        with np.errstate(invalid="ignore"):  # 0/0 about the axis of a linear molecule
            ZeroRotation(atoms, preserve_temperature=False)
    wanted = freedoms(frame) * kB * max(temperature, COLDEST) / 2
    momenta = atoms.get_momenta() * np.sqrt(wanted / atoms.get_kinetic_energy())
    return ReplicaState(
        species=frame.species,
        positions=frame.positions,
        momenta=momenta,
        masses=masses,
        cell=frame.cell,
        fparam=frame.fparam,
        aparam=frame.aparam,
        chain=np.zeros((2, CHAIN)),
        step=0,
        barostat=np.zeros(BAROSTAT),
        reference=frame.cell,
    )


def freedoms(frame: Frame) -> int:
    """Degrees of freedom with kinetic energy."""
    return 3 * len(frame.species) - frozen_freedoms(frame)
