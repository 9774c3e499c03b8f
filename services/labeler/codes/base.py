"""The protocol of a labeling code. See `docs/adding-a-labeling-code.md`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from pydantic import BaseModel, ConfigDict

from dpstream.services.labeler.acceptance import Outcome, Scope
from dpstream.shared.atoms.frames import Floats, Frame
from dpstream.shared.errors import SpecError
from dpstream.shared.values import Recipe


class CodeSettings(BaseModel):
    """Base of every code's settings: whatever changes the numbers, nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Code(Scope, Protocol):
    """What every labeling code states about itself. One that is no `FileCode` is a Python library,
    computed by `dpstream.services.labeler.child.SINGLE_POINTS[name]` in the warm engine child."""

    @property
    def settings(self) -> type[CodeSettings]: ...

    @property
    def inputs(self) -> frozenset[str]:
        """Which `LabelInputs` it takes: charge, multiplicity, kpoints, magmom."""

    def semi_empirical(self, settings: dict[str, Any]) -> bool:
        """True when the numbers are no first-principles result; kept in every provenance."""

    def version(self, settings: dict[str, Any]) -> str:
        """The installed version, found without importing the code. Raises SpecError when it is
        not installed, naming what to install."""

    def method(self, settings: dict[str, Any]) -> str:
        """The level of theory in the field's words, e.g. `GFN2-xTB` or `pbe/def2-svp`."""

    def warnings(self, frame: Frame) -> list[str]:
        """What a reader of this frame's label should know; kept in its provenance."""


@runtime_checkable
class Localized(Protocol):
    """A code in the engine child that reads files of the worker's own."""

    def localized(self, recipe: Recipe) -> Recipe:
        """The recipe with their paths on this worker. Raises Permanent where one is missing."""


@runtime_checkable
class Stated(Protocol):
    """A code whose version is known from its output at the earliest: the campaign states it."""

    def stated_version(self, settings: dict[str, Any], stated: str | None) -> str:
        """What goes into the recipe. Raises SpecError where it cannot be told."""


@runtime_checkable
class Thermal(Protocol):
    """A code that occupies levels by Fermi and Dirac, and whose energy is then the free energy of
    the electrons, of which its forces are the derivative."""

    def at_electron_temperature(self, settings: dict[str, Any], kelvin: float) -> dict[str, Any]:
        """The settings with electrons at `kelvin`, whatever they say of smearing. Raises ValueError
        for settings that have none."""


@runtime_checkable
class Retrying(Protocol):
    """A program that may be told to converge in more than one way."""

    def tries(self, recipe: Recipe) -> Iterator[Recipe]:
        """The recipe itself, and others that lead to the same label."""


@runtime_checkable
class Brought(Protocol):
    """A code that needs what only a machine's own settings can tell."""

    def is_here(self) -> bool:
        """Whether this machine can run it."""


@runtime_checkable
class FileCode(Code, Brought, Protocol):
    """A code that is a program: it reads files, runs in a fresh folder, leaves files."""

    def write_inputs(self, frame: Frame, recipe: Recipe, folder: Path) -> None: ...

    def command(self, recipe: Recipe, cores: int) -> list[str]:
        """Program and arguments; never a shell string. Its output goes to `stdout`."""

    def read_outputs(self, folder: Path, frame: Frame, exit_status: int) -> Outcome:
        """The facts found in `folder`; never raises on an incomplete or garbled output."""


def installed_version(distribution: str, extra: str = "labeler") -> str:
    """The version of an installed distribution; SpecError names what to install."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise SpecError(
            f"labels.code: {distribution} is not installed; pip install 'dpstream[{extra}]'"
        ) from None


def cell_widths(cell: Floats) -> Floats:
    """Distances `(3,)` in Å between opposite faces of a cell `(3, 3)`."""
    widths: Floats = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    return widths
