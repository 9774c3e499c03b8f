"""The campaign spec: everything a user decides, validated before anything starts.

Units: eV, Å, ps, K, bar. Every key has a description; `dpstream schema` prints them all.
"""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from ase.data import atomic_numbers
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.errors import SpecError
from shared.values import Name, Trust

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class System(Section):
    structures: tuple[str, ...] = Field(
        min_length=1,
        description="files (globs allowed) that ASE reads: POSCAR, extxyz, xyz, cif…; relative to "
        "the spec. Every frame of every file is a starting structure",
    )
    periodic: bool | None = Field(
        default=None, description="default: as the file says; false drops the cell"
    )


class Perturb(Section):
    """Perturbed copies of the starting structures, labelled before the first training."""

    copies: int = Field(default=20, ge=1, description="per system")
    displace: Positive = Field(default=0.1, description="Å, largest displacement of one atom")
    strain: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.03, description="largest change of a cell component, as a fraction"
    )


class Initial(Section):
    data: tuple[str, ...] = Field(
        default=(),
        description="labelled sets: DeePMD npy folders or HDF5 files, extxyz, VASP OUTCAR",
    )
    perturb: Perturb | None = None


class Final(Section):
    """The one long cold training on all labels that ends a campaign."""

    steps_factor: Positive = Field(default=3.0, description="times the steps of a cold training")


class Training(Section):
    members: int = Field(default=4, ge=2, le=16, description="models in the committee")
    backend: Literal["tensorflow", "pytorch", "jax"] = "tensorflow"
    input: dict[str, Any] = Field(
        default={},
        description="sections of a DeePMD-kit input.json, merged over the defaults key by key; "
        "type_map, seeds, systems and number of steps are dpstream's",
    )
    member_input: dict[int, dict[str, Any]] = Field(
        default={}, description="further overrides by member number, from 0"
    )
    batch_atoms: int = Field(
        default=32, ge=1, description="frames per batch = ceil(batch_atoms / n_atoms)"
    )
    epochs: Positive = Field(default=60.0, description="passes over the dataset")
    min_steps: int = Field(default=1000, ge=1)
    max_steps: int = Field(default=1_000_000, ge=1)
    decay: Literal["scaled", "fixed"] = Field(
        default="scaled",
        description="scaled: the learning rate reaches its end with the last step; fixed: "
        "decay_steps as given, like DP-GEN",
    )
    warm: Share = Field(
        default=0.0,
        description="warm starts train this fraction of a cold training's steps; 0: always cold",
    )
    warm_start_lr: Positive = Field(
        default=1e-4, description="learning rate a warm start begins at"
    )
    cold_every: int = Field(default=4, ge=1, description="every so many versions start cold")
    limited_above: Positive = Field(
        default=0.5,
        description="training-limited when a member's force RMSE on its own training frames is "
        "above this fraction of the trust level `low`",
    )
    lengthen: Annotated[float, Field(ge=1)] = Field(
        default=2.0, description="factor on the steps after a training-limited verdict"
    )
    max_lengthen: Annotated[float, Field(ge=1)] = Field(
        default=4.0, description="largest such factor in all; 1 never lengthens"
    )
    compress: bool = True
    checkpoint_steps: int = Field(default=1000, ge=1)
    max_hours: Positive = Field(default=24.0, description="longest wall time of one training")
    final: Final = Final()


class Md(Section):
    ensemble: Literal["nve", "nvt", "npt", "npt-iso", "npt-aniso", "npt-tri"] = Field(
        default="nvt", description="npt means npt-iso"
    )
    timestep: Positive = Field(default=0.001, description="ps")
    steps: int = Field(default=1000, ge=1)
    every: int = Field(default=10, ge=1, description="steps between deviation checks")
    trajectories: int = Field(default=1, ge=1, description="per condition and round")
    tau_t: Positive = Field(default=0.1, description="thermostat damping, ps")
    tau_p: Positive = Field(default=0.5, description="barostat damping, ps")
    chunk: int = Field(default=25, ge=1, description="checks per chunk in streaming mode")
    stop_after: int = Field(default=5, ge=1, description="checks in a row above `high`")
    overlap: Positive = Field(default=0.4, description="Å; closer atoms stop the trajectory")
    masses: dict[str, Positive] = Field(default={}, description="amu, instead of the standard ones")


