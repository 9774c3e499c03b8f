"""Exploration engines by the `kind` that a stage's `engine` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dpstream.services.explorer.engines.base import (
    ExplorationEngine,
    TrajectoryRequest,
    TrajectorySegment,
)
from dpstream.services.explorer.engines.batched import BatchedDynamics
from dpstream.services.explorer.engines.bias import ColvarsBias, PlumedBias
from dpstream.services.explorer.engines.dynamics import MolecularDynamics
from dpstream.services.explorer.engines.frames import GivenFrames
from dpstream.services.explorer.engines.gromacs import GromacsDynamics
from dpstream.services.explorer.engines.path_integrals import PathIntegrals
from dpstream.services.explorer.engines.potential import OtherPotential
from dpstream.services.explorer.engines.search import StructureSearch
from dpstream.services.explorer.engines.swap_mc import Swaps
from dpstream.services.explorer.engines.template import UserTemplate

__all__ = ["ENGINES", "ExplorationEngine", "TrajectoryRequest", "TrajectorySegment"]

ENGINES: Mapping[str, Callable[[TrajectoryRequest], ExplorationEngine]] = {
    "md": MolecularDynamics,
    "batched": BatchedDynamics,
    "swap-mc": Swaps,
    "colvars": ColvarsBias,
    "plumed": PlumedBias,
    "potential": OtherPotential,
    "template": UserTemplate,
    "search": StructureSearch,
    "frames": GivenFrames,
    "pimd": PathIntegrals,
    "gromacs": GromacsDynamics,
}
