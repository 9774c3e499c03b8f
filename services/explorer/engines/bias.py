"""Molecular dynamics with a bias on collective variables, by Colvars or PLUMED.

The bias acts on the atoms; model deviations are those of the committee's forces without the bias.
Colvars: G. Fiorin, M. L. Klein, J. Hénin, Mol. Phys. 111, 3345 (2013); keywords as in its manual,
version 2025-04-30. With LAMMPS units `metal` it uses eV, Å and degrees.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dpstream.services.explorer.engines.atoms import atom_numbers, numbered, refusal
from dpstream.services.explorer.engines.dynamics import MolecularDynamics
from dpstream.services.explorer.lammps.script import Script
from dpstream.shared.spec.engines import (
    Colvars,
    Coordination,
    Dihedral,
    Distance,
    Group,
    Metadynamics,
    Plumed,
)

STATE = "bias.colvars.state"
"""State file that Colvars writes after every `run`, with `output bias`."""
PER_SIGMA = 2
"""Grid points per Gaussian sigma. Without a grid, Colvars loses its hills at a restart."""
FARTHEST = 10.0
"""Å; initial upper boundary of a distance's grid."""
QUIET = ("colvarsTrajFrequency 0", "colvarsRestartFrequency 0")
TRUSTED = "allowed on workers with DPSTREAM_EXPLORER_TEMPLATES=any"


class ColvarsBias(MolecularDynamics):
    def amended(self, script: Script) -> Script:
        request, settings = self.request, self.request.settings
        assert isinstance(settings, Colvars)
        path = request.folder / "bias.in"
        path.write_text(colvars_input(settings, request.frame.species, request.resources.trusting))
        words = f'fix bias all colvars "{path}" output "{request.folder}/bias"'
        if request.md.ensemble != "nve":
            words += " tstat motion"
        # The state in LAMMPS' restart file is read before Colvars defines its variables.
        if (self.saved / STATE).exists():
            words += f' input "{self.saved / STATE}"'
        return replace(script, dynamics=[*script.dynamics, words], single_use=True)

    def files(self) -> Sequence[Path]:
        return (self.request.folder / STATE,)


class PlumedBias(MolecularDynamics):
    def amended(self, script: Script) -> Script:
        settings = self.request.settings
        assert isinstance(settings, Plumed)
        command = plumed_fix(self, settings.input)
        return replace(script, dynamics=[*script.dynamics, command], single_use=True)


def plumed_fix(engine: MolecularDynamics, text: str) -> str:
    """The LAMMPS fix that runs a PLUMED input. Raises ValueError if LAMMPS lacks PLUMED."""
    request = engine.request
    if not request.resources.call("has_fix", {"style": "plumed"}, request.context):
        raise ValueError("plumed: this worker's LAMMPS was built without PLUMED; use colvars")
    path = request.folder / "plumed.in"
    path.write_text(checked(numbered(text, request.frame.species, ","), request.resources.trusting))
    return f'fix bias all plumed plumedfile "{path}" outfile "{request.folder}/plumed.out"'


def checked(text: str, trusting: bool) -> str:
    """`text`. Raises ValueError if it is unsafe and the worker is not `trusting`."""
    reason = None if trusting else refusal(text)
    if reason is not None:
        raise ValueError(f"input: {reason}; {TRUSTED}")
    return text


def colvars_input(settings: Colvars, species: Sequence[str], trusting: bool = False) -> str:
    """The Colvars configuration for the canonical frame whose atoms are `species`. Raises
    ValueError for missing atoms and for unsafe input."""
    if settings.input is not None:
        return checked(numbered(settings.input, species, " "), trusting)
    names = [each.name or f"{each.kind}{n}" for n, each in enumerate(settings.variables, 1)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"variables: {name!r} is the name of two variables")
    variables = dict(zip(names, settings.variables, strict=True))
    lines = list(QUIET)
    for name, variable in variables.items():
        lines += [f"colvar {{ name {name}", f"  width {variable.width / PER_SIGMA!r}"]
        lines += [f"  {line}" for line in _component(variable, species)] + ["}"]
        lines += _walls(name, variable)
    return "\n".join([*lines, *_metadynamics(settings.metadynamics, variables)]) + "\n"


Variable = Distance | Coordination | Dihedral


def _component(variable: Variable, species: Sequence[str]) -> Iterator[str]:
    """The component of a variable, preceded by the grid on which its hills are collected."""
    if isinstance(variable, Dihedral):
        yield from _groups("dihedral {", [(name,) for name in variable.atoms], species)
        return
    longest = FARTHEST
    kind = "distance {"
    if isinstance(variable, Coordination):
        kind = f"coordNum {{ cutoff {variable.cutoff!r}"
        longest = float(math.prod(len(_numbers(group, species)) for group in variable.groups))
    yield f"lowerBoundary 0.0\n  upperBoundary {longest!r}\n  expandBoundaries on"
    yield from _groups(kind, variable.groups, species)


def _groups(kind: str, groups: Sequence[Group], species: Sequence[str]) -> Iterator[str]:
    yield kind
    for number, names in enumerate(groups, 1):
        atoms = " ".join(map(str, _numbers(names, species)))
        yield f"  group{number} {{ atomNumbers {atoms} }}"
    yield "}"


def _numbers(names: Group, species: Sequence[str]) -> list[int]:
    """Numbers of all named atoms, without repetition."""
    return list(dict.fromkeys(n for name in names for n in atom_numbers(name, species)))


def _walls(name: str, variable: Variable) -> Iterator[str]:
    """Walls of a variable. Colvars divides the force constant by the squared width of the grid."""
    if variable.lower is None and variable.upper is None:
        return
    yield f"harmonicWalls {{ colvars {name}"
    if variable.lower is not None:
        yield f"  lowerWalls {variable.lower!r}"
    if variable.upper is not None:
        yield f"  upperWalls {variable.upper!r}"
    yield f"  forceConstant {variable.wall * (variable.width / PER_SIGMA) ** 2!r} }}"


def _metadynamics(settings: Metadynamics, variables: dict[str, Variable]) -> Iterator[str]:
    yield f"metadynamics {{ colvars {' '.join(variables)}"
    yield f"  hillWeight {settings.height!r}"
    yield f"  newHillFrequency {settings.every}"
    yield f"  gaussianSigmas {' '.join(repr(each.width) for each in variables.values())}"
    if settings.bias_temperature is not None:
        yield f"  wellTempered on\n  biasTemperature {settings.bias_temperature!r}"
    yield "}"
