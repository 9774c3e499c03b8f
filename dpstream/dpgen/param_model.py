"""Validates the values of a param file that the conversion uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

PerSystem = float | list[float] | dict[str, float]
Temperature = float | tuple[float, float]
"""K; a pair: of atoms and of electrons."""


class ParamSection(BaseModel):
    """A section of a param file. Further keys are ignored here; `keys.py` accounts for them."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _one_of_each(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for names in _aliases(cls):
                _refuse_two([name for name in names if values.get(name) is not None], values)
        return values


def _aliases(model: type[BaseModel]) -> Iterator[list[str]]:
    """The names of each key that has several names."""
    for info in model.model_fields.values():
        if isinstance(info.validation_alias, AliasChoices):
            yield [str(name) for name in info.validation_alias.choices]


def _refuse_two(names: list[str], values: dict[str, Any]) -> None:
    for name in names[1:]:
        if values[name] != values[names[0]]:
            raise ValueError(
                f"{name}: {values[name]}: contradicts {names[0]}: {values[names[0]]}, which is "
                "the same key; keep one"
            )


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Words = dict[str, Annotated[list[int | float | str], Field(min_length=1)]]
"""Values of placeholders in a template."""


class JobTemplate(ParamSection):
    lmp: str
    plm: str | None = None


class Revised(ParamSection):
    lmp: Words = {}
    plm: Words = {}


class ModelDeviJob(ParamSection):
    """One entry of model_devi_jobs. Temperatures in K, pressures in bar, times in ps."""

    sys_idx: list[int | str] = Field(min_length=1)
    temps: list[Temperature] | None = Field(
        default=None, validation_alias=AliasChoices("temps", "Ts"), min_length=1
    )
    press: list[float] = Field(default=[], validation_alias=AliasChoices("press", "Ps"))
    trj_freq: int = Field(validation_alias=AliasChoices("trj_freq", "t_freq", "traj_freq"), ge=1)
    nsteps: int | None = Field(default=None, ge=1)
    nbeads: int | None = Field(default=None, ge=1)
    ensemble: str | None = Field(default=None, validation_alias=AliasChoices("ensemble", "ens"))
    dt: float | None = None
    taut: float | None = None
    taup: float | None = None
    template: JobTemplate | None = None
    rev_mat: Revised = Revised()
    sys_rev_mat: dict[str, Revised] = {}
    model_devi_f_trust_lo: float | dict[str, float] | None = None
    model_devi_f_trust_hi: float | dict[str, float] | None = None
    model_devi_v_trust_lo: float | dict[str, float] | None = None
    model_devi_v_trust_hi: float | dict[str, float] | None = None


class GromacsFiles(ParamSection):
    """gromacs_settings: names of files in the folder of each system, and warnings to allow."""

    mdp_filename: str = "md.mdp"
    topol_filename: str = "processed.top"
    conf_filename: str = "conf.gro"
    type_filename: str = "type.raw"
    maxwarn: int = Field(default=1, ge=0)


class RunParam(ParamSection):
    type_map: list[str] = Field(min_length=1)
    mass_map: list[float] | str = "auto"
    use_ele_temp: Literal[0, 1, 2] = 0
    init_data_prefix: str = ""
    init_data_sys: list[str] = Field(min_length=1)
    sys_format: str = "vasp/poscar"
    init_batch_size: list[int | str] | str | None = None
    sys_configs_prefix: str = ""
    sys_configs: list[list[str]] = Field(min_length=1)
    sys_batch_size: list[int | str] | None = None
    sys_charges: list[int] | None = None
    model_devi_engine: str | None = None
    gromacs_settings: GromacsFiles = GromacsFiles()

    numb_models: int = Field(ge=2, le=16)
    train_backend: str = "tensorflow"
    default_training_param: dict[str, Any] | list[dict[str, Any]]
    training_init_model: bool = False
    training_reuse_iter: int | None = None
    training_reuse_numb_steps: int | None = Field(
        default=None,
        validation_alias=AliasChoices("training_reuse_numb_steps", "training_reuse_stop_batch"),
        ge=1,
    )
    training_reuse_start_lr: float | None = Field(default=None, gt=0)
    training_reuse_start_pref_e: float | None = None
    training_reuse_start_pref_f: float | None = None
    model_devi_activation_func: list[list[str]] | list[str] | None = None
    dp_compress: bool = False
    training_init_frozen_model: list[str] | None = None
    training_finetune_model: list[str] | None = None
    training_iter0_model_path: Annotated[list[str], BeforeValidator(_listed)] = []
    srtab_file_path: str | None = None

    model_devi_jobs: list[ModelDeviJob] = Field(min_length=1)
    model_devi_dt: float = Field(gt=0)
    model_devi_taut: float = Field(default=0.1, gt=0)
    model_devi_taup: float = Field(default=0.5, gt=0)
    model_devi_skip: int = Field(default=0, ge=0)
    model_devi_f_trust_lo: PerSystem
    model_devi_f_trust_hi: PerSystem
    model_devi_v_trust_lo: PerSystem = 1e10
    model_devi_v_trust_hi: PerSystem = 1e10
    shuffle_poscar: bool = False
    model_devi_adapt_trust_lo: bool = False
    model_devi_numb_candi_f: int = Field(default=10, ge=0)
    model_devi_perc_candi_f: float = Field(default=0.0, ge=0, le=100)
    model_devi_nopbc: bool = False
    model_devi_plumed: bool = False
    use_relative: bool = False
    epsilon: float | None = None
    use_relative_v: bool = False
    epsilon_v: float | None = None

    fp_task_max: int = Field(ge=1)
    fp_task_min: int = Field(default=0, ge=0)
    fp_accurate_threshold: float | None = Field(default=None, ge=0, le=1)
    fp_accurate_soft_threshold: float | None = Field(default=None, ge=0, le=1)
    ratio_failed: float = Field(default=0.05, ge=0, le=1)
    fp_skip_bad_box: str | None = None
    use_clusters: bool = False
    cluster_cutoff: float | None = Field(default=None, gt=0)
    cluster_minify: bool = False
