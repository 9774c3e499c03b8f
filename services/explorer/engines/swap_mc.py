"""Dynamics with Monte Carlo swaps of unlike atoms, which sample chemical order faster than
diffusion. LAMMPS fix atom/swap (package MC): B. Sadigh et al., Phys. Rev. B 85, 184203 (2012).
"""

from __future__ import annotations

from dataclasses import replace

from dpstream.services.explorer.engines.dynamics import MolecularDynamics
from dpstream.services.explorer.lammps.script import Script
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.spec.engines import SwapMc
from dpstream.shared.values import Condition, stable_seed

LARGEST_SEED = 900_000_000
"""Largest seed of LAMMPS' Marsaglia generator."""


class Swaps(MolecularDynamics):
    def amended(self, script: Script) -> Script:
        request = self.request
        assert isinstance(request.settings, SwapMc)
        check_swaps(request.settings, request.frame)
        type_map, command = request.committee.type_map, request.command
        swaps = swap_commands(request.settings, type_map, command.condition, command.seed)
        return replace(script, dynamics=[*script.dynamics, *swaps])


def check_swaps(settings: SwapMc, frame: Frame) -> None:
    """Raises ValueError if an element to swap is not in the frame."""
    missing = sorted({symbol for pair in settings.swaps for symbol in pair} - {*frame.species})
    if missing:
        raise ValueError(f"swaps: {frame.formula} has no {missing[0]}")


def swap_commands(
    settings: SwapMc, type_map: tuple[str, ...], condition: Condition, seed: int
) -> list[str]:
    temperature = settings.temperature or condition.temperature
    return [
        f"fix swap{number} all atom/swap {settings.every} {settings.attempts} "
        f"{stable_seed(seed, 'swap', number) % LARGEST_SEED + 1} {temperature!r} "
        f"types {type_map.index(a) + 1} {type_map.index(b) + 1}"
        for number, (a, b) in enumerate(settings.swaps)
    ]
