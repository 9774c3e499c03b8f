"""Checks an engine's settings when a campaign is submitted, without starting an engine."""

from __future__ import annotations

from pathlib import Path

from dpstream.services.explorer.engines.atoms import numbered
from dpstream.services.explorer.engines.batched import check_dynamics
from dpstream.services.explorer.engines.bias import checked, colvars_input
from dpstream.services.explorer.engines.gromacs import gromacs_inputs
from dpstream.services.explorer.engines.path_integrals import pimd_fix
from dpstream.services.explorer.engines.potential import pair_commands
from dpstream.services.explorer.engines.swap_mc import check_swaps
from dpstream.services.explorer.engines.template import parse, standard_words
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.spec import Stage
from dpstream.shared.spec.engines import (
    Batched,
    Colvars,
    Gromacs,
    Pimd,
    Plumed,
    Potential,
    SwapMc,
    Template,
)
from dpstream.shared.values import Condition


def check_engine(stage: Stage, condition: Condition, frame: Frame, trusting: bool) -> None:
    """Raises ValueError if no worker could run a trajectory from the canonical `frame` with these
    settings or, unless `trusting`, if workers would refuse them."""
    settings = stage.engine
    if isinstance(settings, SwapMc):
        check_swaps(settings, frame)
    elif isinstance(settings, Colvars):
        colvars_input(settings, frame.species, trusting)
    elif isinstance(settings, Plumed):
        checked(numbered(settings.input, frame.species, ","), trusting)
    elif isinstance(settings, Potential):
        pair_commands(settings, {name: Path(name) for name in settings.files}, trusting)
    elif isinstance(settings, Batched):
        check_dynamics(stage.md, frame)
    elif isinstance(settings, Pimd):
        pimd_fix(stage.md, condition)
    elif isinstance(settings, Gromacs):
        gromacs_inputs(settings, stage.md, condition, frame.cell is None, 0)
    elif isinstance(settings, Template):
        row = settings.rows(condition.system)[condition.revision or 0]
        parse(settings, standard_words(stage.md, condition, 0), row, stage.md, trusting)
