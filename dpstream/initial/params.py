"""Parameters of DP-GEN's `init_bulk` and `init_surf` (0.14), with DP-GEN's names.

Settings of VASP are part of the recipe here; those keys are accepted and reported as not used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, model_validator

from dpstream.shared.spec import Positive, Section
from dpstream.shared.spec.errors import read_document, validated

NOT_USED = {
    "potcars": "the recipe determines the potentials",
    "relax_incar": "the recipe determines how forces are computed; ASE does the relaxation",
    "md_incar": "only TEBEG and POTIM are read from it; the recipe determines the rest",
    "init_fp_style": "the recipe determines the code",
    "relax_kpt": "the recipe determines the k-points",
    "md_kpt": "the recipe determines the k-points",
    "atom_masses": "standard masses are used",
    "reuse_relax_chgcar": "every single point starts from scratch",
    "deepgen_templates": "there are no templates",
}
Count = Annotated[int, Field(ge=0)]
P = TypeVar("P", bound="InitParams")


class InitParams(Section):
    """Parameters of both commands."""

    stages: tuple[int, ...] = Field(default=(1, 2, 3, 4), description="all stages run at once")
    elements: tuple[str, ...] = Field(min_length=1)
    cell_type: Literal["fcc", "bcc", "sc", "hcp", "diamond"] | None = None
    latt: Positive | None = Field(default=None, description="lattice constant of cell_type, Å")
    super_cell: tuple[int, int, int] = (1, 1, 1)
    from_poscar: bool = False
    from_poscar_path: str | None = None
    scale: tuple[Positive, ...] = Field(default=(1.0,), min_length=1)
    skip_relax: bool = False
    pert_numb: Count = Field(default=0, description="perturbed copies of each scaled structure")
    pert_box: Annotated[float, Field(ge=0, lt=0.5)] = Field(default=0.0, description="strain")
    pert_atom: Annotated[float, Field(ge=0)] = Field(default=0.0, description="Å")
    coll_ndata: Annotated[int, Field(ge=1)] = Field(
        default=5000, description="largest number of frames kept"
    )
    type_map: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _structure(self) -> InitParams:
        if self.from_poscar and self.from_poscar_path is None:
            raise ValueError("from_poscar_path: missing; required if from_poscar is true")
        if not self.from_poscar and (self.cell_type is None or self.latt is None):
            raise ValueError("cell_type and latt: missing; required unless from_poscar is true")
        if not self.from_poscar and len(self.elements) > 1:
            raise ValueError(
                f"elements: {len(self.elements)} elements in one cell_type are not supported; "
                "give one POSCAR per composition with from_poscar_path"
            )
        return self


class InitBulk(InitParams):
    md_nstep: Count = Field(default=0, description="steps of dynamics from each structure")
    md_incar: str | None = None


class InitSurf(InitParams):
    millers: tuple[tuple[int, int, int], ...] = Field(min_length=1)
    layer_numb: int | None = Field(default=None, ge=1)
    z_min: Positive | None = Field(default=None, description="thickness instead of layer_numb, Å")
    vacuum_min: Positive | None = Field(default=None, description="vacuum of the first slab, Å")
    vacuum_max: Positive = Field(description="widest gap, Å")
    vacuum_resol: tuple[Positive, ...] = Field(default=(), max_length=2)
    vacuum_numb: Count | None = None
    mid_point: Positive | None = None
    head_ratio: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _slab(self) -> InitSurf:
        if self.layer_numb is None and self.z_min is None:
            raise ValueError("layer_numb or z_min: missing; one of them is required")
        if len(self.vacuum_resol) != 1 and self.mid_point is None:
            raise ValueError("mid_point: missing; required unless vacuum_resol is one interval")
        if not self.vacuum_resol and (self.vacuum_numb is None or self.head_ratio is None):
            raise ValueError("vacuum_numb and head_ratio: missing; required without vacuum_resol")
        return self


def read_params(path: Path, kind: type[P]) -> tuple[P, list[str]]:
    """The parameters in a YAML or JSON file, and a line for each key that is not used. Raises
    `SpecError` naming file, key, value and allowed values."""
    given: dict[Any, Any] = {
        key: value for key, value in read_document(path).items() if not _is_comment(key)
    }
    unused = [key for key in given if key in NOT_USED]
    own = {k: v for k, v in given.items() if k not in NOT_USED or k in kind.model_fields}
    params = validated(kind, own, f"{path}: ")
    return params, [f"{key}: not used: {NOT_USED[key]}" for key in unused]


def _is_comment(key: Any) -> bool:
    """Keys with a leading underscore are comments, as in DP-GEN's examples."""
    return str(key).startswith("_")
