"""The protocols of labeling codes. See `docs/adding-a-labeling-code.md`.

`Code` is what every code implements; `FileCode` is a code that runs as a program. The other
protocols are optional abilities, which the labeler detects with `isinstance`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from dpstream.services.labeler.acceptance import Outcome, Scope, Tolerance
from dpstream.services.labeler.codes.inside import check_inside
from dpstream.shared.atoms.frames import Floats, Frame
from dpstream.shared.errors import SpecError
from dpstream.shared.values import Recipe


class CodeSettings(BaseModel):
    """Base of every code's settings: everything that affects the numbers, and nothing else.

    They arrive in specs, so that a labeler checks them as `validate` does: what they check is what
    writing the input relies on, and what protects the worker. Keywords that are no danger but give
    no label are for `Code.check_labelable`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="after")
    def _inside(self) -> CodeSettings:
        check_inside(self.model_dump())
        return self


class Code(Scope, Protocol):
    """A labeling code. One that is not a `FileCode` is a Python library, called by
    `dpstream.services.labeler.child.SINGLE_POINTS[name]` in the child process."""

    @property
    def settings(self) -> type[CodeSettings]: ...

    @property
    def inputs(self) -> frozenset[str]:
        """The `LabelInputs` that it supports: charge, multiplicity, kpoints, magmom."""

    def check_labelable(self, settings: dict[str, Any]) -> None:
        """Raises ValueError, naming the setting and the remedy, for settings with which every frame
        would be rejected or get a wrong label. Asked before a campaign starts, and by no labeler: a
        campaign under way keeps what an earlier release accepted."""

    def semi_empirical(self, settings: dict[str, Any]) -> bool:
        """Whether the method is not a first-principles one; recorded in the provenance."""

    def version(self, settings: dict[str, Any]) -> str:
        """The installed version, determined without importing the code. Raises SpecError, naming
        what to install, if it is not installed."""

    def method(self, settings: dict[str, Any]) -> str:
        """The level of theory, e.g. `GFN2-xTB` or `pbe/def2-svp`."""

    def warnings(self, frame: Frame) -> list[str]:
        """Caveats about this frame's label; recorded in its provenance."""


class CodeDefaults:
    """Base of labeling codes: a first-principles method for all elements that ignores the number of
    electrons, accepts all settings and every frame, and has no caveats."""

    electronic = False
    max_z = 118
    inputs: frozenset[str] = frozenset()
    tolerance = Tolerance()

    def check_labelable(self, settings: dict[str, Any]) -> None:
        return None

    def semi_empirical(self, settings: dict[str, Any]) -> bool:
        return False

    def refusal(self, frame: Frame, settings: dict[str, Any]) -> str | None:
        return None

    def warnings(self, frame: Frame) -> list[str]:
        return []


@runtime_checkable
class Localized(Protocol):
    """A code in the child process that reads files of the worker, such as models."""

    def localized(self, recipe: Recipe) -> Recipe:
        """The recipe with the files' paths on this worker. Raises Permanent if one is missing."""


@runtime_checkable
class StatesVersion(Protocol):
    """A code whose version is known only from its output; the campaign states it in its spec."""

    def stated_version(self, settings: dict[str, Any], stated: str | None) -> str:
        """The version in the recipe. Raises SpecError if it cannot be determined."""


@runtime_checkable
class WithFiles(Protocol):
    """A code whose version in the recipe contains digests of files."""

    def files(self, settings: dict[str, Any]) -> str:
        """The digests as they follow the version. Raises SpecError if a file is not here and its
        digest not stated."""


@runtime_checkable
class Thermal(Protocol):
    """A code with Fermi–Dirac occupation, whose energy is then the electronic free energy, of which
    its forces are the derivative."""

    def at_electron_temperature(self, settings: dict[str, Any], kelvin: float) -> dict[str, Any]:
        """The settings with the electron temperature `kelvin` in place of their own smearing.
        Raises ValueError for settings that do not support it."""


@runtime_checkable
class Stressless(Protocol):
    """A program that computes no stress with some settings."""

    def no_virial(self, settings: dict[str, Any]) -> str | None:
        """The setting because of which labels of periodic frames have no virial; None if they
        have one."""


@runtime_checkable
class Retrying(Protocol):
    """A program with alternative convergence settings."""

    def tries(self, recipe: Recipe) -> Iterator[Recipe]:
        """The recipe itself, then variants that converge to the same label."""


@runtime_checkable
class Restartable(Protocol):
    """A program that can continue an interrupted single point, on any machine, from files that it
    wrote; the label is the same within its convergence."""

    @property
    def restart_name(self) -> re.Pattern[str]:
        """Names of these files, relative to the program's folder."""

    def complete(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """The files to start from, by name, of those that a run has left. None if one is missing or
        cut off: the program may have been killed while it wrote them."""

    def request_stop(self, folder: Path) -> bool:
        """Make the program that runs in `folder` end soon and write its restart files. False if it
        writes them at each iteration, so that it may be killed."""

    def use_restart(self, folder: Path) -> None:
        """Change the inputs in `folder` so that the program starts from its restart files there. If
        a file is unusable, the program may fail: a run from the beginning follows."""


@runtime_checkable
class Brought(Protocol):
    """A code whose availability depends on the machine's settings."""

    def is_here(self) -> bool:
        """Whether this machine can run it."""


@runtime_checkable
class FileCode(Code, Brought, Protocol):
    """A code that is a program: it reads input files in a new folder and writes output files."""

    def write_inputs(self, frame: Frame, recipe: Recipe, folder: Path) -> None: ...

    def command(self, recipe: Recipe, cores: int) -> list[str]:
        """Program and arguments, never a shell string. Standard output goes to the file
        `stdout`."""

    def read_outputs(self, folder: Path, frame: Frame, exit_status: int) -> Outcome:
        """The outcome from the files in `folder`; does not raise for incomplete or garbled
        output."""


def installed_version(distribution: str, extra: str = "labeler") -> str:
    """Version of an installed distribution. Raises SpecError, naming what to install."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise SpecError(
            f"labels.code: {distribution} is not installed; pip install 'dpstream[{extra}]', or "
            "use dpstream submit to run the campaign on a deployment"
        ) from None


def cell_widths(cell: Floats) -> Floats:
    """Distances `(3,)` in Å between opposite faces of a cell `(3, 3)`."""
    widths: Floats = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    return widths
