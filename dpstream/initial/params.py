"""Parameters of DP-GEN's `init_bulk` and `init_surf` (0.14), under their own names.

What belongs to VASP there belongs to the recipe here: those keys are read and named as not used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Positive, Section
from dpstream.shared.spec.errors import explain, read_document

NOT_USED = {
    "potcars": "the recipe says which potentials",
    "relax_incar": "the recipe says how forces are computed; the relaxation is ASE's",
    "md_incar": "only TEBEG and POTIM are read from it; the rest is the recipe's",
    "init_fp_style": "the recipe says which code",
    "relax_kpt": "the recipe says which k-points",
    "md_kpt": "the recipe says which k-points",
    "atom_masses": "standard masses",
    "reuse_relax_chgcar": "every single point starts from nothing but its frame",
    "deepgen_templates": "nothing is rendered from templates",
}
Count = Annotated[int, Field(ge=0)]
P = TypeVar("P", bound="InitParams")


class InitParams(Section):
    """What both have in common."""

    stages: tuple[int, ...] = Field(default=(1, 2, 3, 4), description="all are run at once")
    elements: tuple[str, ...] = Field(min_length=1)
    cell_type: Literal["fcc", "bcc", "sc", "hcp", "diamond"] | None = None
    latt: Positive | None = Field(default=None, description="Å, of cell_type")
    super_cell: tuple[int, int, int] = (1, 1, 1)
    from_poscar: bool = False
    from_poscar_path: str | None = None
    scale: tuple[Positive, ...] = Field(default=(1.0,), min_length=1)
    skip_relax: bool = False
    pert_numb: Count = Field(default=0, description="perturbed copies of each scaled structure")
    pert_box: Annotated[float, Field(ge=0, lt=0.5)] = Field(default=0.0, description="strain")
    pert_atom: Annotated[float, Field(ge=0)] = Field(default=0.0, description="Å")
    coll_ndata: Annotated[int, Field(ge=1)] = Field(default=5000, description="most frames kept")
    type_map: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _structure(self) -> InitParams:
        if self.from_poscar and self.from_poscar_path is None:
            raise ValueError("from_poscar_path: missing, though from_poscar is true")
        if not self.from_poscar and (self.cell_type is None or self.latt is None):
            raise ValueError("cell_type and latt: needed, unless from_poscar is true")
        if not self.from_poscar and len(self.elements) > 1:
            raise ValueError(
                f"elements: {len(self.elements)} of them in one cell_type: dpstream mixes none; "
                "give one POSCAR per composition by from_poscar_path"
            )
        return self


class InitBulk(InitParams):
    md_nstep: Count = Field(default=0, description="steps of dynamics from each structure")
    md_incar: str | None = None


class InitSurf(InitParams):
    millers: tuple[tuple[int, int, int], ...] = Field(min_length=1)
    layer_numb: int | None = Field(default=None, ge=1)
    z_min: Positive | None = Field(default=None, description="Å, thickness where no layer_numb")
    vacuum_min: Positive | None = Field(default=None, description="Å")
    vacuum_max: Positive = Field(description="Å, of the widest gap")
    vacuum_resol: tuple[Positive, ...] = Field(default=(), max_length=2)
    vacuum_numb: Count | None = None
    mid_point: Positive | None = None
    head_ratio: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _slab(self) -> InitSurf:
        if self.layer_numb is None and self.z_min is None:
            raise ValueError("layer_numb or z_min: one of them is needed")
        if len(self.vacuum_resol) != 1 and self.mid_point is None:
            raise ValueError("mid_point: needed, unless vacuum_resol is one interval")
        if not self.vacuum_resol and (self.vacuum_numb is None or self.head_ratio is None):
            raise ValueError("vacuum_numb and head_ratio: needed where there is no vacuum_resol")
        return self


def read_params(path: Path, kind: type[P]) -> tuple[P, list[str]]:
    """The parameters in a YAML or JSON file, and what is not used of them, with the reason.
    `SpecError` names file, key, value and what is allowed."""
    given: dict[Any, Any] = {
        key: value for key, value in read_document(path).items() if not _is_comment(key)
    }
    unused = [key for key in given if key in NOT_USED]
    own = {k: v for k, v in given.items() if k not in NOT_USED or k in kind.model_fields}
    try:
        params = kind.model_validate(own)
    except ValidationError as error:
        raise SpecError(f"{path}: {explain(error, kind)}") from error
    return params, [f"{key}: not used: {NOT_USED[key]}" for key in unused]


def _is_comment(key: Any) -> bool:
    """As DP-GEN's own examples have it."""
    return str(key).startswith("_")
