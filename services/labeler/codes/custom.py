"""Any program with a command on the worker, given its input and output formats.

Formats are dpdata's (`vasp/poscar`, `psi4/out`, `deepmd/npy`…) or, as `ase:NAME`, those of the
Atomic Simulation Environment (`ase:nwchem-in`, `ase:abinit-out`…).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field

from dpstream.services.labeler.acceptance import Outcome
from dpstream.services.labeler.codes.base import CodeDefaults, CodeSettings
from dpstream.services.labeler.codes.parse import read_text
from dpstream.services.labeler.codes.potentials import PotentialName
from dpstream.services.labeler.codes.write import from_fractions
from dpstream.services.labeler.machine_settings import machine_settings
from dpstream.shared.atoms.frames import Floats, Frame, to_ase
from dpstream.shared.errors import SpecError
from dpstream.shared.spec.errors import did_you_mean
from dpstream.shared.values import Name, Recipe

ASE = "ase:"
RECIPE = "recipe.json"
VACUUM = 100.0
"""Å; edge of the cell of a molecule, for formats that require one."""
MAX_MESSAGE = 300
UNVERSIONED = "unversioned"
"""Start of the version of a program for which no version is stated; valid in one campaign."""


def _known(name: str) -> str:
    known = _ase_formats() if name.startswith(ASE) else _dpdata_formats()
    if name not in known:
        hint = did_you_mean(name, known) or f"; {ASE}NAME is one of ASE's"
        raise ValueError(f"no such format of dpdata{hint}")
    return name


def _dpdata_formats() -> set[str]:
    import dpdata.plugins  # deferred: slow to import
    from dpdata.format import Format

    assert dpdata.plugins  # importing registers them
    return set(Format.get_formats())


def _ase_formats() -> set[str]:
    from ase.io.formats import ioformats

    return {ASE + name for name in ioformats}


class FormattedFile(CodeSettings):
    format: Annotated[str, AfterValidator(_known)] = Field(
        description="name of the format in dpdata, or ase:NAME"
    )
    file: PotentialName = Field(description="name of the file in the working folder")
    options: dict[str, Any] = Field(default={}, description="keyword arguments of the format")


class CustomSettings(CodeSettings):
    program: Name = Field(
        description="name of the program in the workers' DPSTREAM_LABELER_COMMANDS"
    )
    method: str = Field(min_length=1, description="level of theory, for the labels' provenance")
    semi_empirical: bool = Field(
        default=False, description="whether the method is not a first-principles one"
    )
    input: FormattedFile = Field(description="input file of the program")
    output: FormattedFile = Field(description="output file of the program; may be stdout")
    files: dict[PotentialName, str] = Field(
        default={}, description="further files by name: a text or {file: NAME}"
    )
    log: PotentialName = Field(
        default="stdout", description="file that is searched for the markers below"
    )
    end_marker: str | None = Field(default=None, description="text at the end of a complete log")
    converged: str | None = Field(
        default=None, description="text in the log if the iterations converged"
    )
    not_converged: tuple[str, ...] = Field(
        default=("not converged",), description="texts in the log if they did not; case-insensitive"
    )


class Custom(CodeDefaults):
    """A custom program. Its command may contain {cores}, {charge} and {multiplicity}."""

    name = "custom"
    molecular = True
    periodic = True
    settings: type[CodeSettings] = CustomSettings
    inputs = frozenset({"charge", "multiplicity"})

    def version(self, settings: dict[str, Any]) -> str:
        return str(settings["program"])

    def stated_version(self, settings: dict[str, Any], stated: str | None) -> str:
        if stated is None:
            raise SpecError("labels.version: missing: give the version of your custom program")
        return f"{settings['program']} {stated}"

    def method(self, settings: dict[str, Any]) -> str:
        return str(settings["method"])

    def semi_empirical(self, settings: dict[str, Any]) -> bool:
        return bool(settings["semi_empirical"])

    def is_here(self) -> bool:
        """Whether this machine's settings define any command."""
        return bool(machine_settings().labeler_commands)

    def command(self, recipe: Recipe, cores: int) -> list[str]:
        given = {"{charge}": str(recipe.charge), "{multiplicity}": str(recipe.multiplicity)}
        words = machine_settings().command(recipe.settings["program"], cores)
        for mark, value in given.items():
            words = [word.replace(mark, value) for word in words]
        return words

    def write_inputs(self, frame: Frame, recipe: Recipe, folder: Path) -> None:
        for name, text in recipe.settings["files"].items():
            _made(folder / name).write_text(text)
        (folder / RECIPE).write_text(recipe.model_dump_json())
        wanted = FormattedFile.model_validate(recipe.settings["input"])
        _write(frame, wanted, _made(folder / wanted.file))

    def read_outputs(self, folder: Path, frame: Frame, exit_status: int) -> Outcome:
        recipe = Recipe.model_validate_json((folder / RECIPE).read_text())
        settings = CustomSettings.model_validate(recipe.settings)
        log = read_text(folder / settings.log)
        return replace(
            _read(frame, settings.output, folder),
            exit_status=exit_status,
            end_marker=settings.end_marker is None or settings.end_marker in log,
            converged=settings.converged is None or settings.converged in log,
            not_converged=any(words.lower() in log.lower() for words in settings.not_converged),
        )


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write(frame: Frame, wanted: FormattedFile, path: Path) -> None:
    if wanted.format.startswith(ASE):
        from ase.io import write

        write(path, to_ase(frame), format=wanted.format.removeprefix(ASE), **wanted.options)
        return
    import dpdata

    system = dpdata.System(data=_dpdata_system(frame))
    system.to(wanted.format, str(path), **wanted.options)


