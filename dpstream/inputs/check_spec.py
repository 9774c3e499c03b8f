"""Checks that everything a spec names fits together; conflicts are errors or warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dpstream.inputs.check_loss import loss_warnings
from dpstream.inputs.read_labelled import Imported
from dpstream.services.explorer.engines.check import check_engine
from dpstream.services.labeler.acceptance import AcceptanceLimits, check_before
from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.codes.base import Code, cell_widths
from dpstream.services.labeler.recipes import code_of, make_recipe, recipe_for, virial_less
from dpstream.services.trainer.training_input import NOT_THE_USERS
from dpstream.shared.atoms.frames import Frame, frame_key
from dpstream.shared.errors import SpecError, errors_at
from dpstream.shared.spec import Spec, expand_material
from dpstream.shared.spec.virial import needs_virial, uses_of_virial, virial_prefactors

CUTOFF = 6.0
"""Å, used if the spec's descriptor states none."""
Systems = Mapping[str, list[Frame]]
"""Starting structures by name of the system."""


def check_stages(spec: Spec, systems: Systems, trusting: bool) -> Spec:
    """Check that every stage can start from its structures, and return the spec with `material`
    expanded to stages. `trusting`: other machines run the LAMMPS inputs, so this machine's limits
    on them are not checked. Raises `SpecError`."""
    spec = _expanded(spec, systems)
    _check_barostat(spec, systems)
    _check_stage_engines(spec, systems, trusting)
    return spec


def check_computable(
    spec: Spec, to_label: Mapping[str, Sequence[Frame]], labelled: Sequence[Imported]
) -> None:
    """Check that the labeling code can compute the frames `to_label`, which are listed by spec
    key, and that labelled sets match its periodicity. Raises `SpecError`."""
    code, recipe = code_of(spec.labels), make_recipe(spec.labels, version_needed=False)
    limits = AcceptanceLimits.of(spec.labels, spec)
    _check_virial(spec, code, recipe.settings, to_label)
    for key, frames in to_label.items():
        for frame in frames:
            _check_periodicity(frame, code, key)
            broken = check_before(frame, recipe_for(recipe, frame), code, limits)
            if broken is not None:
                raise SpecError(
                    f"{key}: {frame.formula} cannot be labelled ({broken.rule}): "
                    f"{broken.detail}; change labels or the structures"
                )
    for item in labelled:
        _check_periodicity(item.frame, code, item.source)


def _check_virial(
    spec: Spec, code: Code, settings: dict[str, Any], to_label: Mapping[str, Sequence[Frame]]
) -> None:
    """Raises `SpecError` if the campaign uses the virial of periodic frames and the labels have
    none."""
    uses = uses_of_virial(spec)
    if uses and spec.labels.virial is False:
        raise SpecError(f"labels.virial: false, but {uses[0]} uses the virial; remove one of them")
    periodic = any(frame.cell is not None for frames in to_label.values() for frame in frames)
    reason = virial_less(code, settings)
    if periodic and reason is not None and needs_virial(spec):
        use = uses[0] if uses else "labels.virial"
        raise SpecError(f"labels.settings.{reason}: no virial, but {use} needs it; change one")


def check_clusters(spec: Spec) -> None:
    """Check that the labeling code can compute clusters, and that nothing else of a campaign with
    clusters is labelled. Raises `SpecError`."""
    if spec.selection.clusters is None:
        return
    code = code_of(spec.labels)
    if not code.molecular:
        raise SpecError(
            f"selection.clusters: labels.code {code.name} supports periodic cells only; choose "
            f"another code ({_codes('molecular')})"
        )
    if spec.audit.per_round:
        raise SpecError(
            "selection.clusters: audit frames are labelled whole; set audit.per_round: 0, and "
            "measure errors on held-out clusters (verification.data)"
        )


def _check_periodicity(frame: Frame, code: Code, where: str) -> None:
    if frame.cell is not None and not code.periodic:
        raise SpecError(
            f"{where}: {frame.formula} is periodic, but labels.code {code.name} supports molecules "
            f"only; set `periodic: false` or choose another code ({_codes('periodic')})"
        )
    if frame.cell is None and not code.molecular:
        raise SpecError(
            f"{where}: {frame.formula} has no cell, but labels.code {code.name} supports periodic "
            f"cells only; add a cell or choose another code ({_codes('molecular')})"
        )


def _codes(ability: str) -> str:
    return ", ".join(sorted(name for name, code in CODES.items() if getattr(code, ability)))


def _expanded(spec: Spec, systems: Systems) -> Spec:
    """The spec with `material` expanded to stages, which requires periodic systems."""
    if spec.material is not None:
        for name, frames in systems.items():
            if any(frame.cell is None for frame in frames):
                raise SpecError(
                    f"material: creates npt stages, but systems.{name} has no cell; use `stages` "
                    "for molecules"
                )
    return expand_material(spec)


