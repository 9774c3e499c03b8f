"""TorchSim 0.6, which needs Python 3.12 and has barostats.

Nosé–Hoover chains are deterministic, so that a replica depends on no random numbers of others. The
barostat that moves the three lengths of a cell is TorchSim's Langevin one, which draws them.
"""

from __future__ import annotations

import torch
from torch_sim.integrators.md import MDState, NoseHooverChain, construct_nose_hoover_chain
from torch_sim.integrators.npt import (
    NPTLangevinAnisotropicState,
    NPTNoseHooverIsotropicState,
    npt_langevin_anisotropic_step,
    npt_nose_hoover_isotropic_step,
)
from torch_sim.integrators.nve import nve_step
from torch_sim.integrators.nvt import NVTNoseHooverState, nvt_nose_hoover_step
from torch_sim.models.interface import ModelInterface

from dpstream.services.explorer.batched.integration import (
    BAR,
    PS,
    Coupling,
    Integration,
    kinetic_energies,
)
from dpstream.services.explorer.batched.replica import CHAIN


class Conserving(Integration):
    """Velocity Verlet."""

    def step(self) -> None:
        self.state = nve_step(self.state, self.model, dt=self.dt)


class Thermostatted(Integration):
    """A chain of thermostats per replica (G. J. Martyna, M. L. Klein, M. Tuckerman, J. Chem. Phys.
    97, 2635, 1992)."""

    def __init__(self, state: MDState, model: ModelInterface, coupling: Coupling) -> None:
        super().__init__(state, model, coupling)
        fns = construct_nose_hoover_chain(self.dt, CHAIN, 1, 1, coupling.tau_t * PS)
        chain = fns.initialize(coupling.freedoms, kinetic_energies(state), coupling.kT)
        _restore(chain, coupling.chains)
        self.state = NVTNoseHooverState.from_state(state, chain=chain, _chain_fns=fns)

    def refresh(self, seed: int) -> None:
        self.state.chain.kinetic_energy = kinetic_energies(self.state)

    def step(self) -> None:
        self.state = nvt_nose_hoover_step(self.state, self.model, dt=self.dt, kT=self.coupling.kT)

    @property
    def chains(self) -> torch.Tensor:
        return _saved(self.state.chain)


class Isotropic(Integration):
    """A barostat that moves the volume (G. J. Martyna, D. J. Tobias, M. L. Klein, J. Chem. Phys.
    101, 4177, 1994), as LAMMPS' `fix npt … iso`. Its numbers: logarithm of the length and its
    momentum, positions and momenta of its own chain."""

    def __init__(self, state: MDState, model: ModelInterface, coupling: Coupling) -> None:
        super().__init__(state, model, coupling)
        kT, tau_p = coupling.kT, coupling.tau_p * PS
        atoms = torch.bincount(state.system_idx)
        mass = 3 * (atoms + 1) * kT * tau_p**2
        position, momentum = coupling.barostats[:, 0].clone(), coupling.barostats[:, 1:2].clone()
        heat = construct_nose_hoover_chain(self.dt, CHAIN, 1, 1, coupling.tau_t * PS)
        thermostat = heat.initialize(coupling.freedoms, kinetic_energies(state), kT)
        _restore(thermostat, coupling.chains)
        squeeze = construct_nose_hoover_chain(self.dt, CHAIN, 1, 1, tau_p)
        barostat = squeeze.initialize(torch.ones_like(kT), momentum[:, 0] ** 2 / (2 * mass), kT)
        _restore(barostat, coupling.barostats[:, 2:].reshape(-1, 2, CHAIN))
        self.state = NPTNoseHooverIsotropicState.from_state(
            state,
            stress=model(state)["stress"],
            reference_cell=coupling.references,
            cell_position=position,
            cell_momentum=momentum,
            cell_mass=mass,
            thermostat=thermostat,
            thermostat_fns=heat,
            barostat=barostat,
            barostat_fns=squeeze,
        )

    def refresh(self, seed: int) -> None:
        state = self.state
        state.thermostat.kinetic_energy = kinetic_energies(state)
        state.barostat.kinetic_energy = state.cell_momentum[:, 0] ** 2 / (2 * state.cell_mass)

    def step(self) -> None:
        self.state = npt_nose_hoover_isotropic_step(
            self.state,
            self.model,
            dt=self.dt,
            kT=self.coupling.kT,
            external_pressure=self.coupling.pressure * BAR,
        )

    @property
    def chains(self) -> torch.Tensor:
        return _saved(self.state.thermostat)

    @property
    def barostats(self) -> torch.Tensor:
        state = self.state
        chain = _saved(state.barostat).flatten(1)
        return torch.cat([state.cell_position[:, None], state.cell_momentum, chain], dim=1)


class Anisotropic(Integration):
    """Langevin dynamics of the atoms and of the three lengths of the cell (N. Grønbech-Jensen, O.
    Farago, J. Chem. Phys. 141, 194108, 2014). Momenta decay within tau_t, those of the cell within
    tau_p. Numbers of the barostat: logarithms of the lengths and their velocities."""

    def __init__(self, state: MDState, model: ModelInterface, coupling: Coupling) -> None:
        super().__init__(state, model, coupling)
        atoms = torch.bincount(state.system_idx)
        sums = torch.zeros_like(coupling.kT).index_add(0, state.system_idx, state.masses)
        tau_p = coupling.tau_p * PS
        mass = (atoms + 1) * coupling.kT * tau_p**2
        self.state = NPTLangevinAnisotropicState.from_state(
            state,
            stress=model(state)["stress"],
            alpha=sums / atoms / (coupling.tau_t * PS),
            cell_alpha=mass / tau_p,
            b_tau=tau_p,
            reference_cell=coupling.references,
            cell_positions=coupling.barostats[:, :3].clone(),
            cell_velocities=coupling.barostats[:, 3:6].clone(),
            cell_masses=mass,
        )

    def refresh(self, seed: int) -> None:
        self.state.rng = seed

    def step(self) -> None:
        self.state = npt_langevin_anisotropic_step(
            self.state,
            self.model,
            dt=self.dt,
            kT=self.coupling.kT,
            external_pressure=(self.coupling.pressure * BAR)[:, None].expand(-1, 3),
        )

    @property
    def barostats(self) -> torch.Tensor:
        numbers = torch.cat([self.state.cell_positions, self.state.cell_velocities], dim=1)
        return torch.nn.functional.pad(numbers, (0, self.coupling.barostats.shape[1] - 6))


def _restore(chain: NoseHooverChain, saved: torch.Tensor) -> None:
    chain.positions, chain.momenta = saved[:, 0].clone(), saved[:, 1].clone()


def _saved(chain: NoseHooverChain) -> torch.Tensor:
    return torch.stack([chain.positions, chain.momenta], dim=1)


INTEGRATIONS = {
    "nve": Conserving,
    "nvt": Thermostatted,
    "npt": Isotropic,
    "npt-iso": Isotropic,
    "npt-aniso": Anisotropic,
}
