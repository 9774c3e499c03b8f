"""TorchSim's integrators on batches of replicas (0.3.0).

Energy-conserving dynamics is velocity Verlet; the thermostat is a Nosé–Hoover chain (G. J. Martyna,
M. L. Klein, M. Tuckerman, J. Chem. Phys. 97, 2635, 1992), which is deterministic, so that a replica
depends on no random numbers of others. TorchSim 0.3.0 couples one chain to the whole batch. Here
its chain functions get arrays with one column per replica, so that every replica has its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
from torch_sim.quantities import calc_kinetic_energy
from torch_sim.units import MetalUnits

from dpstream.services.explorer.batched.replica import CHAIN

PS = float(MetalUnits.time)
"""One picosecond in TorchSim's unit of time, Å √(amu/eV)."""
KELVIN = float(MetalUnits.temperature)
"""One kelvin as an energy, eV."""
Step = Callable[[MDState], MDState]


@dataclass(frozen=True, eq=False)
class Thermostats:
    """Of every replica: `temperature` K, `tau` ps and `freedoms`, all `(n_replicas,)`; positions
    and momenta of its chain `(CHAIN, n_replicas)`."""

    temperature: torch.Tensor
    tau: torch.Tensor
    freedoms: torch.Tensor
    positions: torch.Tensor
    momenta: torch.Tensor


def conserving(state: MDState, model: ModelInterface, timestep: float) -> tuple[MDState, Step]:
    """A batch at constant energy, with the function that makes one step of `timestep` ps."""
    _, step = nve(model, dt=_tensor(timestep * PS, state), kT=_tensor(0.0, state))
    return state, step


def thermostatted(
    state: MDState, model: ModelInterface, timestep: float, thermostats: Thermostats
) -> tuple[NVTNoseHooverState, Step]:
    """A batch with a chain of thermostats per replica, and the function that makes one step."""
    dt, kT = _tensor(timestep * PS, state), thermostats.temperature * KELVIN
    tau = thermostats.tau * PS
    masses = (kT * tau**2).repeat(CHAIN, 1)
    masses[0] *= thermostats.freedoms
    kinetic = calc_kinetic_energy(
        masses=state.masses, momenta=state.momenta, system_idx=state.system_idx
    )
    chain = NoseHooverChain(
        thermostats.positions, thermostats.momenta, masses, tau, kinetic, thermostats.freedoms
    )
    fns = _chain_functions(dt, tau, state.system_idx)
    coupled = NVTNoseHooverState(**vars(state), chain=chain, _chain_fns=fns)
    _, step = nvt_nose_hoover(model=model, dt=dt, kT=kT)
    return coupled, step


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


def _tensor(value: float, state: MDState) -> torch.Tensor:
    return torch.tensor(value, dtype=state.dtype, device=state.device)
