"""Settings of the exploration engines, which generate the frames of a stage.

`stages[].engine` is one of these, selected by `kind`. Units: eV, Å, K; widths and walls of a
collective variable in its own unit (Å, a number, degrees).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from dpstream.shared.spec.base import Positive, Section
from dpstream.shared.values import Name

MOST_TEXT = 4 * 1024 * 1024
"""Largest size of one text in a spec, in characters."""

Text = Annotated[str, StringConstraints(min_length=1, max_length=MOST_TEXT)]
AtomNames = Annotated[str, StringConstraints(pattern=r"^[A-Z][a-z]?[0-9]*$")]
"""`H2`: the second hydrogen in the order of the file; `H`: all hydrogens."""
AtomLabel = Annotated[str, StringConstraints(pattern=r"^\S{1,5}$")]
"""Name of an atom in a topology, such as `HW1`."""
Group = Annotated[tuple[AtomNames, ...], Field(min_length=1)]


class Plain(Section):
    """Molecular dynamics with one member of the committee."""

    kind: Literal["md"] = Field(default="md", description="plain molecular dynamics")


class Batched(Section):
    """Molecular dynamics of all trajectories that a worker runs at the same time in one batch, with
    PyTorch models (TorchSim). Ensembles: nve, nvt; with TorchSim 0.6 also npt-iso, npt-aniso."""

    kind: Literal["batched"] = Field(description="dynamics of many trajectories in one batch")


class SwapMc(Section):
    """Molecular dynamics with Monte Carlo swaps of unlike atoms (LAMMPS fix atom/swap)."""

    kind: Literal["swap-mc"] = Field(description="dynamics with Monte Carlo swaps")
    swaps: tuple[tuple[str, str], ...] = Field(
        min_length=1, description="pairs of elements to exchange, e.g. [[Cu, Au]]"
    )
    every: int = Field(default=10, ge=1, description="steps between attempts")
    attempts: int = Field(default=5, ge=1, description="attempted swaps per pair each time")
    temperature: Positive | None = Field(
        default=None, description="K, for the Metropolis test; default: that of the condition"
    )

    @model_validator(mode="after")
    def _unlike(self) -> SwapMc:
        for a, b in self.swaps:
            if a == b:
                raise ValueError(f"swaps: {a}-{b}: give two different elements")
        return self


class Walls(Section):
    """Name, Gaussian width and harmonic walls of a collective variable."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")] | None = Field(
        default=None, description="name in the output; default: its kind and number"
    )
    width: Positive = Field(description="Gaussian width (sigma), in the variable's unit")
    lower: float | None = Field(default=None, description="position of a lower wall")
    upper: float | None = Field(default=None, description="position of an upper wall")
    wall: Positive = Field(default=10.0, description="wall force constant, eV per unit squared")


class Distance(Walls):
    kind: Literal["distance"] = Field(description="distance of two groups")
    groups: tuple[Group, Group] = Field(description="two groups of atoms; centres of mass, Å")


class Coordination(Walls):
    kind: Literal["coordination"] = Field(description="number of neighbours")
    groups: tuple[Group, Group] = Field(
        description="central atoms and neighbours to count around them"
    )
    cutoff: Positive = Field(description="Å, distance at which a pair counts one half")


class Dihedral(Walls):
    kind: Literal["dihedral"] = Field(description="dihedral angle, degrees")
    atoms: tuple[AtomNames, AtomNames, AtomNames, AtomNames] = Field(description="four atoms")


VariableSettings = Distance | Coordination | Dihedral
Variable = Annotated[VariableSettings, Field(discriminator="kind")]


class Metadynamics(Section):
    height: Positive = Field(default=0.05, description="height of a Gaussian hill, eV")
    every: int = Field(default=50, ge=1, description="steps between hills")
    bias_temperature: Positive | None = Field(
        default=None,
        description="K, for well-tempered metadynamics; default: hills of constant height",
    )


