"""ABACUS, with plane waves or numerical atomic orbitals: the user's INPUT; dpstream writes STRU and
KPT.

M. Chen, G.-C. Guo, L. He, J. Phys.: Condens. Matter 22, 445501 (2010); P. Li et al., Comput. Mater.
Sci. 112, 503 (2016).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from ase.data import atomic_masses, atomic_numbers
from pydantic import BeforeValidator, Field, field_validator

from dpstream.services.labeler.acceptance import Outcome
from dpstream.services.labeler.codes.base import CodeSettings
from dpstream.services.labeler.codes.input_words import abacus_words, number_of, refuse
from dpstream.services.labeler.codes.parse import (
    NUMBER,
    first,
    last_line,
    numbers,
    read_text,
    triples,
)
from dpstream.services.labeler.codes.potentials import (
    PotentialName,
    WithPotentials,
    digests,
    lacking,
    potential,
)
from dpstream.services.labeler.codes.user_program import Program
from dpstream.services.labeler.codes.write import (
    by_element,
    fractions,
    from_fractions,
    keywords,
    table,
    volume,
)
from dpstream.services.labeler.units import BOHR, BOLTZMANN, KBAR, RYDBERG
from dpstream.shared.atoms.frames import Floats, Frame
from dpstream.shared.values import Kpoints, Recipe

SUFFIX = "label"
HEADER = "INPUT_PARAMETERS"
ORBITALS = "labels.settings.orbitals"
OURS = "dpstream writes it"
NOT_THE_USERS = {
    **dict.fromkeys(("SUFFIX", "STRU_FILE", "KPOINT_FILE", "PSEUDO_DIR", "ORBITAL_DIR"), OURS),
    **dict.fromkeys(("CALCULATION", "CAL_FORCE", "CAL_STRESS", "NTYPE"), OURS),
}
"""Keywords that name files, or that the input has already."""
PER_SYSTEM = dict.fromkeys(("NELEC", "NELEC_DELTA"), "give systems.NAME.label.charge")
FROM_FILES = (("init_chg", "file"), ("init_wfc", "file"))
CLASSICAL = ("lj", "dp", "nep")
SMEARING = re.compile(r"\s*smearing(_method|_sigma|_sigma_temp)?\s", re.IGNORECASE)
CONVERGED = re.compile("(?i)charge density convergence is achieved|#SCF IS CONVERGED#")
BROKEN = re.compile("(?i)convergence has not been achieved|SCF IS NOT CONVERGED")
ENERGIES = (r"(?i)FINAL_ETOT_IS", r"(?i)final etot is", r"(?i)#TOTAL ENERGY#")
"""Labels of the final energy in versions 2 to 3, long-term and development versions."""
FORCES, STRESS = r"(?i)TOTAL-FORCE \(eV/Angstrom\)", r"(?i)TOTAL-STRESS \(kbar\)"
"""Headings, in capitals or not by version."""


def _input(given: Any) -> Any:
    return keywords(given, "{key} {value}", {True: "1", False: "0"})


class AbacusSettings(WithPotentials):
    input: Annotated[str, BeforeValidator(_input)] = Field(
        min_length=1,
        description="keywords of INPUT: a text, {file: INPUT} or a mapping; passed untouched",
    )
    orbitals: dict[str, PotentialName] = Field(
        default={}, description="numerical orbitals by element, for basis_type lcao"
    )
    orbitals_sha256: dict[str, str] = Field(
        default={}, description="first digits of the orbitals' sha256, by element"
    )
    kpoints: Kpoints | None = Field(
        default=None, description="mesh around Γ; default: kspacing or gamma_only in the input"
    )

    @field_validator("input")
    @classmethod
    def _general(cls, text: str) -> str:
        text = text.replace(HEADER, "")  # INPUT is written with its own
        refuse(abacus_words(text), NOT_THE_USERS)
        return text


def _check_words(words: Mapping[str, str]) -> None:
    """Raises ValueError for keywords that are not the user's, and for those with which ABACUS gives
    anything but energy and forces of the electrons in one frame."""
    refuse(words, PER_SYSTEM, "input: ")
    for key, value in FROM_FILES:
        if words.get(key, "").lower().startswith(value):
            raise ValueError(
                f"input: {key} {words[key]}: remove it; the folder of a run has no such file"
            )
    if words.get("esolver_type", "").lower().startswith(CLASSICAL):
        raise ValueError("input: esolver_type: must be a method with electrons, e.g. ksdft")


def _check_whole(words: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    """Raises ValueError where k-points or orbitals are missing."""
    at_gamma = words.get("gamma_only", "").lower().startswith(("1", "t"))
    meshed = settings["kpoints"] is not None or number_of(words.get("kspacing", ""), 0) > 0
    if not (meshed or at_gamma):
        raise ValueError("kpoints: give them, or kspacing or gamma_only 1 in the input")
    missing = sorted(settings["potentials"].keys() - settings["orbitals"].keys())
    if words.get("basis_type", "").lower().startswith("lcao") and missing:
        raise ValueError(f"orbitals: basis_type lcao needs one of {', '.join(missing)}")


class Abacus(Program):
    name = "abacus"
    default_command = ("abacus",)
    settings: type[CodeSettings] = AbacusSettings

    def check_labelable(self, settings: dict[str, Any]) -> None:
        words = abacus_words(settings["input"])
        _check_words(words)
        _check_whole(words, settings)

    def stated_version(self, settings: dict[str, Any], stated: str | None) -> str:
        version = super().stated_version(settings, stated)
        if not settings["orbitals"]:
            return version
        known = settings["orbitals_sha256"]
        return f"{version}; {digests(self.name, settings['orbitals'], known, ORBITALS)}"

    def refusal(self, frame: Frame, settings: dict[str, Any]) -> str | None:
        orbitals = settings["orbitals"]
        missing = lacking(frame.species, orbitals) if orbitals else None
        return super().refusal(frame, settings) or missing

    def at_electron_temperature(self, settings: dict[str, Any], kelvin: float) -> dict[str, Any]:
        """The final energy is E − TS. The user's smearing keywords are removed: each may appear
        once."""
        kept = [line for line in settings["input"].splitlines() if not SMEARING.match(line)]
        width = f"{kelvin * BOLTZMANN / RYDBERG:.10f}"
        words = _input({"smearing_method": "fd", "smearing_sigma": width})
        return {**settings, "input": "\n".join((words.strip(), *kept))}

    def write_inputs(self, frame: Frame, recipe: Recipe, folder: Path) -> None:
        settings = recipe.settings
        for symbol, _ in by_element(frame):
            shutil.copy(potential(self.name, settings["potentials"], symbol), folder / _upf(symbol))
            if settings["orbitals"]:
                orbital = potential(self.name, settings["orbitals"], symbol)
                shutil.copy(orbital, folder / _orb(symbol))
        (folder / "INPUT").write_text(_input_text(frame, recipe))
        (folder / "STRU").write_text(stru(frame, recipe))
        mesh = settings["kpoints"]
        if mesh is not None:
            numbers = " ".join(map(str, mesh))
            (folder / "KPT").write_text(f"K_POINTS\n0\nGamma\n{numbers} 0 0 0\n")

    def read_outputs(self, folder: Path, frame: Frame, exit_status: int) -> Outcome:
        text = read_text(folder / f"OUT.{SUFFIX}" / "running_scf.log")
        lines = text.splitlines()
        found = (numbers(rf"{words}\s*=?\s*({NUMBER})", text) for words in ENERGIES)
        return Outcome(
            exit_status=exit_status,
            end_marker=re.search(r"(?im)^\s*Total\s+Time\s*:", text) is not None,
            converged=CONVERGED.search(text) is not None,
            not_converged=BROKEN.search(text) is not None,
            energies=next((energies for energies in found if energies), ()),
            frames=len(re.findall(FORCES, text)),
            forces=_block(lines, FORCES, slice(1, 4)),
            virial=_virial(lines, frame),
            positions=_positions(lines, frame),
            program=first(r"\bv(\d+(?:\.\d+)+\S*)", text),
        )


def _upf(symbol: str) -> str:
    return f"{symbol}.upf"


def _orb(symbol: str) -> str:
    return f"{symbol}.orb"


def _input_text(frame: Frame, recipe: Recipe) -> str:
    ours = {
        "suffix": SUFFIX,
        "calculation": "scf",
        "ntype": len(by_element(frame)),
        "pseudo_dir": "./",
        "orbital_dir": "./",
        "cal_force": 1,
        "cal_stress": 1,
    }
    if recipe.charge:
        ours["nelec_delta"] = -recipe.charge
    lines = "".join(f"{key} {value}\n" for key, value in ours.items())
    return f"{HEADER}\n{lines}{recipe.settings['input'].strip()}\n"


def stru(frame: Frame, recipe: Recipe) -> str:
    """STRU, fractional coordinates. Moments in µB, one per atom."""
    assert frame.cell is not None
    symbols = [symbol for symbol, _ in by_element(frame)]
    sections = [
        ("ATOMIC_SPECIES", "\n".join(f"{s} {_mass(s):.4f} {_upf(s)}" for s in symbols)),
        ("LATTICE_CONSTANT", f"{1 / BOHR:.15f}"),
        ("LATTICE_VECTORS", table(frame.cell, 6)),
        ("ATOMIC_POSITIONS", "Direct\n" + "\n".join(_atoms(frame, recipe))),
    ]
    if recipe.settings["orbitals"]:
        sections.insert(1, ("NUMERICAL_ORBITAL", "\n".join(map(_orb, symbols))))
    return "\n\n".join(f"{title}\n{body}" for title, body in sections) + "\n"


def _mass(symbol: str) -> float:
    return float(atomic_masses[atomic_numbers[symbol]])


def _atoms(frame: Frame, recipe: Recipe) -> list[str]:
    rows_of = table(fractions(frame), 16).splitlines()
    moments = recipe.magmom or (0.0,) * len(rows_of)
    lines, first = [], 0
    for symbol, count in by_element(frame):
        of_element = range(first, first + count)
        lines += [symbol, "0.0", str(count)]
        lines += [f"{rows_of[i]} 1 1 1 mag {moments[i]:g}" for i in of_element]
        first += count
    return lines


def _block(lines: list[str], heading: str, columns: slice) -> Floats | None:
    """The first rows of numbers within ten lines of a heading: table rules differ by version."""
    at = last_line(lines, heading)
    if at is None:
        return None
    tables = (triples(lines, first, columns) for first in range(at + 1, at + 10))
    return next((found for found in tables if found is not None), None)


def _virial(lines: list[str], frame: Frame) -> Floats | None:
    """Virial from the printed stress, which has the sign of a pressure: −dE/dε over the volume."""
    stress = _block(lines, STRESS, slice(0, None))
    return None if stress is None else stress * KBAR * volume(frame)


def _positions(lines: list[str], frame: Frame) -> Floats | None:
    """Positions from the table of coordinates, either fractional or in units of the lattice
    constant."""
    at = last_line(lines, r"(?i)^\s*(DIRECT|CARTESIAN) COORDINATES")
    found = None if at is None else triples(lines, at + 2, slice(1, 4))
    if at is None or found is None or frame.cell is None:
        return None
    unit = re.search(r"UNIT = (\S+) Bohr", lines[at])
    if unit is None:
        return from_fractions(found, frame)
    cartesian = found * float(unit[1]) * BOHR
    return from_fractions(np.linalg.solve(frame.cell.T, cartesian.T).T, frame)
