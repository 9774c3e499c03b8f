"""Density-functional labels of periodic frames through CP2K's Quickstep.

T. D. Kühne et al., J. Chem. Phys. 152, 194103 (2020). The defaults are those of DP-GEN's methane
demonstration: PBE, GTH pseudopotentials, MOLOPT basis sets, D3, orbital transformation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, StringConstraints, field_validator, model_validator

from dpstream.services.labeler import programs
from dpstream.services.labeler.acceptance import Outcome
from dpstream.services.labeler.attachments import Attached, attachment
from dpstream.services.labeler.codes.base import CodeDefaults, CodeSettings
from dpstream.services.labeler.codes.cp2k import input as cp2k
from dpstream.services.labeler.codes.cp2k.printed import (
    check_printed,
    is_stress_whole,
    tree_of,
    without_stress,
)
from dpstream.services.labeler.codes.kpoints import Mesh, mesh_of
from dpstream.services.labeler.codes.parse import (
    NUMBER,
    are_whole_records,
    block,
    first,
    numbers,
    read_text,
    rows,
    scaled,
)
from dpstream.services.labeler.codes.write import vector
from dpstream.services.labeler.machine_settings import machine_settings
from dpstream.services.labeler.units import BOHR, GPA, HARTREE
from dpstream.shared.atoms.frames import Floats, Frame
from dpstream.shared.values import Recipe

PROGRAM = "cp2k.psmp"
INPUT = "cp2k.inp"
BASIS = "DZVP-MOLOPT-SR-GTH"
BACKUP = ".bak-1"
"""Suffix of the file that CP2K wrote before the newest."""
PRESSURES = {"GPa": GPA, "bar": GPA * 1e-4}
"""eV/Å³."""

ENERGY = rf"ENERGY\| Total FORCE_EVAL.*?\s({NUMBER})\s*$"
FORCES = r"ATOMIC FORCES in \[a\.u\.\]|FORCES\| Atomic forces \[hartree/bohr\]"
FORCES_END = r"SUM OF ATOMIC FORCES|FORCES\| Sum"
FORCE = rf"^ *(?:FORCES\| +\d+|\d+ +\d+ +\S+) +({NUMBER}) +({NUMBER}) +({NUMBER})(?: +{NUMBER})? *$"
"""Forces of one atom; the first form since version 2025.1."""
STRESS = r"STRESS(?: TENSOR|\|.*tensor) \[(\w+)\]"
STRESS_ROW = rf"^ *(?:STRESS\|)? +[xyzXYZ] +({NUMBER}) +({NUMBER}) +({NUMBER}) *$"
PERIODICITY = r"POISSON\| Periodicity +(\S+)"
"""Not printed at low print levels."""
POSITIONS, POSITIONS_END = r"ATOMIC COORDINATES IN (?i:angstrom)", r"SCF PARAMETERS|^ *SCF WAVE"
POSITION = rf"^ +\d+ +\d+ +\S+ +\d+ +({NUMBER}) +({NUMBER}) +({NUMBER})(?: +{NUMBER}){{2}} *$"
FIGURE = re.compile(r"^ *\* *(?:\\___/|\||O/\||/\| \||/ \\)?")
"""The figure that CP2K draws in the box of an error."""
MAX_MESSAGE = 300
MISSING = re.compile(r"not found in the (?:potential file|basis set files?)", re.IGNORECASE)


PRINTED: cp2k.Tree = {
    "FORCE_EVAL": {
        "STRESS_TENSOR": "ANALYTICAL",
        "PRINT": {"FORCES": {"_": "ON"}, "STRESS_TENSOR": {"_": "ON"}},
    }
}
"""The defaults of what is printed."""

Named = Annotated[str, StringConstraints(pattern=r"^[\w .+():,*-]+$")]


class Cp2kSettings(CodeSettings):
    functional: str = Field(
        default="PBE", pattern=r"^[A-Za-z0-9_]+$", description="section parameter of XC_FUNCTIONAL"
    )
    dispersion: bool = Field(default=True, description="Grimme's D3 of the functional")
    cutoff: float = Field(default=400.0, gt=0, description="plane-wave cutoff of the density, Ry")
    rel_cutoff: float = Field(default=60.0, gt=0, description="of the Gaussians' grid level, Ry")
    basis: dict[str, Named] = Field(
        default={}, description=f"basis set of an element; of others {BASIS}"
    )
    potential: dict[str, Named] = Field(
        default={}, description="pseudopotential of an element; of others GTH-<functional>"
    )
    kpoints: Mesh | None = Field(default=None, description="Monkhorst-Pack mesh, for metals")
    kspacing: float | None = Field(
        default=None, gt=0, description="mesh from the cell instead: Å⁻¹, 2π included"
    )
    keywords: dict[str, Any] = Field(
        default={},
        description="any input: nested sections and keywords over the defaults (FORCE_EVAL: "
        "{DFT: {SCF: {MAX_SCF: 100}}}); null removes, _ is a section's parameter",
    )
    template: str | None = Field(
        default=None,
        description="an input file, {file: template.inp} or its text, instead of the keys above; "
        "cell, atoms, charge and multiplicity are filled in",
    )
    files: tuple[Annotated[Attached, attachment()], ...] = Field(
        default=(),
        description="files that the input names (basis sets, potentials), copied beside it",
    )

    @field_validator("keywords")
    @classmethod
    def _checked(cls, keywords: dict[str, Any]) -> dict[str, Any]:
        return cp2k.checked(keywords)

    @field_validator("template")
    @classmethod
    def _whole(cls, template: str | None) -> str | None:
        if template is not None:
            cp2k.check_template(template)
        return template

    @model_validator(mode="after")
    def _one_source(self) -> Cp2kSettings:
        given = {name for name in self.model_fields_set if getattr(self, name) is not None}
        beside = [
            name
            for name in sorted(given - {"template", "files"})
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if self.template is not None and beside:
            raise ValueError(f"{beside[0]}: remove it; the template defines it")
        if self.kpoints is not None and self.kspacing is not None:
            raise ValueError("kpoints and kspacing: give one of them")
        return self


def _key(settings: Mapping[str, Any]) -> str:
    """The setting that holds CP2K's keywords."""
    return "keywords" if settings["template"] is None else "template"