def _check_barostat(spec: Spec, systems: Systems) -> None:
    """A barostat needs a cell and, if the committee drives it, models trained on the virial."""
    for number, stage in enumerate(spec.stages):
        if not stage.md.ensemble.startswith("npt"):
            continue
        key = f"stages.{number}.md.ensemble"
        for name in stage.systems:
            if any(frame.cell is None for frame in systems[name]):
                raise SpecError(
                    f"{key}: {stage.md.ensemble} requires a cell; systems.{name} has none"
                )
        if stage.uses_virial and not virial_prefactors(spec):
            raise SpecError(
                f"{key}: {stage.md.ensemble} requires models trained on the virial; set "
                "training.input.loss.start_pref_v and limit_pref_v above 0 (e.g. 0.02 and 1)"
            )


def _check_stage_engines(spec: Spec, systems: Systems, trusting: bool) -> None:
    """The engine of a stage must suit every structure that it may start from."""
    for number, stage in enumerate(spec.stages):
        for condition in stage.conditions():
            for frame in systems[condition.system]:
                with errors_at(f"stages.{number}.engine: {condition}", ValueError):
                    check_engine(stage, condition, frame, trusting)


def check_held_out(labelled: Sequence[Imported], test: Sequence[Imported]) -> None:
    """Raises `SpecError` naming a held-out frame that is also in the training data."""
    trained = {frame_key(item.frame): item for item in labelled}
    for item in test:
        twin = trained.get(frame_key(item.frame))
        if twin is not None:
            raise SpecError(
                f"verification.data: {item.source}: a frame of {item.frame.formula} is also in "
                f"initial.data ({twin.source}); held-out frames must not be trained on"
            )


def check_budget(spec: Spec, first: int) -> None:
    """Raises `SpecError` if the budget is smaller than `first`, the initial frames to label."""
    if first > spec.budget.labels:
        raise SpecError(
            f"budget.labels: {spec.budget.labels} is less than the {first} initial frames to "
            f"label; raise it to {first} or more"
        )


# ------------------------------------------------------------------------------ warnings


def warnings_of(spec: Spec, systems: Systems, labelled: Sequence[Imported]) -> Iterator[str]:
    """Warnings of inputs that are valid but probably unintended."""
    for name, frames in systems.items():
        yield from _small_cells(spec, name, frames)
        texts = {text: None for frame in frames for text in code_of(spec.labels).warnings(frame)}
        yield from (f"systems.{name}: {text}" for text in texts)
    yield from _dubious_labels(spec, labelled)
    yield from loss_warnings(spec, labelled)
    yield from _overridden(spec)
    yield from _untrained_virial(spec)
    reachable = spec.audit.per_round * spec.budget.rounds
    if not spec.audit.per_round:
        yield (
            "audit.per_round: 0: no audit, so convergence relies on the committee's agreement alone"
        )
    elif reachable < spec.audit.min_frames:
        yield (
            f"audit.min_frames: {spec.audit.min_frames} cannot be reached in {spec.budget.rounds} "
            f"rounds of {spec.audit.per_round} frames, so no stage can converge; raise "
            "audit.per_round or budget.rounds"
        )


def _small_cells(spec: Spec, name: str, frames: Sequence[Frame]) -> Iterator[str]:
    cutoff = _cutoff(spec)
    widths = [float(cell_widths(frame.cell).min()) for frame in frames if frame.cell is not None]
    if widths and min(widths) < cutoff:
        yield (
            f"systems.{name}: a cell is {min(widths):.2f} Å wide, less than the model's cutoff "
            f"({cutoff:g} Å), so atoms interact with their own images; consider a supercell"
        )


def _cutoff(spec: Spec) -> float:
    return _reach(spec.training.input.get("model", {}).get("descriptor", {}))


def _reach(descriptor: Mapping[str, Any]) -> float:
    """The largest cutoff of a descriptor. Those of DPA-2 and DPA-3 are in the sections of their
    first layers."""
    if "list" in descriptor:
        return max(map(_reach, descriptor["list"]))
    for section, key in (("repinit", "rcut"), ("repflow", "e_rcut")):
        if section in descriptor:
            return float(descriptor[section].get(key, CUTOFF))
    return float(descriptor.get("rcut", CUTOFF))


def _dubious_labels(spec: Spec, labelled: Sequence[Imported]) -> Iterator[str]:
    if any(item.frame.cell is not None and item.label.virial is None for item in labelled):
        yield ("initial.data: periodic frames without virial: they train energy and forces only")
    largest = max((float(np.abs(item.label.forces).max()) for item in labelled), default=0.0)
    if largest > spec.labels.max_force:
        yield (
            f"initial.data: a force of {largest:.1f} eV/Å exceeds labels.max_force "
            f"({spec.labels.max_force:g}), above which computed labels are rejected"
        )


def _overridden(spec: Spec) -> Iterator[str]:
    given = spec.training.input.get("training", {})
    for key in sorted(given.keys() & {"numb_steps", *NOT_THE_USERS}):
        yield (
            f"training.input.training.{key}: ignored; dpstream sets the steps (training."
            "epochs, min_steps, max_steps) and the data"
        )


def _untrained_virial(spec: Spec) -> Iterator[str]:
    barostats = [stage.name for stage in spec.stages if stage.uses_virial]
    if barostats and not any(virial_prefactors(spec).values()):
        yield (
            f"stages {', '.join(barostats)}: the barostat uses models that are not trained on the "
            "virial: start_pref_v and limit_pref_v in training.input.loss are 0"
        )
