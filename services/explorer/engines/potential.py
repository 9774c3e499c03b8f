"""Dynamics driven by an existing potential (any pair style of LAMMPS) and judged by the
committee."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from dpstream.services.explorer.engines.dynamics import MolecularDynamics
from dpstream.shared.spec.engines import Potential

COMMANDS = ("pair_style", "pair_coeff", "pair_modify")
RUNS_CODE = frozenset(
    {"python", "mdi", "kim", "mliap", "deepmd", "deepspin", "nequip", "allegro", "mace"}
)
"""Pair styles that execute code, such as that of a model file, or communicate with other
processes."""


class OtherPotential(MolecularDynamics):
    def pair(self) -> list[str]:
        settings = self.request.settings
        assert isinstance(settings, Potential)
        folder = self.request.resources.scratch / "potentials"
        files = {name: _kept(text, folder) for name, text in settings.files.items()}
        return pair_commands(settings, files, self.request.resources.trusting)

    def judges(self) -> Sequence[Path]:
        return self.request.committee.models

    def switch_committee(self) -> None:
        """Nothing to do: the potential, not the committee, computes the forces."""


def pair_commands(settings: Potential, files: dict[str, Path], trusting: bool = False) -> list[str]:
    """The user's commands with paths in place of the names of `files`. Raises ValueError for other
    commands, for files outside the campaign and for styles that execute code."""
    return [_command(command, files, trusting) for command in settings.pair]


def _command(command: str, files: dict[str, Path], trusting: bool) -> str:
    words = command.split()
    if not words or words[0] not in COMMANDS:
        raise ValueError(f"pair: {command!r}: must begin with {', '.join(COMMANDS)}")
    for word in words[1:]:
        if trusting:
            break
        runs_code = word.partition("/")[0] in RUNS_CODE
        if runs_code or re.match(r"[/~.]|.*\.\./", word) or set(word) & set("\"'&;$"):
            raise ValueError(
                f"pair: {command!r}: {word!r} runs code or names a file outside the campaign"
            )
    return " ".join(f'"{files[word]}"' if word in files else word for word in words)


def _kept(text: str, folder: Path) -> Path:
    """`text` as a file named by its digest, shared by all trajectories."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(text.encode()).hexdigest()
    if not path.exists():
        path.write_text(text)
    return path
