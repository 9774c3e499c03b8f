"""The campaign spec: combines all sections and checks them against each other.

Units: eV, Å, ps, K, bar. Every key has a description; `dpstream schema` prints them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ase.data import atomic_numbers
from pydantic import Field, model_validator

from dpstream.shared.spec.base import Section
from dpstream.shared.spec.convergence import (
    AuditSettings,
    Budget,
    Convergence,
    Proposals,
    Streaming,
    Verification,
)
from dpstream.shared.spec.engines import Batched, inline, problems
from dpstream.shared.spec.errors import did_you_mean, read_document, validated
from dpstream.shared.spec.exploration import AnyTrust, Material, Md, Selection, Stage, TrustLevels
from dpstream.shared.spec.inline_files import text_of, with_texts
from dpstream.shared.spec.labels import CHECKED, LabelSettings
from dpstream.shared.spec.systems import Initial, System
from dpstream.shared.spec.training import Training
from dpstream.shared.values import ROOMS, Name

SECTIONS = ("model", "learning_rate", "optimizer", "loss", "training")
"""Sections of a DeePMD-kit input.json that must be mappings."""


class Spec(Section):
    """The settings of one campaign, which trains one potential."""

    name: Name = Field(description="name of the campaign and of its folder in the store")
    seed: int = Field(default=1, ge=0, description="seed of all random numbers")
    mode: Literal["streaming", "lockstep"] = Field(
        default="streaming",
        description="streaming: selects, labels and trains while trajectories run; lockstep: "
        "rounds as in DP-GEN",
    )
    reproducible: bool | None = Field(
        default=None,
        description="interrupted trainings, trajectories and labels begin again instead of "
        "resuming; default: true in lockstep",
    )
    type_map: tuple[str, ...] = Field(min_length=1, description="chemical symbols, in model order")
    systems: dict[Name, System] = Field(
        min_length=1, description="starting structures for exploration, by name"
    )
    initial: Initial = Field(description="labels for the first training")
    training: Training = Field(default=Training(), description="the committee of models")
    md: Md = Field(default=Md(), description="molecular dynamics for exploration")
    trust: AnyTrust = Field(
        default=TrustLevels(low=0.1, high=0.3),
        description="deviation levels that separate accurate, candidate and failed",
    )
    stages: tuple[Stage, ...] = Field(
        default=(), description="explored in order, each until it converges"
    )
    material: Material | None = Field(
        default=None, description="instead of stages: derives them from the melting point"
    )
    selection: Selection = Field(default=Selection(), description="which candidates are labelled")
    labels: LabelSettings = Field(default=LabelSettings(), description="how labels are computed")
    audit: AuditSettings = Field(default=AuditSettings(), description="measures the true error")
    convergence: Convergence = Field(default=Convergence(), description="criteria that end a stage")
    budget: Budget = Field(default=Budget(), description="limits of the campaign")
    streaming: Streaming = Field(default=Streaming(), description="for mode streaming only")
    proposals: Proposals = Field(
        default=Proposals(), description="limits for frames from external generators"
    )
    verification: Verification = Field(
        default=Verification(), description="tests of the final model"
    )
    max_attempts: int = Field(
        default=3, ge=1, description="lost or crashed attempts before a task is abandoned"
    )

    @model_validator(mode="before")
    @classmethod
    def _md_defaults(cls, data: Any) -> Any:
        """Merge a stage's own `md` keys over those of the campaign."""
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

    @property
    def share_checked(self) -> float:
        """Share of the labels found in the store that are computed again; of more than none, at
        least one label of each writer is."""
        default = 0.0 if self.starts_over else CHECKED
        return default if self.labels.check_reused is None else self.labels.check_reused


def _problems(spec: Spec) -> Iterator[str]:
    if spec.name in ROOMS:
        yield f"name: {spec.name!r} is reserved (a folder in every store); choose another name"
    for symbol in spec.type_map:
        if symbol not in atomic_numbers or symbol == "X":
            hint = did_you_mean(symbol, atomic_numbers)
            yield f"type_map: {symbol!r} is not a chemical symbol{hint}"
        if spec.type_map.count(symbol) > 1:
            yield f"type_map: {symbol!r} is listed twice"
    if bool(spec.stages) == (spec.material is not None):
        yield "stages: give exactly one of `stages` and `material`"
    if not spec.initial.data and spec.initial.perturb is None and not spec.initial.pick:
        yield (
            "initial: give at least one of `data`, `perturb` and `pick`; the first committee needs "
            "labels"
        )
    yield from _unknown_elements(spec)
    yield from _parameter_problems(spec)
    yield from _electron_problems(spec)
    yield from _stage_problems(spec)
    yield from _training_problems(spec.training)
    reference = spec.verification.reference_md
    if reference is not None and reference.system not in spec.systems:
        yield f"verification.reference_md.system: {reference.system!r} is not in systems"
    for number, wanted in enumerate(spec.verification.properties):
        if wanted.system not in spec.systems:
            hint = did_you_mean(wanted.system, spec.systems)
            where = f"verification.properties.{number}.system"
            yield f"{where}: {wanted.system!r} is not in systems{hint}"


def _training_problems(training: Training) -> Iterator[str]:
    if training.min_steps > training.max_steps:
        yield (
            f"training.min_steps: {training.min_steps} is greater than max_steps "
            f"({training.max_steps})"
        )
    init, members = training.init, training.members
    if init is not None and len(init.model) not in (1, members):
        yield (
            f"training.init.model: {len(init.model)} files for {members} members; give one file, "
            "or one per member"
        )
    if init is not None and training.repulsion is not None:
        yield (
            "training.repulsion: not allowed with training.init, whose model determines the "
            "architecture"
        )
    for member in training.member_input:
        if not 0 <= member < training.members:
            yield f"training.member_input: {member} is not a member (0 to {training.members - 1})"
    own = {f"member_input.{member}": given for member, given in training.member_input.items()}
    inputs = {"input": training.input, **own, "warm_input": training.warm_input}
    for where, given in inputs.items():
        for section, value in given.items():
            if section in SECTIONS and not isinstance(value, dict):
                yield f"training.{where}.{section}: {value!r}: must be a mapping"