def _tree(keywords: Mapping[str, Any], template: str | None) -> cp2k.Tree:
    """The parts of the input that do not depend on the frame."""
    return cp2k.merged(PRINTED, keywords) if template is None else tree_of(template)


class Cp2k(CodeDefaults):
    """CP2K, run in a new folder for every frame."""

    name = "cp2k"
    molecular = False
    periodic = True
    electronic = True
    inputs = frozenset({"charge", "kpoints", "multiplicity"})
    settings: type[CodeSettings] = Cp2kSettings
    restart_name = re.compile(rf"[\w.-]+-RESTART\.(?:wfn|kp)(?:{re.escape(BACKUP)})?")

    def check_labelable(self, settings: dict[str, Any]) -> None:
        try:
            check_printed(_tree(settings["keywords"], settings["template"]))
        except ValueError as error:
            raise ValueError(f"{_key(settings)}: {error}") from error

    def version(self, settings: dict[str, Any]) -> str:
        return programs.stated_version(self.name, PROGRAM, r"CP2K version (\S+)", "--version")

    def is_here(self) -> bool:
        return machine_settings().starts(self.name, [PROGRAM])

    def method(self, settings: dict[str, Any]) -> str:
        if settings["template"] is not None:
            return "CP2K, by its template"
        dispersion = "-D3" if settings["dispersion"] else ""
        changed = ", with keywords" if settings["keywords"] else ""
        return f"{settings['functional']}{dispersion}/{BASIS}, {settings['cutoff']:g} Ry{changed}"

    def semi_empirical(self, settings: dict[str, Any]) -> bool:
        """Whether the input selects one of CP2K's semi-empirical methods, such as xTB or DFTB."""
        text = settings["template"] or "\n".join(cp2k.render(settings["keywords"]))
        return re.search(r"METHOD\s+(?:XTB|DFTB|PM\d|AM1|MNDO|RM1)", text.upper()) is not None

    def at_electron_temperature(self, settings: dict[str, Any], kelvin: float) -> dict[str, Any]:
        """CP2K's total energy includes −TS. OT supports only fully occupied orbitals."""
        if settings["template"] is not None:
            raise ValueError("template: defines its own smearing; use keywords instead")
        scf = settings["keywords"].get("FORCE_EVAL", {}).get("DFT", {}).get("SCF", {})
        mesh = (settings["kpoints"], settings["kspacing"]) != (None, None)
        if not mesh and scf.get("OT", {}) is not None:
            raise ValueError(
                "kpoints: missing; labels.electron_temperature requires kpoints or kspacing, "
                "because OT does not support smearing"
            )
        if not scf.get("ADDED_MOS"):
            raise ValueError(
                "keywords.FORCE_EVAL.DFT.SCF.ADDED_MOS: missing; smearing needs unoccupied orbitals"
            )
        smear = {"_": True, "METHOD": "FERMI_DIRAC", "ELECTRONIC_TEMPERATURE": kelvin}
        over = {"FORCE_EVAL": {"DFT": {"SCF": {"SMEAR": smear}}}}
        return {**settings, "keywords": cp2k.merged(settings["keywords"], over)}

    def no_virial(self, settings: dict[str, Any]) -> str | None:
        reason = without_stress(_tree(settings["keywords"], settings["template"]))
        return None if reason is None else f"{_key(settings)}: {reason}"

    def write_inputs(self, frame: Frame, recipe: Recipe, folder: Path) -> None:
        (folder / INPUT).write_text(input_text(frame, recipe))

    def command(self, recipe: Recipe, cores: int) -> list[str]:
        return [*programs.command_of(self.name, PROGRAM, cores), "-i", INPUT]

    def complete(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """The newest file or, if that is cut off, the one before it."""
        for name in sorted(files):
            if are_whole_records(files[name]):
                return {name.removesuffix(BACKUP): files[name]}
        return {}

    def request_stop(self, folder: Path) -> bool:
        """CP2K notices a file EXIT only after many seconds, and then still computes forces."""
        return False

    def use_restart(self, folder: Path) -> None:
        """CP2K reads PROJECT-RESTART.wfn unless the input names another file."""
        text = (folder / INPUT).read_text()
        (folder / INPUT).write_text(cp2k.with_keyword(text, cp2k.SCF, "SCF_GUESS", "RESTART"))

    def read_outputs(self, folder: Path, frame: Frame, exit_status: int) -> Outcome:
        text = read_text(folder / "stdout")
        stressed = is_stress_whole(read_text(folder / INPUT))
        stressed &= first(PERIODICITY, text) in (None, "XYZ")  # an imported output has no input
        message = abort_message(text)
        return Outcome(
            exit_status=exit_status,
            end_marker="PROGRAM ENDED AT" in text,
            converged="SCF run converged in" in text or "outer SCF loop converged in" in text,
            not_converged="NOT converged" in text or "FAILED to converge" in text,
            energies=tuple(energy * HARTREE for energy in numbers(ENERGY, text)),
            frames=max(1, len(re.findall(FORCES, text))),
            forces=scaled(rows(FORCE, block(text, FORCES, FORCES_END)), HARTREE / BOHR),
            virial=virial(text, frame) if stressed else None,
            positions=rows(POSITION, block(text, POSITIONS, POSITIONS_END)),
            fault="unsupported-element" if MISSING.search(message) else None,
            messages=(message,) if message else (),
        )


# ------------------------------------------------------------------------------------- input


def input_text(frame: Frame, recipe: Recipe) -> str:
    """The complete input: the filled-in template, or the defaults overridden by the keywords."""
    settings = recipe.settings
    if settings["template"] is None:
        over = settings["keywords"]
        return "\n".join(cp2k.render(cp2k.merged(_defaults(frame, recipe), over))) + "\n"
    spin = [f"{key} {value}" for key, value in _spin(recipe).items()]
    if cp2k.has_keyword(settings["template"], cp2k.DFT, ("UKS", "LSD")):
        spin = [line for line in spin if not line.startswith("UKS")]
    return cp2k.filled(settings["template"], _cell(frame), _coord(frame), spin)


def _spin(recipe: Recipe) -> dict[str, Any]:
    unrestricted = {"UKS": ".TRUE."} if recipe.multiplicity > 1 else {}
    return {"CHARGE": recipe.charge, "MULTIPLICITY": recipe.multiplicity, **unrestricted}


def _cell(frame: Frame) -> list[str]:
    assert frame.cell is not None
    return [f"{name} {vector(row)}" for name, row in zip("ABC", frame.cell, strict=True)]


def _coord(frame: Frame) -> list[str]:
    return [f"{s} {vector(p)}" for s, p in zip(frame.species, frame.positions, strict=True)]


def _defaults(frame: Frame, recipe: Recipe) -> dict[str, Any]:
    settings = recipe.settings
    dft = {
        "BASIS_SET_FILE_NAME": "BASIS_MOLOPT",
        "POTENTIAL_FILE_NAME": "GTH_POTENTIALS",
        **_spin(recipe),
        "MGRID": {"CUTOFF": settings["cutoff"], "REL_CUTOFF": settings["rel_cutoff"]},
        "QS": {"EPS_DEFAULT": "1.0E-13"},
        **_scf(frame, settings),
        "XC": _exchange(settings),
    }
    subsys = {
        "CELL": {"*": _cell(frame)},
        "COORD": {"*": _coord(frame)},
        "KIND": _kinds(frame, settings),
    }
    return {
        "GLOBAL": {"PROJECT": "dpstream", "RUN_TYPE": "ENERGY_FORCE"},
        "FORCE_EVAL": {
            "METHOD": "QS",
            "DFT": dft,
            "SUBSYS": subsys,
            **PRINTED["FORCE_EVAL"],
        },
    }


def _scf(frame: Frame, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Orbital transformation at the Gamma point; diagonalisation with a mesh, as OT needs Gamma."""
    scf = {"SCF_GUESS": "ATOMIC", "EPS_SCF": "3.0E-7", "PRINT": {"RESTART": cp2k.RESTART}}
    mesh = _mesh(frame, settings)
    if mesh is None:
        ot = {"MINIMIZER": "DIIS", "PRECONDITIONER": "FULL_SINGLE_INVERSE"}
        outer = {"EPS_SCF": "3.0E-7", "MAX_SCF": 15}
        return {"SCF": {**scf, "MAX_SCF": 50, "OT": ot, "OUTER_SCF": outer}}
    mixing = {"METHOD": "BROYDEN_MIXING", "ALPHA": 0.4}
    points = {"SCHEME": f"MONKHORST-PACK {mesh[0]} {mesh[1]} {mesh[2]}"}
    diagonal = {"ALGORITHM": "STANDARD"}
    return {
        "SCF": {**scf, "MAX_SCF": 300, "DIAGONALIZATION": diagonal, "MIXING": mixing},
        "KPOINTS": points,
    }


def _mesh(frame: Frame, settings: Mapping[str, Any]) -> Mesh | None:
    if settings["kspacing"] is None:
        return None if settings["kpoints"] is None else tuple(settings["kpoints"])
    assert frame.cell is not None
    return mesh_of(frame.cell, settings["kspacing"])


def _exchange(settings: Mapping[str, Any]) -> dict[str, Any]:
    functional = settings["functional"]
    pair = {"TYPE": "DFTD3", "PARAMETER_FILE_NAME": "dftd3.dat", "REFERENCE_FUNCTIONAL": functional}
    dispersion = {"POTENTIAL_TYPE": "PAIR_POTENTIAL", "PAIR_POTENTIAL": pair}
    only = {"VDW_POTENTIAL": dispersion} if settings["dispersion"] else {}
    return {"XC_FUNCTIONAL": {"_": functional}, **only}


def _kinds(frame: Frame, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "_": symbol,
            "BASIS_SET": settings["basis"].get(symbol, BASIS),
            "POTENTIAL": settings["potential"].get(symbol, f"GTH-{settings['functional']}"),
        }
        for symbol in dict.fromkeys(frame.species)
    ]


# ------------------------------------------------------------------------------------- output


def virial(text: str, frame: Frame) -> Floats | None:
    """The printed stress times the volume of the submitted cell: CP2K prints its cell with only
    three decimals."""
    found = re.search(STRESS, text)
    if found is None or found[1] not in PRESSURES or frame.cell is None:
        return None
    stress = rows(STRESS_ROW, text[found.end() :][:600])
    factor = PRESSURES[found[1]] * abs(float(np.linalg.det(frame.cell)))
    return scaled(None if stress is None else stress[:3], factor)


def abort_message(text: str) -> str:
    """The text in the box of `[ABORT]`, as one line."""
    _, _, after = text.partition("[ABORT]")
    box, _, _ = after.partition("Routine Calling Stack")
    words = [FIGURE.sub("", line).strip(" *=") for line in box.splitlines()]
    return " ".join(word for word in words if word)[:MAX_MESSAGE]