class AutoTrust(Section):
    """Trust levels found from the labels: low, high = 0.2, 0.5 × RMS force, then calibrated."""

    target: Positive = Field(description="force error to aim at, eV/Å")
    min_pairs: int = Field(default=30, ge=5)


class TrustLevels(Section):
    """Levels of the model deviation: force in eV/Å, virial in eV per atom."""

    low: Positive
    high: Positive
    low_v: Positive | None = None
    high_v: Positive | None = None
    relative: Positive | None = Field(
        default=None, description="divide the force deviation by |mean force| + this (eV/Å)"
    )
    relative_v: Positive | None = None

    @model_validator(mode="after")
    def _ordered(self) -> TrustLevels:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if (self.low_v is None) != (self.high_v is None):
            raise ValueError("low_v and high_v come together")
        if self.low_v is not None and self.high_v is not None and self.low_v >= self.high_v:
            raise ValueError(f"low_v ({self.low_v:g}) must be below high_v ({self.high_v:g})")
        return self

    def values(self) -> Trust:
        return Trust(**self.model_dump())


class Selection(Section):
    policy: Literal["random", "max-deviation", "diverse"] = "random"
    per_round: int = Field(default=20, ge=1, le=150, description="most new labels per round")
    per_system: int | None = Field(default=None, ge=1, description="most per system and round")
    per_trajectory: int = Field(
        default=1, ge=1, description="most frames of one trajectory per committee version"
    )
    min_separation: Annotated[float, Field(ge=0)] = Field(
        default=0.1, description="ps between frames of one trajectory"
    )
    time_bins: int = Field(
        default=4, ge=1, description="bins of trajectory time dealt from in turn"
    )
    select_every: int = Field(default=10, ge=1, description="streaming: candidates per selection")
    min_distance: dict[str, Positive] = Field(
        default={}, description="Å by pair, e.g. {C-H: 0.6}; default 0.5 × sum of covalent radii"
    )
    max_skew: Positive = Field(
        default=1.0, description="largest tilt of the cell over the length it tilts along"
    )


class Stage(Section):
    name: Name
    systems: tuple[str, ...] = Field(min_length=1)
    temperatures: tuple[Positive, ...] = Field(min_length=1, description="K")
    pressures: tuple[float, ...] = Field(default=(), description="bar; npt only")
    md: Md = Field(default=Md(), description="overrides of the campaign's `md`")
    trust: TrustLevels | AutoTrust | None = Field(
        default=None, description="default: the campaign's"
    )


class Material(Section):
    """A stage plan from the melting point and bulk modulus: temperatures in four groups 0–0.5,
    0.5–1, 1–1.5 and 1.5–2 Tm, pressures 0, 0.03, 0.06 and 0.09 B, each group a stage; below Tm
    also −0.01 B. (DP-GEN's practical guide: W. Jiang et al.)"""

    Tm: Positive = Field(description="melting point, K")
    B: Positive = Field(description="bulk modulus, GPa")
    temperatures_per_group: int = Field(default=2, ge=1)


class Labels(Section):
    code: Name = Field(default="tblite", description="labeling code: tblite, pyscf or ase")
    settings: dict[str, Any] = Field(default={}, description="the code's own settings")
    charge: int = 0
    multiplicity: int = Field(default=1, ge=1, description="2S + 1")
    bundle: int = Field(default=5, ge=1, le=100, description="frames per label task")
    max_force: Positive = Field(default=50.0, description="eV/Å; a label above is rejected")
    min_distance: Positive = Field(default=0.5, description="Å; a closer frame is not computed")
    force: bool = Field(default=False, description="compute where the code would refuse by default")
    max_seconds: Positive = Field(default=3600.0, description="longest wall time of one frame")


class Audit(Section):
    """Labels of frames nobody asked for, never trained on: the measure of the true error."""

    per_round: int = Field(default=10, ge=0, le=50, description="0: no audit")
    min_frames: int = Field(default=30, ge=1, description="per stage, before it may converge")
    min_trajectories: int = Field(default=5, ge=1)
    reservoir: int = Field(default=4, ge=1, description="frames kept per trajectory and class")
    force_rmse: Positive = Field(default=0.1, description="eV/Å, on the 95 % upper bound")
    error_target: Positive = Field(default=0.5, description="eV/Å, max-atom force error")
    exceed: Share = Field(
        default=0.2,
        description="largest P(max-atom error > error_target | accurate), on the upper bound",
    )


