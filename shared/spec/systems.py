"""Sections on systems, their starting structures and the initial data."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from dpstream.shared.spec.base import Positive, Section
from dpstream.shared.values import Kpoints


class Slabs(Section):
    """Surfaces cut from crystals, which replace the crystals."""

    miller: tuple[tuple[int, int, int], ...] = Field(
        min_length=1, description="indices in the cell of the file, usually the conventional one"
    )
    layers: int | None = Field(
        default=None, ge=1, description="unit cells along the normal, instead of thickness"
    )
    thickness: Positive | None = Field(default=None, description="Å, instead of layers")
    vacuum: tuple[Positive, ...] = Field(
        default=(10.0,), min_length=1, description="total vacuum, Å; one slab per value"
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Slabs:
        if (self.layers is None) == (self.thickness is None):
            raise ValueError("give exactly one of layers and thickness")
        if (0, 0, 0) in self.miller:
            raise ValueError("miller: [0, 0, 0] is not a plane")
        return self


class SystemLabel(Section):
    """Label inputs of one system that differ from `labels`. They apply to all frames of the same
    composition."""

    charge: int | None = Field(default=None, description="charge, e")
    multiplicity: int | None = Field(
        default=None, ge=0, description="2S + 1; 0: the lowest possible for the number of electrons"
    )
    kpoints: Kpoints | None = Field(default=None, description="k-point mesh, e.g. [4, 4, 4]")
    magmom: dict[str, float] | tuple[float, ...] | None = Field(
        default=None, description="µB, by element or for each atom in the order of the file"
    )


class System(Section):
    structures: tuple[str, ...] = Field(
        min_length=1,
        description="files or globs, relative to the spec, in any format of ASE (POSCAR, extxyz, "
        "cif…); every frame of every file is a starting structure",
    )
    periodic: bool | None = Field(
        default=None, description="default: as in the file; false: ignore the cell"
    )
    format: str | None = Field(
        default=None,
        description="dpdata format, e.g. lammps/lmp, abacus/stru; default: detected by ASE",
    )
    fparam: tuple[float, ...] = Field(
        default=(),
        description="frame parameters of all frames of this system, e.g. an electron temperature; "
        "as many as model.fitting_net.numb_fparam",
    )
    aparam: tuple[float, ...] = Field(
        default=(), description="parameters of every atom; as many as model.fitting_net.numb_aparam"
    )
    label: SystemLabel | None = Field(
        default=None, description="label inputs for this system: charge, kpoints, magmom…"
    )
    slabs: Slabs | None = Field(default=None, description="surfaces to cut from the structures")
    supercell: tuple[PositiveInt, PositiveInt, PositiveInt] | None = Field(
        default=None, description="repeats along the cell vectors, also of slabs"
    )
    shuffle: bool = Field(
        default=False,
        description="distribute the elements of each structure at random over its sites",
    )


class Perturb(Section):
    """Perturbed copies of the starting structures, labelled before the first training."""

    copies: int = Field(default=20, ge=1, description="copies per system")
    displace: Positive = Field(default=0.1, description="largest displacement of an atom, Å")
    strain: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.03, description="largest relative change of a cell component"
    )
    scale: tuple[Annotated[float, Field(ge=0.5, le=2)], ...] = Field(
        default=(1.0,),
        min_length=1,
        description="factors on all lengths, in turn before perturbing, e.g. [0.96, 1.0, 1.04]",
    )


class Dimers(Section):
    """Isolated pairs of atoms at given distances, labelled before the first training. They are
    not rejected as too close, and are excluded from a member's error on its training frames."""

    pairs: tuple[str, ...] = Field(
        default=(), description="e.g. [C-H, H-H]; default: all pairs that the recipe can compute"
    )
    distances: tuple[Annotated[float, Field(ge=0.1, le=20)], ...] = Field(
        min_length=1, max_length=50, description="Å, for every pair"
    )
    box: Positive | None = Field(
        default=None, description="edge of a cubic cell, Å; default: vacuum"
    )
    max_force: Positive = Field(
        default=500.0, description="eV/Å; replaces labels.max_force for dimers"
    )

    @model_validator(mode="after")
    def _inside(self) -> Dimers:
        if self.box is not None and max(self.distances) > self.box / 2:
            raise ValueError(f"distances: must not exceed half the box ({self.box / 2:g} Å)")
        return self


class LabelledSet(Section):
    """A labelled set whose numbers or elements have names of its own."""

    file: str = Field(min_length=1, description="file, folder or pattern, relative to the spec")
    energy: str | None = Field(default=None, description="name of the energy (eV), e.g. REF_energy")
    forces: str | None = Field(default=None, description="name of the forces (eV/Å)")
    virial: str | None = Field(default=None, description="name of the virial −dE/dε (eV)")
    stress: str | None = Field(
        default=None, description="name of the stress (eV/Å³, positive under tension), if no virial"
    )
    type_map: tuple[str, ...] = Field(
        default=(), description="elements of types 0, 1, … of a set without type_map.raw"
    )

    @model_validator(mode="after")
    def _one_tensor(self) -> LabelledSet:
        if self.virial is not None and self.stress is not None:
            raise ValueError("virial, stress: give one of them")
        return self

    @property
    def columns(self) -> dict[str, str]:
        """The names that are given, by quantity."""
        given = {name: getattr(self, name) for name in ("energy", "forces", "virial", "stress")}
        return {name: value for name, value in given.items() if value is not None}


def _form_of_set(value: object) -> str:
    return "as-a-mapping" if isinstance(value, dict | LabelledSet) else "as-a-name"


SET_TAGS = ("as-a-mapping", "as-a-name")
AnySet = Annotated[
    Annotated[str, Tag("as-a-name")] | Annotated[LabelledSet, Tag("as-a-mapping")],
    Discriminator(_form_of_set),
]
"""Files of a labelled set, or a mapping that also names what is in them."""


class Initial(Section):
    data: tuple[AnySet, ...] = Field(
        default=(),
        description="labelled sets: DeePMD folders and HDF5 files, extxyz, outputs of labeling "
        "codes (OUTCAR, vasprun.xml, QE, CP2K…); or {file: …, energy: …, forces: …} with names",
    )
    pick: int = Field(
        default=0,
        ge=0,
        description="unperturbed structures drawn at random, labelled before the first training",
    )
    perturb: Perturb | None = Field(
        default=None, description="perturbed copies of the starting structures"
    )
    dimers: Dimers | None = Field(
        default=None, description="isolated pairs of atoms at given distances"
    )
