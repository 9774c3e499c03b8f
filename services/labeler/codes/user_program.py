"""Base of labeling programs that the worker's operator installs and licenses."""

from __future__ import annotations

from typing import Any, ClassVar

from dpstream.services.labeler.codes.base import CodeDefaults, CodeSettings
from dpstream.services.labeler.codes.potentials import digests, lacking
from dpstream.services.labeler.machine_settings import machine_settings
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.values import Recipe

UNSTATED = "any version"


class Program(CodeDefaults):
    """A periodic plane-wave or local-orbital program with pseudopotentials. A campaign can be
    submitted without the program and, if their digests are stated, without the potentials."""

    name: ClassVar[str]
    default_command: ClassVar[tuple[str, ...]]
    molecular = False
    periodic = True
    settings: type[CodeSettings]
    inputs = frozenset({"charge", "kpoints", "magmom"})

    def version(self, settings: dict[str, Any]) -> str:
        return self.stated_version(settings, None)

    def stated_version(self, settings: dict[str, Any], stated: str | None) -> str:
        """The stated version (6.3 allows 6.3.2) and the digests of the potentials:
        `6.3; Al 0123456789abcdef`."""
        version, names = stated or UNSTATED, settings.get("potentials")
        return f"{version}; {digests(self.name, names, settings['sha256'])}" if names else version

    def method(self, settings: dict[str, Any]) -> str:
        return f"{self.name} with the keywords of the recipe"

    def refusal(self, frame: Frame, settings: dict[str, Any]) -> str | None:
        names = settings.get("potentials")
        return lacking(frame.species, names) if names else None

    def command(self, recipe: Recipe, cores: int) -> list[str]:
        """The machine's command. Raises SpecError if this machine cannot start the program."""
        return machine_settings().command(self.name, cores, self.default_command)

    def is_here(self) -> bool:
        """Whether this machine can run it."""
        return machine_settings().starts(self.name, self.default_command)


def is_stated(version: str, found: str | None) -> bool:
    """Whether the version in an output agrees with that of the recipe: 6.3 allows 6.3.2 but not
    6.30."""
    stated = version.partition("; ")[0]
    if stated == UNSTATED or found is None:
        return True
    return found == stated or found.startswith((f"{stated}.", f"{stated}-", f"{stated} "))
