"""Density-functional labels of periodic frames through Quantum ESPRESSO's pw.x.

P. Giannozzi et al., J. Phys.: Condens. Matter 29, 465901 (2017).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from ase.data import atomic_masses, atomic_numbers, chemical_symbols
from pydantic import Field, field_validator, model_validator

from dpstream.services.labeler import programs
from dpstream.services.labeler.acceptance import Outcome
from dpstream.services.labeler.attachments import Attached, attachment
from dpstream.services.labeler.codes.base import CodeDefaults, CodeSettings
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
from dpstream.services.labeler.codes.qe.keywords import (
    Namelist,
    check_keywords,
    checked_namelist,
    needs_mesh,
    unsuitable,
    without_stress,
)
from dpstream.services.labeler.codes.write import vector
from dpstream.services.labeler.machine_settings import machine_settings
from dpstream.services.labeler.units import BOHR, BOLTZMANN, RYDBERG
from dpstream.shared.atoms.frames import Floats, Frame
from dpstream.shared.values import Recipe

PROGRAM = "pw.x"
INPUT = "pw.in"
PREFIX, OUT = "dpstream", "out"
SAVE = f"{OUT}/{PREFIX}.save"
DEBIAN = Path("/usr/share/espresso/pseudo")
LITERAL = re.compile(rf"{NUMBER}|\.(?:true|false)\.", re.IGNORECASE)

END_OF_SCF = "End of self-consistent calculation"
"""With verbose output, pw.x also prints energies of iterations, before this line."""
ENERGY = rf"^! +total energy += +({NUMBER}) Ry"
EXCHANGE = "EXX: now go back to refine exchange calculation"
"""Begins another SCF of a hybrid functional, each of which prints an `ENERGY`."""
HYBRID_ENERGY = rf"^!! +total energy += +({NUMBER}) Ry"
"""Printed once, after the last of them, if the exchange is self-consistent."""
NOT_CONVERGED = r"^ *((?:EXX )?convergence NOT achieved.*?) *$"
ACCURACY = rf"estimated scf accuracy +< +({NUMBER}) Ry"
THRESHOLD = rf"convergence threshold += +({NUMBER})"
FORCES, FORCES_END = r"Forces acting on atoms.*$", r"Total force|contrib\."
FORCE = rf"^ +atom +\d+ +type +\d+ +force = +({NUMBER}) +({NUMBER}) +({NUMBER}) *$"
STRESS = r"total +stress +\(Ry/bohr\*\*3\).*$"
SCREENED = re.compile(r"Boundary Conditions: (?:Vacuum|Metal)")
"""With these of the effective screening medium, the components normal to the slab are zeros."""
STRESS_ROW = rf"^ +({NUMBER}) +({NUMBER}) +({NUMBER})(?: +\S+){{3}} *$"
POSITIONS, POSITIONS_END = r"site n\. +atom +positions \(alat units\)", r"\n *\n"
"""Verbose output repeats the positions in crystal coordinates."""
POSITION = rf"tau\( *\d+\) = \( +({NUMBER}) +({NUMBER}) +({NUMBER}) +\)"
ERROR = re.compile(r"%{20,}\s*(.*?)\s*%{20,}", re.DOTALL)


def pseudopotential_folders() -> list[Path]:
    """Folders in which pseudopotentials are searched after the spec's folder, as by pw.x."""
    own = os.environ.get("ESPRESSO_PSEUDO")
    return [*([Path(own)] if own else []), DEBIAN]


Pseudopotential = Annotated[Attached, attachment(pseudopotential_folders)]
Smearing = Literal["gaussian", "methfessel-paxton", "marzari-vanderbilt", "fermi-dirac"]


class QeSettings(CodeSettings):
    pseudopotentials: dict[str, Pseudopotential] = Field(
        min_length=1,
        description="UPF file by element, in the spec's folder, $ESPRESSO_PSEUDO or "
        f"{DEBIAN}; stored with the campaign",
    )
    ecutwfc: float = Field(
        gt=0, description="plane-wave cutoff, Ry, as required by the pseudopotentials"
    )
    ecutrho: float | None = Field(
        default=None, gt=0, description="cutoff of the density, Ry; default: 4 × ecutwfc"
    )
    kpoints: Mesh | None = Field(default=None, description="Monkhorst-Pack mesh, e.g. [2, 2, 2]")
    kspacing: float | None = Field(
        default=None, gt=0, description="mesh from the cell instead: Å⁻¹, 2π included"
    )
    koffset: tuple[Literal[0, 1], Literal[0, 1], Literal[0, 1]] = Field(
        default=(0, 0, 0), description="1: the mesh is shifted by half a step"
    )
    smearing: Smearing | None = Field(
        default=None, description="smearing of the occupations, for metals"
    )
    degauss: float | None = Field(default=None, gt=0, description="width of the smearing, Ry")
    nspin: Literal[1, 2] = Field(default=1, description="2: collinear spins")
    starting_magnetization: dict[str, float] = Field(
        default={}, description="by element, from -1 to 1"
    )
    conv_thr: float = Field(default=1e-9, gt=0, description="SCF convergence, Ry")
    system: Namelist = Field(default={}, description="more of &SYSTEM (input_dft, vdw_corr, nbnd…)")
    electrons: Namelist = Field(default={}, description="more of &ELECTRONS (mixing_beta…)")
    control: Namelist = Field(default={}, description="more of &CONTROL")

    @field_validator("pseudopotentials", "starting_magnetization")
    @classmethod
    def _elements(cls, given: dict[str, Any]) -> dict[str, Any]:
        for symbol in given:
            if symbol not in chemical_symbols[1:]:
                raise ValueError(f"{symbol!r} is not an element")
        return given

    @field_validator("system", "electrons", "control")
    @classmethod
    def _free(cls, given: Namelist, info: Any) -> Namelist:
        return checked_namelist(info.field_name, given)

    @model_validator(mode="after")
    def _consistent(self) -> QeSettings:
        if (self.kpoints is None) == (self.kspacing is None):
            raise ValueError("kpoints, kspacing: give one of them")
        if (self.smearing is None) != (self.degauss is None):
            raise ValueError("smearing, degauss: set both, or neither")
        if self.starting_magnetization and self.nspin == 1:
            raise ValueError("starting_magnetization: needs nspin 2")
        unknown = self.starting_magnetization.keys() - self.pseudopotentials.keys()
        if unknown:
            raise ValueError(f"starting_magnetization.{min(unknown)}: has no pseudopotential")
        return self


