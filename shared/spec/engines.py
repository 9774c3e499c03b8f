"""Exploration engines: what drives the trajectories of a stage, and with which settings.

`stages[].engine` is one of these, told apart by `kind`. Units: eV, Å, K; widths and walls of a
variable in its own unit (Å, a number, degrees).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from dpstream.shared.spec.base import Positive, Section

MOST_TEXT = 4 * 1024 * 1024
"""Characters of potential files that a spec may carry."""

Text = Annotated[str, StringConstraints(min_length=1, max_length=MOST_TEXT)]
AtomNames = Annotated[str, StringConstraints(pattern=r"^[A-Z][a-z]?[0-9]*$")]
"""`H2`: the second hydrogen, in the order of the file; `H`: all of them."""
Group = Annotated[tuple[AtomNames, ...], Field(min_length=1)]


class Plain(Section):
    """Molecular dynamics driven by a member of the committee."""

    kind: Literal["md"] = Field(default="md", description="plain molecular dynamics")


class SwapMc(Section):
    """Monte Carlo swaps of unlike atoms between the steps of dynamics (LAMMPS fix atom/swap)."""

    kind: Literal["swap-mc"] = Field(description="dynamics with swaps")
    swaps: tuple[tuple[str, str], ...] = Field(
        min_length=1, description="pairs of elements that change places, e.g. [[Cu, Au]]"
    )
    every: int = Field(default=10, ge=1, description="steps between attempts")
    attempts: int = Field(default=5, ge=1, description="swaps tried each time, of every pair")
    temperature: Positive | None = Field(
        default=None, description="K, of the Metropolis test; default: the condition's"
    )

    @model_validator(mode="after")
    def _unlike(self) -> SwapMc:
        for a, b in self.swaps:
            if a == b:
                raise ValueError(f"swaps: {a}-{b}: like atoms cannot change places")
        return self


class Walls(Section):
    """A collective variable's Gaussian width, and where harmonic walls keep it from going on."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")] | None = Field(
        default=None, description="default: its kind and number"
    )
    width: Positive = Field(description="Gaussian width (sigma), in the variable's unit")
    lower: float | None = Field(default=None, description="lower wall")
    upper: float | None = Field(default=None, description="upper wall")
    wall: Positive = Field(default=10.0, description="wall force constant, eV per unit squared")


class Distance(Walls):
    kind: Literal["distance"] = Field(description="of two groups")
    groups: tuple[Group, Group] = Field(description="between their centres of mass, Å")


class Coordination(Walls):
    kind: Literal["coordination"] = Field(description="number of neighbours")
    groups: tuple[Group, Group] = Field(description="atoms of the second around those of the first")
    cutoff: Positive = Field(description="Å, where a pair counts one half")


class Dihedral(Walls):
    kind: Literal["dihedral"] = Field(description="angle")
    atoms: tuple[AtomNames, AtomNames, AtomNames, AtomNames] = Field(description="degrees")


Variable = Annotated[Distance | Coordination | Dihedral, Field(discriminator="kind")]


class Metadynamics(Section):
    height: Positive = Field(default=0.05, description="eV, of a Gaussian hill")
    every: int = Field(default=50, ge=1, description="steps between hills")
    bias_temperature: Positive | None = Field(
        default=None,
        description="K, well-tempered: hills shrink as they pile up; default: they "
        "keep their height",
    )


class Colvars(Section):
    """Dynamics with a bias on collective variables, by the Colvars library in LAMMPS."""

    kind: Literal["colvars"] = Field(description="biased dynamics")
    variables: tuple[Variable, ...] = Field(default=(), description="biased by metadynamics")
    metadynamics: Metadynamics = Field(default=Metadynamics(), description="of `variables`")
    input: Text | None = Field(
        default=None,
        description="instead of variables: a Colvars configuration, as text or the name of a file "
        "beside the spec; `@C1` stands for the number of the first carbon, `@H` for those of all "
        "hydrogens",
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Colvars:
        if bool(self.variables) == (self.input is not None):
            raise ValueError("give either variables or input, one of the two")
        return self


class Plumed(Section):
    """Dynamics with a bias by PLUMED, where the worker's LAMMPS has it."""

    kind: Literal["plumed"] = Field(description="biased dynamics")
    input: Text = Field(
        description="a PLUMED input, as text or the name of a file beside the spec; `@C1` and `@H` "
        "as in colvars"
    )


class Potential(Section):
    """Dynamics driven by any pair style of LAMMPS; the committee only judges."""

    kind: Literal["potential"] = Field(description="dynamics by another potential")
    pair: tuple[str, ...] = Field(
        min_length=2,
        description="LAMMPS commands pair_style and pair_coeff, units metal; atom types are the "
        "elements of type_map in order",
    )
    files: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.+-]*$")], Text] = Field(
        default={},
        description="files that pair_coeff names: name there → the text, or a file beside the spec",
    )


Placeholder = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*$")]
Word = int | float | str
Values = Annotated[tuple[Word, ...], Field(min_length=1)]
Row = tuple[dict[str, Word], dict[str, Word]]
"""Words to replace in a LAMMPS and in a PLUMED input."""


class Revisions(Section):
    """Values of words in a template. Every combination is a condition of its own."""

    lammps: dict[Placeholder, Values] = Field(default={}, description="in the LAMMPS input")
    plumed: dict[Placeholder, Values] = Field(default={}, description="in the PLUMED input")

    def rows(self) -> tuple[Row, ...]:
        """The outer product, the last word running fastest."""
        return tuple(
            (lammps, plumed) for lammps in _product(self.lammps) for plumed in _product(self.plumed)
        )


