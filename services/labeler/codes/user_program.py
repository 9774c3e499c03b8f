"""What the labeling programs have in common that a user brings along, installed and licensed."""

from __future__ import annotations

from typing import Any, ClassVar

from dpstream.services.labeler.codes.base import CodeSettings
from dpstream.services.labeler.codes.potentials import digests, lacking
from dpstream.services.labeler.machine_settings import machine_settings
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.values import Recipe

UNSTATED = "any version"


class Program:
    """A periodic plane-wave or local-orbital program with pseudopotentials. Submitting needs
    neither the program nor, once their digests are stated, its potentials."""

    name: ClassVar[str]
    default_command: ClassVar[tuple[str, ...]]
    molecular = False
    periodic = True
    electronic = False
    max_z = 118
    settings: type[CodeSettings]
    inputs = frozenset({"charge", "kpoints", "magmom"})

    def version(self, settings: dict[str, Any]) -> str:
        return self.stated_version(settings, None)

    def stated_version(self, settings: dict[str, Any], stated: str | None) -> str:
        """As exactly as it matters to the campaign (6.3 allows 6.3.2), and what the potentials
        are: `6.3; Al 0123456789abcdef`."""
        said, names = stated or UNSTATED, settings.get("potentials")
        return f"{said}; {digests(self.name, names, settings['sha256'])}" if names else said

    def method(self, settings: dict[str, Any]) -> str:
        return f"{self.name} with the keywords of the recipe"

    def semi_empirical(self, settings: dict[str, Any]) -> bool:
        return False

    def refusal(self, frame: Frame, settings: dict[str, Any]) -> str | None:
        names = settings.get("potentials")
        return lacking(frame.species, names) if names else None

    def warnings(self, frame: Frame) -> list[str]:
        return []

    def command(self, recipe: Recipe, cores: int) -> list[str]:
        """As the worker says. Raises SpecError where it cannot be started here."""
        return machine_settings().command(self.name, cores, self.default_command)

    def is_here(self) -> bool:
        """Whether this machine can run it."""
        return machine_settings().starts(self.name, self.default_command)


def is_stated(version: str, found: str | None) -> bool:
    """Whether the version that an output names is the one that the recipe states: 6.3 allows
    6.3.2, not 6.30."""
    stated = version.partition("; ")[0]
    if stated == UNSTATED or found is None:
        return True
    return found == stated or found.startswith((f"{stated}.", f"{stated}-", f"{stated} "))


def refuse(text: str, owned: dict[str, str], key: str) -> str:
    """`text` unless its keyword lines set what is not theirs to set (ValueError, with the
    remedy); keywords as in `KEY = value` or `key value`."""
    for line in text.splitlines():
        words = line.replace("=", " ").split()
        remedy = owned.get(words[0].upper()) if words else None
        if remedy is not None:
            raise ValueError(f"{words[0]} does not belong into {key}: {remedy}")
    return text