def _electron_problems(spec: Spec) -> Iterator[str]:
    """An electron temperature is the only frame or atomic parameter, and is above 0 K."""
    carrier = spec.labels.electron_temperature
    if carrier is None:
        for number, stage in enumerate(spec.stages):
            if stage.electron_temperatures:
                yield (
                    f"stages.{number}.electron_temperatures: requires labels.electron_temperature: "
                    "fparam or aparam"
                )
        return
    if spec.training.parameters[carrier] != 1:
        yield (
            f"labels.electron_temperature: {carrier}: requires "
            f"training.input.model.fitting_net.numb_{carrier}: 1"
        )
    for name, system in spec.systems.items():
        if any(kelvin <= 0 for kelvin in getattr(system, carrier)):
            yield f"systems.{name}.{carrier}: an electron temperature must be above 0 K"


def _parameter_problems(spec: Spec) -> Iterator[str]:
    """Every system must give the frame and atomic parameters that the models take."""
    if spec.initial.dimers is not None and any(spec.training.parameters.values()):
        yield (
            "initial.dimers: dimers carry no fparam or aparam, but the models require them; remove "
            "initial.dimers"
        )
    for name, system in spec.systems.items():
        given = {"fparam": len(system.fparam), "aparam": len(system.aparam)}
        for parameter, size in spec.training.parameters.items():
            if given[parameter] != size:
                yield (
                    f"systems.{name}.{parameter}: {given[parameter]} numbers, but "
                    f"training.input.model.fitting_net.numb_{parameter} is {size}"
                )


def _unknown_elements(spec: Spec) -> Iterator[str]:
    """Elements in other keys that type_map does not list."""
    known = ", ".join(spec.type_map)
    dimers = spec.initial.dimers
    named = {"selection.min_distance": tuple(spec.selection.min_distance)}
    named["initial.dimers.pairs"] = () if dimers is None else dimers.pairs
    for where, pairs in named.items():
        for pair in pairs:
            elements = pair.split("-")
            if len(elements) != 2 or not set(elements) <= set(spec.type_map):
                yield f"{where}: {pair!r} is not a pair of elements in type_map ({known}), e.g. C-H"
    dynamics = {"md": spec.md} | {f"stages.{i}.md": s.md for i, s in enumerate(spec.stages)}
    for where, md in dynamics.items():
        for symbol in sorted(md.masses.keys() - set(spec.type_map)):
            yield f"{where}.masses: {symbol!r} is not in type_map ({known})"


def _stage_problems(spec: Spec) -> Iterator[str]:
    names = [stage.name for stage in spec.stages]
    for number, stage in enumerate(spec.stages):
        where = f"stages.{number}"
        if stage.name in names[:number]:
            yield f"{where}.name: {stage.name!r} is also the name of an earlier stage"
        for system in stage.systems:
            if system not in spec.systems:
                known = ", ".join(spec.systems)
                yield f"{where}.systems: {system!r} is not in systems ({known})"
        for problem in problems(stage.engine, spec.type_map, stage.systems):
            yield f"{where}.engine.{problem}"
        if isinstance(stage.engine, Batched) and spec.training.backend != "pytorch":
            yield (
                f"{where}.engine: batched requires training.backend: pytorch, "
                f"not {spec.training.backend}"
            )
        is_npt = stage.md.ensemble.startswith("npt")
        if is_npt and not stage.pressures:
            yield f"{where}.pressures: ensemble {stage.md.ensemble} requires at least one (bar)"
        if stage.pressures and not is_npt:
            yield f"{where}.pressures: requires an npt ensemble, not {stage.md.ensemble}"
        if stage.md.steps < stage.md.every:
            yield f"{where}.md.steps: {stage.md.steps} is less than every ({stage.md.every})"
        if stage.md.skip > stage.md.steps - stage.md.every:
            yield f"{where}.md.skip: {stage.md.skip} leaves no frame of {stage.md.steps} steps"
        yield from _system_trust_problems(spec, stage, f"{where}.system_trust")


def _system_trust_problems(spec: Spec, stage: Stage, where: str) -> Iterator[str]:
    for system in stage.system_trust:
        if system not in stage.systems:
            yield f"{where}: {system!r} is not in the stage's systems"
    if stage.system_trust and spec.mode != "lockstep":
        yield f"{where}: requires mode: lockstep; in streaming mode a stage has one `trust`"


def expand_material(spec: Spec, solids: bool = True) -> Spec:
    """Replace `material` by stages; a spec with stages is returned unchanged. `solids`: add a
    slightly negative pressure up to the melting point."""
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
    """Read and validate a spec (YAML or JSON). Raises `SpecError` naming file, key, value and
    remedy."""
    data = with_engine_texts(with_texts(read_document(path), path), path)
    return validated(Spec, data, f"{path}: ")


def with_engine_texts(data: dict[Any, Any], path: Path) -> dict[Any, Any]:
    """Replace file names in engine settings by the text of the files, which workers do not have."""
    stages = data.get("stages")
    if not isinstance(stages, list):
        return data

    def read(name: str) -> str:
        return text_of(path.parent / name, f"{path}: stages")

    inlined = [
        {**stage, "engine": inline(stage["engine"], read)}
        if isinstance(stage, dict) and "engine" in stage
        else stage
        for stage in stages
    ]
    return {**data, "stages": inlined}