def _dpdata_system(frame: Frame) -> dict[str, Any]:
    names = sorted(set(frame.species))
    cell = np.eye(3) * VACUUM if frame.cell is None else frame.cell
    return {
        "atom_names": names,
        "atom_numbs": [frame.species.count(name) for name in names],
        "atom_types": np.array([names.index(symbol) for symbol in frame.species]),
        "orig": np.zeros(3),
        "cells": cell[None],
        "coords": frame.positions[None],
        "nopbc": frame.cell is None,
    }


def _read(frame: Frame, wanted: FormattedFile, folder: Path) -> Outcome:
    """The results in an output file, atoms sorted by element, or as a message the reason why there
    are none. Catches all exceptions of the readers."""
    path = folder / wanted.file
    reader = _by_ase if wanted.format.startswith(ASE) else _by_dpdata
    try:
        if not path.exists():
            return Outcome(frames=0, messages=(f"the program wrote no {wanted.file}",))
        return reader(frame, wanted, path)
    except Exception as error:
        reason = (
            f"{wanted.file}: cannot be read as {wanted.format}: {type(error).__name__}: {error}"
        )
        return Outcome(frames=0, messages=(" ".join(reason.split())[:MAX_MESSAGE],))


def _by_dpdata(frame: Frame, wanted: FormattedFile, path: Path) -> Outcome:
    import dpdata

    data = dpdata.LabeledSystem(str(path), fmt=wanted.format, **wanted.options).data
    count = len(data["energies"])
    if count != 1:
        return Outcome(energies=tuple(map(float, data["energies"])), frames=count)
    symbols = [data["atom_names"][kind] for kind in data["atom_types"]]
    energy = float(data["energies"][0])
    virial = data.get("virials")
    virial = None if virial is None else np.asarray(virial[0], dtype=np.float64)
    return _sorted(frame, symbols, energy, data["coords"][0], data["forces"][0], virial)


def _by_ase(frame: Frame, wanted: FormattedFile, path: Path) -> Outcome:
    from ase.io import read

    images = read(path, index=":", format=wanted.format.removeprefix(ASE), **wanted.options)
    if len(images) != 1:
        energies = tuple(float(image.get_potential_energy()) for image in images)
        return Outcome(energies=energies, frames=len(images))
    atoms = images[0]
    results = atoms.calc.results
    symbols = atoms.get_chemical_symbols()
    energy = float(results.get("free_energy", results["energy"]))
    stress = atoms.get_stress(voigt=False) if "stress" in results else None
    virial = None if stress is None else -np.asarray(stress) * atoms.get_volume()
    return _sorted(frame, symbols, energy, atoms.positions, atoms.get_forces(), virial)


def _sorted(
    frame: Frame,
    symbols: list[str],
    energy: float,
    positions: Floats,
    forces: Floats,
    virial: Floats | None,
) -> Outcome:
    """The results with atoms sorted by element, keeping the program's order within an element."""
    order = sorted(range(len(symbols)), key=lambda i: symbols[i])
    if tuple(symbols[i] for i in order) != frame.species:
        raise ValueError(f"the output's atoms are {''.join(symbols)}, not {frame.formula}")
    positions = np.asarray(positions, dtype=np.float64)[order]
    if frame.cell is not None:
        wrapped = np.linalg.solve(frame.cell.T, positions.T).T
        positions = from_fractions(wrapped, frame)  # type: ignore[assignment]
    forces = np.asarray(forces, dtype=np.float64)[order]
    return Outcome(energies=(energy,), forces=forces, virial=virial, positions=positions)
