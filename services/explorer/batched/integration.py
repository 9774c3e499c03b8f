"""What moves a batch of replicas: TorchSim's integrators, those of the installed release.

The newest release for Python 3.11 is 0.3.0, whose interface differs from that of 0.6.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module

import torch
from torch_sim.integrators.md import MDState
from torch_sim.models.interface import ModelInterface
from torch_sim.quantities import calc_kinetic_energy
from torch_sim.units import MetalUnits

from dpstream.services.explorer.batched.replica import has_barostats

PS = float(MetalUnits.time)
"""One picosecond in TorchSim's unit of time, Å √(amu/eV)."""
KELVIN = float(MetalUnits.temperature)
"""One kelvin as an energy, eV."""
BAR = float(MetalUnits.pressure)
"""One bar in eV/Å³."""


@dataclass(frozen=True, eq=False)
class Coupling:
    """How a batch moves. `ensemble`: that of the settings; `timestep`: ps; of every replica
    `temperature` K, `pressure` bar, `tau_t` and `tau_p` ps, and `freedoms`, all `(n_replicas,)`.
    `chains` `(n_replicas, 2, CHAIN)`: positions and momenta of the thermostats; `barostats`
    `(n_replicas, n)`: numbers of the barostat, zeros at the start; `references` `(n_replicas, 3,
    3)` Å: cells at the start of the trajectories, vectors as columns."""

    ensemble: str
    timestep: float
    temperature: torch.Tensor
    pressure: torch.Tensor
    tau_t: torch.Tensor
    tau_p: torch.Tensor
    freedoms: torch.Tensor
    chains: torch.Tensor
    barostats: torch.Tensor
    references: torch.Tensor

    @property
    def kT(self) -> torch.Tensor:
        """eV, `(n_replicas,)`."""
        return self.temperature * KELVIN


class Integration(ABC):
    """A batch in motion."""

    def __init__(self, state: MDState, model: ModelInterface, coupling: Coupling) -> None:
        self.state, self.model, self.coupling = state, model, coupling
        self.dt = torch.tensor(coupling.timestep * PS, dtype=state.dtype, device=state.device)

    def refresh(self, seed: int) -> None:  # noqa: B027
        """Make what follows depend only on what a replica saves, and on `seed`. Without it, the
        last digits would depend on when the batch was put together."""

    @abstractmethod
    def step(self) -> None: ...

    @property
    def chains(self) -> torch.Tensor:
        return self.coupling.chains

    @property
    def barostats(self) -> torch.Tensor:
        return self.coupling.barostats


def integration(state: MDState, model: ModelInterface, coupling: Coupling) -> Integration:
    """A batch in the ensemble of `coupling`, at the energies and forces of `state`."""
    release = "0_6" if has_barostats() else "0_3"
    module = import_module(f"dpstream.services.explorer.batched.torchsim_{release}")
    begun: Integration = module.INTEGRATIONS[coupling.ensemble](state, model, coupling)
    return begun


def kinetic_energies(state: MDState) -> torch.Tensor:
    """eV, `(n_replicas,)`."""
    energies: torch.Tensor = calc_kinetic_energy(
        masses=state.masses, momenta=state.momenta, system_idx=state.system_idx
    )
    return energies
