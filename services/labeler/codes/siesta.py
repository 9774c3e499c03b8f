"""SIESTA: the user's fdf keywords; dpstream writes the geometry.

J. M. Soler et al., J. Phys.: Condens. Matter 14, 2745 (2002).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from ase.data import atomic_numbers
from pydantic import BeforeValidator, Field, field_validator

from dpstream.services.labeler.acceptance import Outcome
from dpstream.services.labeler.codes.base import CodeSettings
from dpstream.services.labeler.codes.parse import NUMBER, first, numbers, read_text, rows_after
from dpstream.services.labeler.codes.potentials import WithPotentials, potential
from dpstream.services.labeler.codes.user_program import Program
from dpstream.services.labeler.codes.write import by_element, keywords, table, volume
from dpstream.shared.atoms.frames import Floats, Frame
from dpstream.shared.values import Kpoints, Recipe

INPUT = "input.fdf"
# fmt: off
NOT_THE_USERS = frozenset({
    "systemlabel", "numberofatoms", "numberofspecies", "chemicalspecieslabel", "latticeconstant",
    "latticevectors", "atomiccoordinatesformat", "atomiccoordinatesandatomicspecies", "netcharge",
    "dminitspin", "writeforces",
})
# fmt: on
STEPS = frozenset({"mdsteps", "mdnumcgsteps"})
COMMANDED = ("lua", "master", "%include")
"""Beginnings of keywords that run a script, obey another process or include a file."""
CONVERGED = re.compile(r"SCF cycle converged after|SCF Convergence by")
BROKEN = re.compile(r"SCF_NOT_CONV|SCF did not converge", re.IGNORECASE)


def _fdf(given: Any) -> Any:
    return keywords(given, "{key} {value}", {True: "T", False: "F"})


class SiestaSettings(WithPotentials):
    fdf: Annotated[str, BeforeValidator(_fdf)] = Field(
        min_length=1,
        description="fdf keywords and blocks without the geometry: a text, {file: base.fdf} or a "
        "mapping; passed untouched",
    )
    kpoints: Kpoints | None = Field(
        default=None, description="diagonal of kgrid_Monkhorst_Pack; default: the fdf's own"
    )

    @field_validator("fdf")
    @classmethod
    def _general(cls, text: str) -> str:
        for line, key, _ in _keywords(text):
            if key in NOT_THE_USERS:
                raise ValueError(f"{line!r}: remove it; dpstream writes it")
            if key.startswith(COMMANDED):
                raise ValueError(
                    f"{line!r}: not allowed: it includes other files, runs programs or lets "
                    "another process control SIESTA"
                )
        return text


def _keywords(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Each line, its keyword as SIESTA compares keywords, and the words that follow."""
    for line in map(str.strip, text.splitlines()):
        words = re.split(r"[\s=:,]+", line.lower().removeprefix("%block").strip())
        yield line, re.sub(r"[-_.]", "", words[0]), words[1:]


class Siesta(Program):
    name = "siesta"
    default_command = ("siesta", INPUT)
    settings: type[CodeSettings] = SiestaSettings

    def check_labelable(self, settings: dict[str, Any]) -> None:
        for line, key, values in _keywords(settings["fdf"]):
            if key in STEPS and values[:1] != ["0"]:
                raise ValueError(f"fdf: {line!r}: remove it; a label is a single point")

    def at_electron_temperature(self, settings: dict[str, Any], kelvin: float) -> dict[str, Any]:
        """`FreeEng` is E − TS. SIESTA uses the first of repeated keywords."""
        words = _fdf({"OccupationFunction": "FD", "ElectronicTemperature": f"{kelvin!r} K"})
        return {**settings, "fdf": words + settings["fdf"]}

    def write_inputs(self, frame: Frame, recipe: Recipe, folder: Path) -> None:
        names = recipe.settings["potentials"]
        for symbol, _ in by_element(frame):
            file = potential(self.name, names, symbol)
            shutil.copy(file, folder / f"{symbol}{file.suffix}")
        (folder / INPUT).write_text(fdf(frame, recipe))

    def read_outputs(self, folder: Path, frame: Frame, exit_status: int) -> Outcome:
        """Reads the energy from `FreeEng`, which has six decimals; `E_KS` has four."""
        text = read_text(folder / "stdout")
        lines = text.splitlines()
        free = numbers(rf"siesta: FreeEng =\s*({NUMBER})", text)[-1:]
        return Outcome(
            exit_status=exit_status,
            end_marker=">> End of run" in text,
            converged=CONVERGED.search(text) is not None,
            not_converged=BROKEN.search(text) is not None,
            energies=free,
            frames=text.count("siesta: Final energy (eV):"),
            forces=rows_after(lines, r"^siesta: Atomic forces \(eV/Ang\)", slice(2, 5)),
            virial=_virial(lines, frame),
            positions=_positions(lines, frame),
            program=first(r"(?:Siesta Version\s*:\s*v?|^Version\s*:\s*)(\d\S*)", text),
        )


def fdf(frame: Frame, recipe: Recipe) -> str:
    """The input; dpstream's keywords come first, because SIESTA uses the first of repeated ones."""
    mesh = recipe.settings["kpoints"]
    parts = [_geometry(frame), "WriteForces T\nWriteCoorStep T"]
    if recipe.charge:
        parts.append(f"NetCharge {recipe.charge}")
    if recipe.magmom is not None:
        moments = "\n".join(f"{i} {m:g}" for i, m in enumerate(recipe.magmom, start=1))
        parts.append(f"Spin polarized\n{_block('DM.InitSpin', moments)}")
    if mesh is not None:
        grid = "\n".join(f"{' '.join(map(str, row))} 0.0" for row in np.diag(mesh))
        parts.append(_block("kgrid_Monkhorst_Pack", grid))
    return "\n".join((*parts, recipe.settings["fdf"].strip(), ""))


def _geometry(frame: Frame) -> str:
    assert frame.cell is not None
    symbols = [symbol for symbol, _ in by_element(frame)]
    species = "\n".join(f"{i} {atomic_numbers[s]} {s}" for i, s in enumerate(symbols, start=1))
    numbers = [symbols.index(symbol) + 1 for symbol in frame.species]
    atoms = zip(table(frame.positions, 6).splitlines(), numbers, strict=True)
    return "\n".join(
        (
            f"SystemLabel {frame.formula}",
            f"NumberOfAtoms {len(frame.species)}",
            f"NumberOfSpecies {len(symbols)}",
            _block("ChemicalSpeciesLabel", species),
            "LatticeConstant 1.0 Ang",
            _block("LatticeVectors", table(frame.cell, 6)),
            "AtomicCoordinatesFormat Ang",
            _block("AtomicCoordinatesAndAtomicSpecies", "\n".join(f"{p} {n}" for p, n in atoms)),
        )
    )


def _block(name: str, body: str) -> str:
    return f"%block {name}\n{body}\n%endblock {name}"


def _virial(lines: list[str], frame: Frame) -> Floats | None:
    """Virial from the printed stress, which is dE/dε over the volume in eV/Å³."""
    stress = rows_after(lines, r"^siesta: Stress tensor \(static\) \(eV/Ang\*\*3\)", slice(1, 4))
    return None if stress is None else -stress * volume(frame)


def _positions(lines: list[str], frame: Frame) -> Floats | None:
    """Printed positions in Å, with eight decimals."""
    return rows_after(lines, r"^outcoor: Atomic coordinates \(Ang\)", slice(0, 3))