class Qe(CodeDefaults):
    """pw.x, run in a new folder for every frame. Occupations may be fractional, so multiplicity
    does not apply; magnetic moments have settings of their own."""

    name = "qe"
    molecular = False
    periodic = True
    inputs = frozenset({"charge", "kpoints"})
    settings: type[CodeSettings] = QeSettings
    restart_name = re.compile(
        rf"{re.escape(SAVE)}/(?:(?:charge|ekin)-density\.(?:dat|hdf5)|(?:paw|occup)\.txt)"
    )

    def check_labelable(self, settings: dict[str, Any]) -> None:
        check_keywords(settings)

    def version(self, settings: dict[str, Any]) -> str:
        return programs.stated_version(self.name, PROGRAM, r"Program PWSCF v\.(\S+)")

    def is_here(self) -> bool:
        return machine_settings().starts(self.name, [PROGRAM])

    def method(self, settings: dict[str, Any]) -> str:
        files = ", ".join(each["file"] for each in settings["pseudopotentials"].values())
        return f"plane waves, {settings['ecutwfc']:g} Ry, {files}"

    def at_electron_temperature(self, settings: dict[str, Any], kelvin: float) -> dict[str, Any]:
        """pw.x prints E − TS as its total energy."""
        width = round(kelvin * BOLTZMANN / RYDBERG, 10)
        system = {k: v for k, v in settings["system"].items() if k != "occupations"}
        return {**settings, "smearing": "fermi-dirac", "degauss": width, "system": system}

    def refusal(self, frame: Frame, settings: dict[str, Any]) -> str | None:
        missing = sorted(set(frame.species) - settings["pseudopotentials"].keys())
        named = f"labels.settings.pseudopotentials.{missing[0]}" if missing else ""
        if missing:
            return f"{missing[0]} has no pseudopotential; give {named}"
        return unsuitable(frame, settings)

    def no_virial(self, settings: dict[str, Any]) -> str | None:
        return without_stress(settings)

    def write_inputs(self, frame: Frame, recipe: Recipe, folder: Path) -> None:
        lines = input_lines(frame, recipe.settings, recipe.charge)
        (folder / INPUT).write_text("\n".join((*lines, "")))

    def command(self, recipe: Recipe, cores: int) -> list[str]:
        return [*programs.command_of(self.name, PROGRAM, cores), "-in", INPUT]

    def complete(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        hdf5 = files.get(f"{SAVE}/charge-density.hdf5", b"").startswith(b"\x89HDF")
        whole = hdf5 or are_whole_records(files.get(f"{SAVE}/charge-density.dat", b""))
        return dict(files) if whole else {}

    def request_stop(self, folder: Path) -> bool:
        (folder / f"{PREFIX}.EXIT").touch()
        return True

    def use_restart(self, folder: Path) -> None:
        """The density, unlike pw.x's own restart, does not depend on the number of processes."""
        text = (folder / INPUT).read_text()
        own = "".join(re.split(r"^ *startingpot *=.*\n", text, flags=re.MULTILINE))
        begin = "&ELECTRONS\n"
        (folder / INPUT).write_text(own.replace(begin, f"{begin}  startingpot = 'file'\n", 1))

    def read_outputs(self, folder: Path, frame: Frame, exit_status: int) -> Outcome:
        text = read_text(folder / "stdout")
        message = error_message(text) or first(NOT_CONVERGED, text) or ""
        _, _, ended = text.partition(END_OF_SCF)
        achieved, accurate = "convergence has been achieved" in text, is_accurate(text)
        return Outcome(
            exit_status=exit_status,
            end_marker="JOB DONE." in text,
            converged=achieved and accurate,
            # With scf_must_converge = .false. pw.x calls any accuracy converged.
            not_converged=first(NOT_CONVERGED, text) is not None or (achieved and not accurate),
            energies=energies(ended),
            frames=max(1, len(re.findall(FORCES, text, re.MULTILINE))),
            forces=scaled(rows(FORCE, block(text, FORCES, FORCES_END)), RYDBERG / BOHR),
            virial=virial(text, frame),
            positions=positions(text, frame),
            fault="unsupported-element" if "readpp" in message else None,
            messages=(message,) if message else (),
        )


# ------------------------------------------------------------------------------------- input


def input_lines(frame: Frame, settings: Mapping[str, Any], charge: int) -> Iterator[str]:
    kinds = list(dict.fromkeys(frame.species))
    charged = {"tot_charge": charge} if charge else {}
    yield from _namelist("control", _control() | settings["control"])
    yield from _namelist("system", _system(frame, kinds, settings) | charged | settings["system"])
    yield from _namelist("electrons", {"conv_thr": settings["conv_thr"], **settings["electrons"]})
    yield "ATOMIC_SPECIES"
    for symbol in kinds:
        known = settings["pseudopotentials"].get(symbol, {"file": f"{symbol}.UPF"})
        yield f"{symbol} {atomic_masses[atomic_numbers[symbol]]:.4f} {known['file']}"
    assert frame.cell is not None
    yield "CELL_PARAMETERS angstrom"
    yield from map(vector, frame.cell)
    yield "ATOMIC_POSITIONS angstrom"
    for symbol, position in zip(frame.species, frame.positions, strict=True):
        yield f"{symbol} {vector(position)}"
    yield from _kpoints(frame.cell, settings)


def _control() -> dict[str, Any]:
    return {
        "calculation": "scf",
        "prefix": PREFIX,
        "outdir": f"./{OUT}",
        "pseudo_dir": "./",
        "tprnfor": True,
        "tstress": True,
        "disk_io": "none",
    }


def _system(frame: Frame, kinds: list[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    given = {
        "ibrav": 0,
        "nat": len(frame.species),
        "ntyp": len(kinds),
        **{key: settings[key] for key in ("ecutwfc", "ecutrho", "nspin", "smearing", "degauss")},
        **{
            f"starting_magnetization({number})": settings["starting_magnetization"].get(symbol)
            for number, symbol in enumerate(kinds, 1)
        },
    }
    smeared = {} if settings["smearing"] is None else {"occupations": "smearing"}
    return {key: value for key, value in given.items() if value is not None} | smeared


def _namelist(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    yield f"&{name.upper()}"
    for key, value in values.items():
        yield f"  {key} = {_word(value)}"
    yield "/"


def _word(value: Any) -> str:
    """A value in Fortran syntax; text that looks like a number or a logical is not quoted."""
    if isinstance(value, bool):
        return f".{str(value).lower()}."
    if isinstance(value, str) and not LITERAL.fullmatch(value):
        return "'{}'".format(value.replace("'", "''"))
    return str(value)


def _kpoints(cell: Floats, settings: Mapping[str, Any]) -> list[str]:
    mesh = settings["kpoints"] or mesh_of(cell, settings["kspacing"])
    offset = settings["koffset"]
    if (*mesh, *offset) == (1, 1, 1, 0, 0, 0) and not needs_mesh(settings["system"]):
        return ["K_POINTS gamma"]
    return ["K_POINTS automatic", " ".join(map(str, (*mesh, *offset)))]


# ------------------------------------------------------------------------------------- output


def is_accurate(text: str) -> bool:
    """Whether the last estimated accuracy is within the requested threshold."""
    wanted, reached = numbers(THRESHOLD, text), numbers(ACCURACY, text)
    return bool(wanted and reached) and reached[-1] <= wanted[-1]


def energies(text: str) -> tuple[float, ...]:
    """Final energies in the text after the self-consistent cycle, eV. Of a hybrid functional only
    the energy with self-consistent exchange counts."""
    pattern = HYBRID_ENERGY if EXCHANGE in text else ENERGY
    return tuple(energy * RYDBERG for energy in numbers(pattern, text))


def virial(text: str, frame: Frame) -> Floats | None:
    """The stress times the volume, from the columns in Ry/bohr³: those in kbar have two
    decimals."""
    found = re.search(STRESS, text, re.MULTILINE)
    if found is None or frame.cell is None or SCREENED.search(text):
        return None
    stress = rows(STRESS_ROW, "\n".join(text[found.end() :].splitlines()[:4]))
    return scaled(stress, RYDBERG / BOHR**3 * abs(float(np.linalg.det(frame.cell))))


def positions(text: str, frame: Frame) -> Floats | None:
    """The printed positions, scaled by the length of the first cell vector: `alat` is rounded."""
    assert frame.cell is not None
    alat = float(np.linalg.norm(frame.cell[0]))
    return scaled(rows(POSITION, block(text, POSITIONS, POSITIONS_END)), alat)


def error_message(text: str) -> str:
    """The error message between two rows of %, as one line."""
    found = ERROR.search(text)
    return " ".join(found[1].split())[:300] if found else ""
