"""PWmat: the user's etot.input; dpstream writes atom.config.

W. Jia et al., Comput. Phys. Commun. 184, 9 (2013). Licensed software: each worker uses its own.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from ase.data import atomic_numbers
from pydantic import BeforeValidator, Field, field_validator, model_serializer, model_validator

from dpstream.services.labeler.acceptance import Outcome
from dpstream.services.labeler.codes.base import CodeSettings
from dpstream.services.labeler.codes.kpoints import mesh_of
from dpstream.services.labeler.codes.parse import read_text, rows_after, triples
from dpstream.services.labeler.codes.potentials import WithPotentials, potential
from dpstream.services.labeler.codes.user_program import Program
from dpstream.services.labeler.codes.write import (
    by_element,
    fractions,
    from_fractions,
    keywords,
    table,
)
from dpstream.shared.atoms.frames import Floats, Frame
from dpstream.shared.values import Recipe

NOT_THE_USERS = re.compile(r"^\s*(in\.atom|in\.psp\d*|job|out\.mlmd)\s*=", re.IGNORECASE)
PARALLEL = re.compile(r"\s*\d+\s+\d+\s*$")
STRESS = re.compile(r"^\s*out\.stress\s*=\s*(?:\.?t|1)", re.IGNORECASE | re.MULTILINE)
MESH = re.compile(r"^\s*MP_N123\s*=", re.IGNORECASE | re.MULTILINE)
REASON = re.compile(r"ending_scf_reason\s*=\s*(\S+)")


def _etot(given: Any) -> Any:
    return keywords(given, "{key} = {value}", {True: "T", False: "F"})


class PwmatSettings(WithPotentials):
    etot_input: Annotated[str, BeforeValidator(_etot)] = Field(
        min_length=1,
        description="tags of etot.input: a text, {file: etot.input} or a mapping; passed untouched",
    )
    parallel: tuple[int, int] = Field(
        default=(1, 1), description="first line of etot.input: must fit the workers' command"
    )

    kspacing: float | None = Field(
        default=None,
        gt=0,
        description="1/Å with 2π; instead of MP_N123: a mesh for the cell of each frame",
    )
    symmetry: int = Field(
        default=0, ge=0, le=3, description="seventh number of MP_N123, with kspacing only"
    )

    @field_validator("etot_input")
    @classmethod
    def _general(cls, text: str) -> str:
        for line in text.splitlines():
            if NOT_THE_USERS.match(line):
                raise ValueError(f"{line.strip()!r}: remove it; dpstream writes it")
            if PARALLEL.match(line):
                raise ValueError(f"{line.strip()!r}: give this line as settings.parallel")
        return text

    @model_validator(mode="after")
    def _one_mesh(self) -> PwmatSettings:
        if self.kspacing is not None and MESH.search(self.etot_input):
            raise ValueError("kspacing: etot_input has MP_N123; give one of them")
        if self.kspacing is None and self.symmetry:
            raise ValueError("symmetry: requires kspacing; give it as the last number of MP_N123")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, given: Any) -> dict[str, Any]:
        """Without the keys of the mesh if it is not by spacing: recipes of earlier releases, which
        had no such keys, keep their digest."""
        values: dict[str, Any] = given(self)
        if self.kspacing is None:
            del values["kspacing"], values["symmetry"]
        return values


class Pwmat(Program):
    name = "pwmat"
    default_command = ("PWmat",)
    settings: type[CodeSettings] = PwmatSettings
    inputs = frozenset({"magmom"})

    def no_virial(self, settings: dict[str, Any]) -> str | None:
        asked = STRESS.search(settings["etot_input"])
        return None if asked else "etot_input: OUT.STRESS is not T; give OUT.STRESS = T"

    def write_inputs(self, frame: Frame, recipe: Recipe, folder: Path) -> None:
        settings = recipe.settings
        lines = [" ".join(map(str, settings["parallel"])), "JOB = SCF", "IN.ATOM = atom.config"]
        for number, (symbol, _) in enumerate(by_element(frame), start=1):
            file = potential(self.name, settings["potentials"], symbol)
            shutil.copy(file, folder / f"{symbol}.UPF")
            lines.append(f"IN.PSP{number} = {symbol}.UPF")
        lines += ["OUT.MLMD = T", settings["etot_input"].strip()]
        if "kspacing" in settings:
            assert frame.cell is not None
            a, b, c = mesh_of(frame.cell, settings["kspacing"])
            lines.append(f"MP_N123 = {a} {b} {c} 0 0 0 {settings['symmetry']}")
        lines.append("")
        (folder / "etot.input").write_text("\n".join(lines))
        (folder / "atom.config").write_text(atom_config(frame, recipe))

    def read_outputs(self, folder: Path, frame: Frame, exit_status: int) -> Outcome:
        """Reads the reason why the SCF ended from REPORT, and the rest from OUT.MLMD, which holds
        dE/dR (the negative forces) and, if a stress was requested, the virial in eV."""
        lines = read_text(folder / "OUT.MLMD").splitlines()
        reasons = REASON.findall(read_text(folder / "REPORT"))
        gradients = rows_after(lines, r"^\s*Force", slice(1, 4))
        return Outcome(
            exit_status=exit_status,
            end_marker=bool(lines) and lines[-1].strip().startswith("------"),
            converged="tol" in reasons,
            not_converged=any(reason != "tol" for reason in reasons),
            energies=tuple(_potential_energy(line) for line in lines if "Etot,Ep,Ek" in line),
            frames=sum("Lattice vector" in line for line in lines),
            forces=None if gradients is None else -gradients,
            virial=_virial(lines),
            positions=from_fractions(rows_after(lines, r"^\s*Position", slice(1, 4)), frame),
        )


def atom_config(frame: Frame, recipe: Recipe) -> str:
    assert frame.cell is not None
    numbers = [atomic_numbers[symbol] for symbol in frame.species]
    atoms = zip(numbers, table(fractions(frame), 15).splitlines(), strict=True)
    lines = [str(len(numbers)), "LATTICE", table(frame.cell, 10), "POSITION"]
    lines += [f"{z} {position} 1 1 1" for z, position in atoms]
    if recipe.magmom is not None:
        lines.append("MAGNETIC")
        lines += [f"{z} {m:g}" for z, m in zip(numbers, recipe.magmom, strict=True)]
    return "\n".join((*lines, ""))


def _potential_energy(line: str) -> float:
    """Ep of `Etot,Ep,Ek (eV) = … … …`."""
    found = re.search(r"Etot,Ep,Ek \(eV\)\s*=\s*\S+\s+(\S+)", line)
    return float(found[1]) if found else float("nan")


def _virial(lines: list[str]) -> Floats | None:
    """The virial: each row of the cell is followed by `stress (eV):` and a row of the virial."""
    after = [line.partition("stress (eV):")[2] for line in lines if "stress (eV):" in line]
    found = triples(after, 0, slice(0, 3))
    return None if found is None else np.asarray(found, dtype=np.float64)