class Colvars(Section):
    """Molecular dynamics biased along collective variables (the Colvars library in LAMMPS)."""

    kind: Literal["colvars"] = Field(description="dynamics biased with Colvars")
    variables: tuple[Variable, ...] = Field(
        default=(), description="collective variables to bias with metadynamics"
    )
    metadynamics: Metadynamics = Field(
        default=Metadynamics(), description="metadynamics along `variables`"
    )
    input: Text | None = Field(
        default=None,
        description="instead of variables: a Colvars configuration, as text or as the name of a "
        "file, relative to the spec; `@C1` stands for the number of the first carbon, `@H` for "
        "those of all hydrogens",
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Colvars:
        if bool(self.variables) == (self.input is not None):
            raise ValueError("give exactly one of variables and input")
        return self


class Plumed(Section):
    """Molecular dynamics biased with PLUMED; the worker's LAMMPS must include it."""

    kind: Literal["plumed"] = Field(description="dynamics biased with PLUMED")
    input: Text = Field(
        description="a PLUMED input, as text or as the name of a file, relative to the spec; `@C1` "
        "and `@H` as in colvars"
    )


class Potential(Section):
    """Molecular dynamics with any LAMMPS pair style; the committee judges the frames only."""

    kind: Literal["potential"] = Field(description="dynamics with another potential")
    pair: tuple[str, ...] = Field(
        min_length=2,
        description="LAMMPS commands pair_style and pair_coeff, units metal; atom types are the "
        "elements of type_map in order",
    )
    files: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.+-]*$")], Text] = Field(
        default={},
        description="files in pair_coeff by name: the text, or a file relative to the spec",
    )


Placeholder = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*$")]
Word = int | float | str
Values = Annotated[tuple[Word, ...], Field(min_length=1)]
Row = tuple[dict[str, Word], dict[str, Word]]
"""Values of placeholders in the LAMMPS and in the PLUMED input."""


class Revisions(Section):
    """Values of placeholders in a template. Every combination is a separate condition."""

    lammps: dict[Placeholder, Values] = Field(
        default={}, description="placeholders in the LAMMPS input"
    )
    plumed: dict[Placeholder, Values] = Field(
        default={}, description="placeholders in the PLUMED input"
    )

    def rows(self) -> tuple[Row, ...]:
        """All combinations; the last placeholder varies fastest."""
        return tuple(itertools.product(_product(self.lammps), _product(self.plumed)))


def _product(values: Mapping[str, Sequence[Word]]) -> list[dict[str, Word]]:
    return [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]


class Template(Section):
    """The user's own LAMMPS input, run with the committee as its potential."""

    kind: Literal["template"] = Field(description="the user's LAMMPS input")
    lammps: Text = Field(
        description="a LAMMPS input with at most one `run`, as text or as the name of a file, "
        "relative to the spec. V_NSTEPS, V_TEMP, V_PRES, V_DT and V_SEED stand for md.steps, the "
        "condition's temperature (K) and pressure (bar), md.timestep and a seed per trajectory"
    )
    plumed: Text | None = Field(
        default=None, description="the PLUMED input for `fix dpgen_plm`, as text or file name"
    )
    revisions: Revisions = Field(
        default=Revisions(), description="values of placeholders for all systems"
    )
    system_revisions: dict[str, Revisions] = Field(
        default={}, description="values for single systems, merged over `revisions`"
    )

    def rows(self, system: str) -> tuple[Row, ...]:
        own = self.system_revisions.get(system, Revisions())
        return Revisions(
            lammps={**self.revisions.lammps, **own.lammps},
            plumed={**self.revisions.plumed, **own.plumed},
        ).rows()


class Search(Section):
    """Structure search: random symmetric structures and offspring of the best, each relaxed with
    the mean of the committee. Every check is one structure, so a trajectory generates
    md.steps / md.every structures, with the compositions of the stage's systems."""

    kind: Literal["search"] = Field(description="search for crystal structures")
    volume: tuple[Positive, Positive] = Field(
        default=(0.8, 1.4), description="range of random volumes, relative to the system's volume"
    )
    min_distance: Positive = Field(
        default=0.7, description="in random structures, relative to the sum of covalent radii"
    )
    relax_steps: int = Field(default=60, ge=0, description="largest number of relaxation steps")
    max_force: Positive = Field(default=0.1, description="largest force after a relaxation, eV/Å")
    pressure: float = Field(default=0.0, description="external pressure during the relaxation, bar")
    offspring: float = Field(
        default=0.0, ge=0, le=1, description="share of structures created by crossover (ase-ga)"
    )
    population: int = Field(
        default=20, ge=2, description="number of parents, those of lowest enthalpy"
    )


class AsGiven(Section):
    """No dynamics: the structures of the systems are judged unchanged, one check each, except
    those already labelled or queued. A trajectory is md.steps / md.every structures of one
    composition."""

    kind: Literal["frames"] = Field(description="the structures of the systems, unchanged")


class Pimd(Section):
    """Path-integral dynamics: nuclei as ring polymers of beads, each bead a separate LAMMPS
    process (fix pimd/langevin). The frame of every bead is judged."""

    kind: Literal["pimd"] = Field(description="path-integral dynamics")
    beads: int = Field(ge=2, le=256, description="beads per nucleus; needs as many cores")


