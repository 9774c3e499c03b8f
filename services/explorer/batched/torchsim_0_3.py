"""TorchSim 0.3.0, the last release for Python 3.11 and earlier.

Its Nosé–Hoover chain (G. J. Martyna, M. L. Klein, M. Tuckerman, J. Chem. Phys. 97, 2635, 1992) is
coupled to the whole batch. Here its functions get arrays with one column per replica, so that every
replica has its own. Its barostats do not sample npt; see ADR 53.
"""

from __future__ import annotations

import torch
from torch_sim.integrators.md import (
    MDState,
    NoseHooverChain,
    NoseHooverChainFns,
    construct_nose_hoover_chain,
)
from torch_sim.integrators.nve import nve
from torch_sim.integrators.nvt import NVTNoseHooverState, nvt_nose_hoover
from torch_sim.models.interface import ModelInterface

from dpstream.services.explorer.batched.integration import (
    PS,
    Coupling,
    Integration,
    kinetic_energies,
)
from dpstream.services.explorer.batched.replica import CHAIN


class Conserving(Integration):
    """Velocity Verlet."""

    def __init__(self, state: MDState, model: ModelInterface, coupling: Coupling) -> None:
        super().__init__(state, model, coupling)
        _, self._step = nve(model, dt=self.dt, kT=torch.zeros_like(self.dt))

    def step(self) -> None:
        self.state = self._step(self.state)


class Thermostatted(Integration):
    """A chain of thermostats per replica."""

    def __init__(self, state: MDState, model: ModelInterface, coupling: Coupling) -> None:
        super().__init__(state, model, coupling)
        kT, tau = coupling.kT, coupling.tau_t * PS
        masses = (kT * tau**2).repeat(CHAIN, 1)
        masses[0] *= coupling.freedoms
        positions, momenta = coupling.chains.permute(1, 2, 0).clone()
        kinetic = kinetic_energies(state)
        chain = NoseHooverChain(positions, momenta, masses, tau, kinetic, coupling.freedoms)
        fns = _chain_functions(self.dt, tau, state.system_idx)
        self.state = NVTNoseHooverState(**vars(state), chain=chain, _chain_fns=fns)
        _, self._step = nvt_nose_hoover(model=model, dt=self.dt, kT=kT)

    def refresh(self, seed: int) -> None:
        self.state.chain.kinetic_energy = kinetic_energies(self.state)

    def step(self) -> None:
        self.state = self._step(self.state)

    @property
    def chains(self) -> torch.Tensor:
        chain = self.state.chain
        return torch.stack([chain.positions, chain.momenta]).permute(2, 0, 1)


def _chain_functions(
    dt: torch.Tensor, tau: torch.Tensor, system_idx: torch.Tensor
) -> NoseHooverChainFns:
    """TorchSim's chain, which scales the momenta of every replica by a factor of its own. The
    masses of the chain are constant, like the temperature."""
    batch = construct_nose_hoover_chain(dt, CHAIN, chain_steps=1, sy_steps=1, tau=tau)

    def half_step(
        momenta: torch.Tensor, chain: NoseHooverChain, kT: torch.Tensor
    ) -> tuple[torch.Tensor, NoseHooverChain]:
        scale, chain = batch.half_step(torch.ones_like(kT), chain, kT)
        return momenta * scale[system_idx].unsqueeze(-1), chain

    return NoseHooverChainFns(batch.initialize, half_step, lambda chain, _: chain)


INTEGRATIONS = {"nve": Conserving, "nvt": Thermostatted}