class Convergence(Section):
    accurate_ratio: Share = Field(default=0.95, description="of the worst condition")
    max_failed: Share = Field(default=0.02, description="failed share, of the worst condition")
    max_rejected: Share = Field(default=0.2, description="rejected labels over labels tried")
    rounds: int = Field(default=1, ge=1, description="good rounds in a row")


class Budget(Section):
    labels: int = Field(default=10_000, ge=1, description="labels computed or reused, of any kind")
    rounds: int = Field(default=20, ge=1, description="most rounds of one stage")


class Streaming(Section):
    retrain_after: int = Field(default=10, ge=1, description="new labels that start a training")
    max_staleness: int = Field(default=1, ge=0, description="versions a candidate may lag behind")


class ReferenceMd(Section):
    """Held-out frames from dynamics driven by the labeling code itself (in-process codes)."""

    system: str
    temperature: Positive = Field(default=300.0, description="K")
    trajectories: int = Field(default=10, ge=1)
    frames: int = Field(default=5, ge=1, description="kept per trajectory")
    spacing: Positive = Field(default=0.1, description="ps between kept frames")
    equilibrate: Annotated[float, Field(ge=0)] = Field(default=0.2, description="ps thrown away")
    timestep: Positive = Field(default=0.0005, description="ps")


class Verification(Section):
    """What the final model must show."""

    data: tuple[str, ...] = Field(default=(), description="held-out labelled sets")
    reference_md: ReferenceMd | None = None
    max_force_error: Share = Field(default=0.05, description="force RMSE over RMS force")
    nve_ps: Annotated[float, Field(ge=0)] = Field(default=10.0, description="0: no such run")
    nve_temperature: Positive = Field(default=300.0, description="K")
    max_drift: Positive = Field(default=1e-3, description="eV per atom per ps")


class Spec(Section):
    """One attempt to grow one potential."""

    name: Name
    seed: int = Field(default=1, ge=0)
    mode: Literal["streaming", "lockstep"] = "streaming"
    reproducible: bool | None = Field(
        default=None,
        description="a new attempt starts over instead of from a checkpoint; default: in lockstep",
    )
    type_map: tuple[str, ...] = Field(min_length=1, description="chemical symbols, in model order")
    systems: dict[Name, System] = Field(min_length=1)
    initial: Initial
    training: Training = Training()
    md: Md = Md()
    trust: TrustLevels | AutoTrust = TrustLevels(low=0.1, high=0.3)
    stages: tuple[Stage, ...] = ()
    material: Material | None = None
    selection: Selection = Selection()
    labels: Labels = Labels()
    audit: Audit = Audit()
    convergence: Convergence = Convergence()
    budget: Budget = Budget()
    streaming: Streaming = Streaming()
    verification: Verification = Verification()
    max_attempts: int = Field(default=3, ge=1, description="lapses and crashes of one task")

    @model_validator(mode="before")
    @classmethod
    def _md_defaults(cls, data: Any) -> Any:
        """A stage's `md` is the campaign's with its own keys on top."""
        if not isinstance(data, dict) or not isinstance(data.get("md", {}), dict):
            return data
        stages = data.get("stages")
        if not isinstance(stages, (list, tuple)):
            return data
        merged = [
            {**stage, "md": {**data.get("md", {}), **stage.get("md", {})}}
            if isinstance(stage, dict) and isinstance(stage.get("md", {}), dict)
            else stage
            for stage in stages
        ]
        return {**data, "stages": merged}

    @model_validator(mode="after")
    def _consistent(self) -> Spec:
        for problem in _problems(self):
            raise ValueError(problem)
        return self

    @property
    def starts_over(self) -> bool:
        return self.mode == "lockstep" if self.reproducible is None else self.reproducible


