"""Exploration engines by the `kind` that a stage's `engine` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from services.explorer.engines.base import Explorer, Piece, Trip
from services.explorer.engines.bias import ColvarsBias, PlumedBias
from services.explorer.engines.dynamics import Dynamics
from services.explorer.engines.given import GivenFrames
from services.explorer.engines.path_integrals import PathIntegrals
from services.explorer.engines.potential import OtherPotential
from services.explorer.engines.search import StructureSearch
from services.explorer.engines.swap_mc import Swaps
from services.explorer.engines.template import UserTemplate

__all__ = ["ENGINES", "Explorer", "Piece", "Trip"]

ENGINES: Mapping[str, Callable[[Trip], Explorer]] = {
    "md": Dynamics,
    "swap-mc": Swaps,
    "colvars": ColvarsBias,
    "plumed": PlumedBias,
    "potential": OtherPotential,
    "template": UserTemplate,
    "search": StructureSearch,
    "frames": GivenFrames,
    "pimd": PathIntegrals,
}