class Gromacs(Section):
    """Molecular dynamics by GROMACS with the force field of the user's topology; the committee
    judges the frames only."""

    kind: Literal["gromacs"] = Field(description="dynamics by GROMACS with its own force field")
    mdp: Text = Field(
        description="run parameters of GROMACS, as text or as the name of a file, relative to the "
        "spec. Temperature, pressure, steps, time step, output and seeds are the stage's"
    )
    topologies: dict[Name, Text] = Field(
        min_length=1,
        description="the topology (.top) of each system, as text or file name; atoms in the order "
        "of the system's structures",
    )
    elements: dict[AtomLabel, str] = Field(
        default={},
        description="element of each atom name for which the topology has no at.num, or a wrong "
        "one",
    )
    max_warnings: int = Field(
        default=0, ge=0, description="number of `gmx grompp` warnings that are accepted (-maxwarn)"
    )


EngineSettings = (
    Plain
    | Batched
    | SwapMc
    | Colvars
    | Plumed
    | Potential
    | Template
    | Search
    | AsGiven
    | Pimd
    | Gromacs
)


def driver_of(engine: EngineSettings) -> str | None:
    """What moves the atoms in place of the committee, which then only judges; None: the
    committee, or nothing."""
    if isinstance(engine, Gromacs):
        return "GROMACS with the force field of the topology"
    return "the pair style of the spec" if isinstance(engine, Potential) else None


def frames_per_check(engine: EngineSettings) -> int:
    return engine.beads if isinstance(engine, Pimd) else 1


def _written_short(value: Any) -> Any:
    """`engine: md` for `engine: {kind: md}`."""
    return {"kind": value} if isinstance(value, str) else value


AnyEngine = Annotated[EngineSettings, Field(discriminator="kind"), BeforeValidator(_written_short)]


def _kinds(union: Any) -> tuple[str, ...]:
    return tuple(get_args(each.model_fields["kind"].annotation)[0] for each in get_args(union))


KINDS, VARIABLES = _kinds(EngineSettings), _kinds(VariableSettings)
TEXTS = {
    "colvars": ("input",),
    "plumed": ("input",),
    "template": ("lammps", "plumed"),
    "gromacs": ("mdp",),
}
"""Keys whose value is a text, or the name of a file that contains it."""
NAMED_TEXTS = ("files", "topologies")
"""Keys whose value has such texts by name."""


def inline(engine: Any, read: Callable[[str], str]) -> Any:
    """Replace file names in unvalidated engine settings by the text of the files."""
    if not isinstance(engine, dict):
        return engine
    named = {key: engine[key] for key in TEXTS.get(str(engine.get("kind")), ()) if key in engine}
    texts = {key: _text(value, read) for key, value in named.items()}
    for key in NAMED_TEXTS:
        if isinstance(engine.get(key), dict):
            texts[key] = {name: _text(value, read) for name, value in engine[key].items()}
    return {**engine, **texts}


def _text(value: Any, read: Callable[[str], str]) -> Any:
    return read(value) if isinstance(value, str) and "\n" not in value else value


def problems(
    engine: EngineSettings, type_map: Sequence[str], systems: Sequence[str]
) -> Iterator[str]:
    """Conflicts between an engine's settings and the spec: key, value, allowed values."""
    known = ", ".join(type_map)
    if isinstance(engine, SwapMc):
        for symbol in sorted({s for pair in engine.swaps for s in pair} - set(type_map)):
            yield f"swaps: {symbol!r} is not in type_map ({known})"
    if isinstance(engine, Colvars):
        for symbol in sorted({name.rstrip("0123456789") for name in _named(engine)} - {*type_map}):
            yield f"variables: {symbol!r} is not in type_map ({known})"
    if isinstance(engine, Template):
        for name in sorted(engine.system_revisions.keys() - set(systems)):
            yield f"system_revisions: {name!r} is not in systems ({', '.join(systems)})"
    if isinstance(engine, Gromacs):
        yield from _gromacs_problems(engine, type_map, systems)


def _gromacs_problems(
    engine: Gromacs, type_map: Sequence[str], systems: Sequence[str]
) -> Iterator[str]:
    for name in systems:
        if name not in engine.topologies:
            yield f"topologies: has none of {name!r}; add {name}: FILE.top"
    for name in sorted(engine.topologies.keys() - set(systems)):
        yield f"topologies: {name!r} is not in systems ({', '.join(systems)})"
    for symbol in sorted(set(engine.elements.values()) - set(type_map)):
        yield f"elements: {symbol!r} is not in type_map ({', '.join(type_map)})"


def _named(engine: Colvars) -> Iterator[str]:
    for variable in engine.variables:
        groups = (variable.atoms,) if isinstance(variable, Dihedral) else variable.groups
        yield from (name for group in groups for name in group)
