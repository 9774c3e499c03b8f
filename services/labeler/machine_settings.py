"""Settings of a machine's labeling programs: commands and folders of potentials.

They are never part of a message: a campaign names a code and the potential of an element; each
worker's settings define the command and the file.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings

from dpstream.shared.errors import SpecError
from dpstream.shared.settings import StoreSettings, read_settings
from dpstream.shared.spec.errors import did_you_mean


def _by_code(value: Any) -> Any:
    """Parses `a=x; b=y` into `{"a": "x", "b": "y"}`."""
    if not isinstance(value, str):
        return value
    parts = [part.partition("=") for part in value.split(";") if part.strip()]
    if any(not name.strip() or not text.strip() for name, _, text in parts):
        raise ValueError("must be code=value pairs, separated by semicolons")
    return {name.strip(): text.strip() for name, _, text in parts}


def _are_commands(commands: dict[str, str]) -> dict[str, str]:
    for command in commands.values():
        shlex.split(command)  # raises ValueError for unbalanced quotes
    return commands


def _are_folders(folders: dict[str, Path]) -> dict[str, Path]:
    for folder in folders.values():
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
    return folders


ByCode = BeforeValidator(_by_code)


class MachineSettings(BaseSettings):
    """Settings of a machine's labeling programs."""

    model_config = StoreSettings.model_config

    labeler_commands: Annotated[dict[str, str], ByCode, AfterValidator(_are_commands)] = Field(
        default_factory=dict,
        description="commands of labeling programs by code, separated by semicolons: vasp=mpirun "
        "-np {cores} vasp_std; NAME=… for a campaign's custom program NAME",
    )
    labeler_potentials: Annotated[dict[str, Path], ByCode, AfterValidator(_are_folders)] = Field(
        default_factory=dict,
        description="folders of pseudopotentials, orbitals and models, by code, separated by "
        "semicolons: vasp=/opt/potcar; abacus=/opt/sg15",
    )

    def command(self, name: str, cores: int, default: Sequence[str] = ()) -> list[str]:
        """Program and arguments of code or custom program `name`. Raises SpecError if this machine
        cannot start it."""
        own = self.labeler_commands.get(name)
        command = list(default) if own is None else shlex.split(own)
        if not command:
            hint = did_you_mean(name, self.labeler_commands)
            raise SpecError(
                f"no command for {name!r} on this machine: set DPSTREAM_LABELER_COMMANDS="
                f"'{name}=PROGRAM ARGUMENTS'{hint}"
            )
        program = command[0]
        if shutil.which(program) is None:
            raise SpecError(
                f"{name}: {program}: no such program on this machine; set "
                f"DPSTREAM_LABELER_COMMANDS='{name}=/path/to/PROGRAM ARGUMENTS'"
            )
        return [word.replace("{cores}", str(cores)) for word in command]

    def starts(self, name: str, default: Sequence[str] = ()) -> bool:
        """Whether this machine can start code or custom program `name`."""
        try:
            self.command(name, 1, default)
        except SpecError:
            return False
        return True

    def folder(self, code: str) -> Path | None:
        """Folder of the potentials of `code`; None if not set."""
        return self.labeler_potentials.get(code)


def machine_settings() -> MachineSettings:
    """The machine's settings, from the environment."""
    return read_settings(MachineSettings)