def _product(values: Mapping[str, Sequence[Word]]) -> list[dict[str, Word]]:
    return [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]


class Template(Section):
    """The user's own LAMMPS input around the committee."""

    kind: Literal["template"] = Field(description="the user's LAMMPS input")
    lammps: Text = Field(
        description="a LAMMPS input with at most one `run`, as text or the name of a file beside "
        "the spec. V_NSTEPS, V_TEMP, V_PRES, V_DT and V_SEED stand for md.steps, the condition's "
        "temperature (K) and pressure (bar), md.timestep and a seed of each trajectory"
    )
    plumed: Text | None = Field(
        default=None, description="the PLUMED input that `fix dpgen_plm` runs, likewise"
    )
    revisions: Revisions = Field(default=Revisions(), description="of every system")
    system_revisions: dict[str, Revisions] = Field(
        default={}, description="of one system, on top of `revisions`"
    )

    def rows(self, system: str) -> tuple[Row, ...]:
        own = self.system_revisions.get(system, Revisions())
        return Revisions(
            lammps={**self.revisions.lammps, **own.lammps},
            plumed={**self.revisions.plumed, **own.plumed},
        ).rows()


class Search(Section):
    """Structure search: random symmetric structures and offspring of the best, each relaxed by
    the mean of the committee. A check is one structure, so a trajectory tries md.steps / md.every;
    compositions are those of the stage's systems."""

    kind: Literal["search"] = Field(description="random and bred crystals")
    volume: tuple[Positive, Positive] = Field(
        default=(0.8, 1.4), description="range of random volumes, times that of the system's own"
    )
    min_distance: Positive = Field(
        default=0.7, description="of random structures, times the sum of covalent radii"
    )
    relax_steps: int = Field(default=60, ge=0, description="most steps of a relaxation")
    max_force: Positive = Field(default=0.1, description="eV/Å that ends a relaxation")
    pressure: float = Field(default=0.0, description="bar, on the cell while it relaxes")
    offspring: float = Field(
        default=0.0, ge=0, le=1, description="share of structures that are bred, by ase-ga"
    )
    population: int = Field(default=20, ge=2, description="parents: the lowest in enthalpy")


class AsGiven(Section):
    """Nothing moves: the structures of the systems are judged as they are, one check each, those
    whose label was asked for left out. md.steps / md.every of one composition are a trajectory."""

    kind: Literal["frames"] = Field(description="the systems' own structures")


class Pimd(Section):
    """Path-integral dynamics: ring polymers of beads, each bead a LAMMPS process of its own (fix
    pimd/langevin). Every bead's frame is judged."""

    kind: Literal["pimd"] = Field(description="nuclei as ring polymers")
    beads: int = Field(ge=2, le=256, description="copies of the system; give as many cores")


EngineSettings = Plain | SwapMc | Colvars | Plumed | Potential | Template | Search | AsGiven | Pimd


def frames_per_check(engine: EngineSettings) -> int:
    return engine.beads if isinstance(engine, Pimd) else 1


def _written_short(value: Any) -> Any:
    """`engine: md` for `engine: {kind: md}`."""
    return {"kind": value} if isinstance(value, str) else value


AnyEngine = Annotated[EngineSettings, Field(discriminator="kind"), BeforeValidator(_written_short)]
KINDS = (
    "md",
    "swap-mc",
    "colvars",
    "plumed",
    "potential",
    "template",
    "search",
    "frames",
    "pimd",
)
VARIABLES = ("distance", "coordination", "dihedral")
TEXTS = {"colvars": ("input",), "plumed": ("input",), "template": ("lammps", "plumed")}
"""Keys whose value is a text, or the name of a file that holds it."""


def inline(engine: Any, read: Callable[[str], str]) -> Any:
    """The settings of an engine, not validated yet, with named files replaced by their text."""
    if not isinstance(engine, dict):
        return engine
    named = {key: engine[key] for key in TEXTS.get(str(engine.get("kind")), ()) if key in engine}
    texts = {key: _text(value, read) for key, value in named.items()}
    if isinstance(engine.get("files"), dict):
        texts["files"] = {key: _text(value, read) for key, value in engine["files"].items()}
    return {**engine, **texts}


def _text(value: Any, read: Callable[[str], str]) -> Any:
    return read(value) if isinstance(value, str) and "\n" not in value else value


def problems(
    engine: EngineSettings, type_map: Sequence[str], systems: Sequence[str]
) -> Iterator[str]:
    """What in an engine's settings does not fit the spec: key, value, what is allowed."""
    known = ", ".join(type_map)
    if isinstance(engine, SwapMc):
        for symbol in sorted({s for pair in engine.swaps for s in pair} - set(type_map)):
            yield f"swaps: {symbol!r} is not in type_map ({known})"
    if isinstance(engine, Colvars):
        for symbol in sorted({name.rstrip("0123456789") for name in _named(engine)} - {*type_map}):
            yield f"variables: {symbol!r} is not in type_map ({known})"
    if isinstance(engine, Template):
        for name in sorted(engine.system_revisions.keys() - set(systems)):
            yield f"system_revisions: {name!r} is not among systems ({', '.join(systems)})"


def _named(engine: Colvars) -> Iterator[str]:
    for variable in engine.variables:
        groups = (variable.atoms,) if isinstance(variable, Dihedral) else variable.groups
        yield from (name for group in groups for name in group)
