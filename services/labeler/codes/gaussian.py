"""Gaussian: molecules, by the user's route section.

Gaussian 16, M. J. Frisch et al., Gaussian, Inc., Wallingford CT (2016). Licensed: each worker
brings its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from dpstream.services.labeler.acceptance import Outcome
from dpstream.services.labeler.codes.base import CodeSettings
from dpstream.services.labeler.codes.input_words import route_words
from dpstream.services.labeler.codes.parse import NUMBER, numbers, read_text, rows_after, scaled
from dpstream.services.labeler.codes.user_program import Program
from dpstream.services.labeler.codes.write import table
from dpstream.services.labeler.units import BOHR, HARTREE
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.values import Recipe

INPUT = "input.gjf"
BEYOND_SCF = "forces of a post-SCF method: only SCF energies (HF, DFT) are supported"
OTHER_TASKS = frozenset({"opt", "freq", "scan", "irc", "ircmax", "bomd", "admp", "cphf", "stable"})
BEYOND: Mapping[str, tuple[str, str]] = {
    "perturbation theory": (r"(?:ro|r|u)?mp[2-5](?![a-z])", r"EUMP\d =|\\MP\d[\w()-]*="),
    "double hybrids": (
        r"(?:ro|r|u)?(?:b2plyp|mpw2plyp|dsdpbep86|pbe0dh|pbeqidh)",
        r"\bE2\(\w+\) =",
    ),
    "coupled clusters, configuration interaction": (
        r"(?:ro|r|u)?(?:ccsd|ccd|qcisd|cisd|cid|bd)(?![a-z])",
        r"E\(CORR\)=|CCSD\(T\)= |\\(?:CC|QCI|CI)[\w()-]*=",
    ),
    "excited states": (
        r"(?:ro|r|u)?(?:cis|eomccsd)(?![a-z])|td(?:a|$|-)",
        r"E\((?i:CIS)(?:/TDA)?\) =|E\(TD-HF/TD-DFT\)",
    ),
}
"""Methods of which the forces are not the derivative of the SCF energy: the beginning of their
keywords in a route section, and what the output has at each step or in its archive entry."""
POST_SCF = re.compile("|".join(keyword for keyword, _ in BEYOND.values()))
PRINTED_BEYOND = re.compile("|".join(printed for _, printed in BEYOND.values()))
RUNS_PROGRAM = re.compile(r"\bext(?!ra)", re.IGNORECASE)
OTHER_FILES = re.compile(r"\s*(?:[%@]|--\s*link)", re.IGNORECASE)
"""Link 0 commands, included files and further jobs."""
BROKEN = (">>>>>>>>>> Convergence criterion not met", "Convergence failure")


class GaussianSettings(CodeSettings):
    keywords: str = Field(
        min_length=1, description="route section, e.g. force b3lyp/6-31g(d,p) nosymm scf=tight"
    )
    extra: str = Field(default="", description="input after the geometry: a basis set, charges…")

    @field_validator("keywords")
    @classmethod
    def _one_route(cls, text: str) -> str:
        if "\n" in text.strip():
            raise ValueError("must be one line; what follows the geometry is `extra`")
        if RUNS_PROGRAM.search(text):
            raise ValueError("external is not allowed: it runs a program")
        return text.strip()

    @field_validator("extra")
    @classmethod
    def _of_this_job(cls, text: str) -> str:
        for line in text.splitlines():
            if OTHER_FILES.match(line):
                raise ValueError(f"{line.strip()!r}: remove it; it names files or begins a job")
        return text


def _check_route(words: Collection[str]) -> None:
    """Raises ValueError unless the route section asks for forces of an SCF energy alone."""
    if "force" not in words:
        raise ValueError("keywords: add force; a label needs forces")
    for word in words:
        if word in OTHER_TASKS:
            raise ValueError(
                f"keywords: {word}: remove it; a label is the single point of one frame"
            )
        if POST_SCF.match(word):
            raise ValueError(f"keywords: {word}: {BEYOND_SCF}")


class Gaussian(Program):
    name = "gaussian"
    default_command = ("g16", INPUT)
    molecular = True
    periodic = False
    electronic = True
    settings: type[CodeSettings] = GaussianSettings
    inputs = frozenset({"charge", "multiplicity"})

    def check_labelable(self, settings: dict[str, Any]) -> None:
        _check_route(route_words(settings["keywords"]))

    def method(self, settings: dict[str, Any]) -> str:
        return str(settings["keywords"])

    def write_inputs(self, frame: Frame, recipe: Recipe, folder: Path) -> None:
        atoms = zip(frame.species, table(frame.positions, 6).splitlines(), strict=True)
        geometry = "\n".join(f"{symbol} {position}" for symbol, position in atoms)
        route = recipe.settings["keywords"]
        route = route if route.startswith("#") else f"# {route}"
        spin = f"{recipe.charge} {recipe.multiplicity}"
        parts = (route, frame.formula, f"{spin}\n{geometry}", recipe.settings["extra"].strip())
        (folder / INPUT).write_text("\n\n".join(part for part in parts if part) + "\n\n")

    def read_outputs(self, folder: Path, frame: Frame, exit_status: int) -> Outcome:
        """Reads forces and positions in the input orientation, also with symmetry."""
        text = read_text(folder / "input.log") or read_text(folder / "stdout")
        lines = text.splitlines()
        energies = numbers(rf"SCF Done:  E\([^)]*\) =\s*({NUMBER})", text)
        is_beyond = any(map(PRINTED_BEYOND.search, (text, _archive(text))))
        forces = rows_after(lines, r"Forces \(Hartrees/Bohr\)", slice(2, 5), skip=3)
        return Outcome(
            exit_status=exit_status,
            end_marker="Normal termination of Gaussian" in _tail(lines),
            converged=bool(energies),
            not_converged=any(words in text for words in BROKEN),
            energies=() if is_beyond else tuple(energy * HARTREE for energy in energies),
            frames=text.count("Forces (Hartrees/Bohr)"),
            forces=scaled(forces, HARTREE / BOHR),
            positions=rows_after(lines, "Input orientation:", slice(3, 6), skip=5),
            messages=(BEYOND_SCF,) if is_beyond else (),
            program=_program(text),
        )


def _tail(lines: list[str]) -> str:
    return lines[-1] if lines else ""


def _archive(text: str) -> str:
    """The last archive entry, with its line breaks removed."""
    return text[max(text.rfind("1\\1\\"), 0) :].replace("\n ", "")


def _program(text: str) -> str | None:
    found = re.search(r"Gaussian (\d+), Revision ([^,\s]+),", text)
    return None if found is None else f"{found[1]}.{found[2]}"
