"""What a campaign starts from: systems, and the first data."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from dpstream.shared.spec.base import Positive, Section
from dpstream.shared.values import Kpoints


class Slabs(Section):
    """Surfaces cut from crystals, instead of the crystals."""

    miller: tuple[tuple[int, int, int], ...] = Field(
        min_length=1, description="indices in the cell of the file, usually the conventional one"
    )
    layers: int | None = Field(
        default=None, ge=1, description="cells along the normal; or thickness"
    )
    thickness: Positive | None = Field(default=None, description="Å, instead of layers")
    vacuum: tuple[Positive, ...] = Field(
        default=(10.0,), min_length=1, description="Å in all, each a slab of its own"
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Slabs:
        if (self.layers is None) == (self.thickness is None):
            raise ValueError("give either layers or thickness")
        if (0, 0, 0) in self.miller:
            raise ValueError("miller: [0, 0, 0] is no plane")
        return self


class SystemLabel(Section):
    """What the labels of a system are computed with, where it is not what `labels` says. It holds
    for every frame of the same composition."""

    charge: int | None = Field(default=None, description="e")
    multiplicity: int | None = Field(
        default=None, ge=0, description="2S + 1; 0: the lowest that the electrons allow"
    )
    kpoints: Kpoints | None = Field(default=None, description="divisions of the mesh, [4, 4, 4]")
    magmom: dict[str, float] | tuple[float, ...] | None = Field(
        default=None, description="µB by element, or of each atom in the order of the file"
    )


class System(Section):
    structures: tuple[str, ...] = Field(
        min_length=1,
        description="files (globs allowed) that ASE reads: POSCAR, extxyz, xyz, cif…; relative to "
        "the spec. Every frame of every file is a starting structure",
    )
    periodic: bool | None = Field(
        default=None, description="default: as the file says; false drops the cell"
    )
    format: str | None = Field(
        default=None,
        description="dpdata's name of the files' format, e.g. lammps/lmp, abacus/stru; default: as "
        "ASE tells from the file",
    )
    fparam: tuple[float, ...] = Field(
        default=(),
        description="frame parameters of every frame that comes from these structures (an electron "
        "temperature…), as many as model.fitting_net.numb_fparam says",
    )
    aparam: tuple[float, ...] = Field(
        default=(), description="likewise of every atom, as many as numb_aparam says"
    )
    label: SystemLabel | None = Field(
        default=None, description="label inputs of this system: charge, kpoints, magmom…"
    )
    slabs: Slabs | None = Field(default=None, description="surfaces of the structures, instead")
    supercell: tuple[PositiveInt, PositiveInt, PositiveInt] | None = Field(
        default=None, description="repeats along the cell vectors, of slabs too"
    )


class Perturb(Section):
    """Perturbed copies of the starting structures, labelled before the first training."""

    copies: int = Field(default=20, ge=1, description="per system")
    displace: Positive = Field(default=0.1, description="Å, largest displacement of one atom")
    strain: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.03, description="largest change of a cell component, as a fraction"
    )
    scale: tuple[Annotated[float, Field(ge=0.5, le=2)], ...] = Field(
        default=(1.0,),
        min_length=1,
        description="factors on every length first, dealt over the copies in turn, e.g. "
        "[0.96, 1.0, 1.04]",
    )


class Dimers(Section):
    """Two atoms alone at given distances, labelled before the first training. They are not
    rejected as too close, and do not count in a member's error on its training frames."""

    pairs: tuple[str, ...] = Field(
        default=(), description="e.g. [C-H, H-H]; default: all that the recipe can compute"
    )
    distances: tuple[Annotated[float, Field(ge=0.1, le=20)], ...] = Field(
        min_length=1, max_length=50, description="Å, of every pair"
    )
    box: Positive | None = Field(
        default=None, description="Å, edge of a cubic cell; default: in vacuum"
    )
    max_force: Positive = Field(
        default=500.0, description="eV/Å; a label above is rejected (instead of labels.max_force)"
    )

    @model_validator(mode="after")
    def _inside(self) -> Dimers:
        if self.box is not None and max(self.distances) > self.box / 2:
            raise ValueError(f"distances: above half the box ({self.box / 2:g} Å) meet an image")
        return self


class Initial(Section):
    data: tuple[str, ...] = Field(
        default=(),
        description="labelled sets: DeePMD npy folders or HDF5 files, extxyz, VASP OUTCAR",
    )
    pick: int = Field(
        default=0,
        ge=0,
        description="structures of the systems drawn at random, labelled before the first training",
    )
    perturb: Perturb | None = Field(
        default=None, description="perturbed copies of the starting structures"
    )
    dimers: Dimers | None = Field(default=None, description="two atoms at given distances")
