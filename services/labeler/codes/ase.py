"""Any calculator of the Atomic Simulation Environment, by dotted name.

A. H. Larsen et al., J. Phys.: Condens. Matter 29, 273002 (2017). A worker uses only the
calculators in its allow-list.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

from pydantic import Field, field_validator

from dpstream.services.labeler.codes.base import CodeDefaults, CodeSettings, installed_version
from dpstream.shared.errors import SpecError
from dpstream.shared.spec.errors import did_you_mean

SHIPPED = frozenset(
    {
        "ase.calculators.emt.EMT",
        "ase.calculators.lj.LennardJones",
        "ase.calculators.morse.MorsePotential",
        "tblite.ase.TBLite",
    }
)
"""Calculators that cannot run programs or read files; a worker allows them by default. All are
classical or semi-empirical."""


class AseSettings(CodeSettings):
    calculator: str = Field(description="dotted name of the class, e.g. ase.calculators.emt.EMT")
    arguments: dict[str, Any] = Field(default={}, description="its keyword arguments")

    @field_validator("calculator")
    @classmethod
    def _dotted(cls, name: str) -> str:
        parts = name.split(".")
        if len(parts) < 2 or not all(part.isidentifier() for part in parts):
            raise ValueError("give the class by dotted name, e.g. ase.calculators.emt.EMT")
        return name


class Ase(CodeDefaults):
    """An ASE calculator in the child process. Charge and spin are arguments of the calculator."""

    name = "ase"
    molecular = True
    periodic = True
    settings: type[CodeSettings] = AseSettings

    def version(self, settings: dict[str, Any]) -> str:
        """Versions of ASE and, for a class outside ASE, of its package."""
        package = str(settings["calculator"]).split(".")[0]
        ase = f"ase {installed_version('ase')}"
        if package == "ase":
            return ase
        return f"{package} {_version_of(package)}, {ase}"

    def method(self, settings: dict[str, Any]) -> str:
        return str(settings["calculator"])

    def semi_empirical(self, settings: dict[str, Any]) -> bool:
        return str(settings["calculator"]) in SHIPPED


def check_calculator(name: str) -> None:
    """Raises SpecError if no class of this dotted name can be imported. Imports its module."""
    key, (module, _, own) = "labels.settings.calculator", name.rpartition(".")
    try:
        found = vars(importlib.import_module(module))
    except ImportError as error:
        raise SpecError(f"{key}: {name}: cannot be imported: {error}") from error
    if own not in found:
        classes = [each for each, value in found.items() if isinstance(value, type)]
        raise SpecError(f"{key}: {module} has no class {own!r}{did_you_mean(own, classes)}")


def _version_of(package: str) -> str:
    try:  # most distributions have the name of their package
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return metadata.version(_distribution_of(package))


def _distribution_of(package: str) -> str:
    names = metadata.packages_distributions().get(package)  # slow: it reads what each one installed
    if not names:
        raise SpecError(f"labels.settings.calculator: no package {package!r} is installed")
    return names[0]