def _problems(spec: Spec) -> Iterator[str]:
    for symbol in spec.type_map:
        if symbol not in atomic_numbers or symbol == "X":
            hint = _did_you_mean(symbol, atomic_numbers)
            yield f"type_map: {symbol!r} is not a chemical symbol{hint}"
    if len(set(spec.type_map)) != len(spec.type_map):
        yield "type_map: an element is listed twice"
    if bool(spec.stages) == (spec.material is not None):
        yield "stages: give either `stages` or `material`, one of the two"
    if not spec.initial.data and spec.initial.perturb is None:
        yield "initial: give `data`, `perturb` or both: the first committee needs labels"
    names = [stage.name for stage in spec.stages]
    if len(set(names)) != len(names):
        yield "stages: two stages share a name"
    for number, stage in enumerate(spec.stages):
        where = f"stages.{number}"
        for system in stage.systems:
            if system not in spec.systems:
                known = ", ".join(spec.systems)
                yield f"{where}.systems: {system!r} is not among systems ({known})"
        is_npt = stage.md.ensemble.startswith("npt")
        if is_npt and not stage.pressures:
            yield f"{where}.pressures: {stage.md.ensemble} needs at least one pressure (bar)"
        if stage.pressures and not is_npt:
            yield f"{where}.pressures: allowed with npt only, not with {stage.md.ensemble}"
        if stage.md.steps < stage.md.every:
            yield f"{where}.md.steps: {stage.md.steps} is less than every ({stage.md.every})"
    reference = spec.verification.reference_md
    if reference is not None and reference.system not in spec.systems:
        yield f"verification.reference_md.system: {reference.system!r} is not among systems"
    bad = [m for m in spec.training.member_input if not 0 <= m < spec.training.members]
    if bad:
        yield f"training.member_input: {bad[0]} is not a member (0 to {spec.training.members - 1})"


def expand_material(spec: Spec, solids: bool = True) -> Spec:
    """`material` written out as stages; a spec with stages is returned as it is."""
    if spec.material is None:
        return spec
    material, bar_per_gpa = spec.material, 1e4
    stages = []
    for group in range(4):
        low, high = 0.5 * group * material.Tm, 0.5 * (group + 1) * material.Tm
        count = material.temperatures_per_group
        temperatures = [round(low + (high - low) * (i + 1) / count, 1) for i in range(count)]
        shares = [0.0, 0.03, 0.06, 0.09]
        if solids and high <= material.Tm:
            shares.insert(0, -0.01)
        group_stage: dict[str, Any] = {
            "name": f"tm-{0.5 * group:g}-{0.5 * (group + 1):g}".replace(".", "p"),
            "systems": tuple(spec.systems),
            "temperatures": temperatures,
            "pressures": [round(share * material.B * bar_per_gpa, 1) for share in shares],
            "md": {**spec.md.model_dump(), "ensemble": _npt(spec.md.ensemble)},
        }
        stages.append(group_stage)
    return Spec.model_validate({**spec.model_dump(), "stages": stages, "material": None})


def _npt(ensemble: str) -> str:
    return ensemble if ensemble.startswith("npt") else "npt-iso"


def load_spec(path: Path) -> Spec:
    """The validated spec in a YAML or JSON file; `SpecError` names file, key, value and remedy."""
    try:
        text = path.read_text()
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not a text file") from error
    try:
        data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise SpecError(f"{path}: not valid {path.suffix[1:]}: {_one_line(error)}") from error
    if not isinstance(data, dict):
        raise SpecError(f"{path}: expected keys such as name, systems, stages; see `dpstream new`")
    try:
        return Spec.model_validate(data)
    except ValidationError as error:
        raise SpecError(f"{path}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    """The first problem in one line: key, value, what is allowed."""
    problem = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")[0]
    location = [p for p in problem["loc"] if p not in ("TrustLevels", "AutoTrust")]
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        allowed = _keys_at(location[:-1])
        hint = _did_you_mean(str(location[-1]), allowed)
        return f"{key}: unknown key{hint or '; allowed: ' + ', '.join(sorted(allowed))}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    if not location or (problem["type"] == "value_error" and isinstance(problem["input"], dict)):
        return f"{key}: {message}" if key else message
    return f"{key}: {problem['input']!r}: {message[0].lower()}{message[1:]}"


def _keys_at(location: Sequence[Any]) -> list[str]:
    """Keys allowed in the section at `location`."""
    models: list[type[BaseModel]] = [Spec]
    for part in location:
        inner: list[type[BaseModel]] = []
        for model in models:
            if isinstance(part, str) and part in model.model_fields:
                inner += _models_in(model.model_fields[part].annotation)
        models = inner or models
    return [name for model in models for name in model.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (tuple, dict, Union, types.UnionType, Annotated):
        return [m for argument in get_args(annotation) for m in _models_in(argument)]
    return []


def _did_you_mean(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
