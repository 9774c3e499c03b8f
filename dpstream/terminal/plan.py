"""The plan that `dpstream validate` and `dpstream run` print before anything starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from dpstream.inputs.check_training import deepmd_is_here, unbuilt
from dpstream.inputs.gather import Gathered
from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.codes.custom import UNVERSIONED
from dpstream.services.labeler.recipes import virial_less
from dpstream.shared.spec import AutoTrust, Spec, Stage, TrustLevels, expand_material
from dpstream.shared.spec.engines import AsGiven, driver_of
from dpstream.shared.spec.training import CPU_BATCH, GPU_BATCH
from dpstream.shared.spec.virial import needs_virial, uses_of_virial
from dpstream.shared.values import Recipe
from dpstream.terminal.console import notes
from dpstream.terminal.tables import text_table
from dpstream.terminal.training_speed import new_labels, rounds_of, speed_words

SEMI_EMPIRICAL = "semi-empirical demo labels"
AUTO_LOW = 0.2
"""Initial `low` of automatic trust levels, relative to the RMS force (DP-GEN's practical guide)."""
LONGEST_SETTING = 60
"""Largest number of characters shown of one label setting."""


def show_plan(console: Console, spec: Spec, gathered: Gathered, recipe: Recipe) -> None:
    for part in plan(spec, gathered, recipe):
        console.print(part)


def introduce(console: Console, spec: Spec, gathered: Gathered, recipe: Recipe) -> None:
    """Show the plan and, even with `--quiet`, the warnings."""
    show_plan(notes, spec, gathered, recipe)
    show_warnings(console, gathered)


def show_warnings(console: Console, gathered: Gathered) -> None:
    for warning in gathered.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)


def plan(spec: Spec, gathered: Gathered, recipe: Recipe) -> list[RenderableType]:
    """What a run of `spec` will do, as rich renderables: systems, stages, recipe, training,
    convergence, largest number of labels."""
    spec = expand_material(spec)
    return [
        Text(f"campaign {spec.name}: {spec.mode} mode, seed {spec.seed}", style="bold"),
        _systems_table(spec, gathered),
        Text(),
        _stages_table(spec, gathered),
        Text(),
        _facts_table(spec, gathered, recipe),
        *map(Text, gathered.sources),
    ]


# ------------------------------------------------------------------------------ systems, stages


def _systems_table(spec: Spec, gathered: Gathered) -> Table:
    table = text_table("system", "structures", "formula", "atoms", "periodic", "initial frames")
    for name, frames in gathered.systems.items():
        table.add_row(
            name,
            str(len(frames)),
            _listed(frame.formula for frame in frames),
            _listed(str(len(frame.species)) for frame in frames),
            _listed("no" if frame.cell is None else _edges(frame.cell) for frame in frames),
            str(0 if spec.initial.perturb is None else spec.initial.perturb.copies),
        )
    return table


def _listed(values: Iterator[str] | Any, most: int = 3) -> str:
    """The first few distinct values, in order of appearance."""
    distinct = list(dict.fromkeys(values))
    return ", ".join(distinct[:most]) + (", …" if len(distinct) > most else "")


def _edges(cell: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    """Lengths of the cell vectors, Å."""
    return " × ".join(f"{length:.2f}" for length in np.linalg.norm(cell, axis=1)) + " Å"


def _stages_table(spec: Spec, gathered: Gathered) -> Table:
    table = text_table("stage", "dynamics", "T (K)", "P (bar)", "trajectories", "each", "trust")
    for number, stage in enumerate(spec.stages, start=1):
        still = isinstance(stage.engine, AsGiven)
        table.add_row(
            f"{number} {stage.name}",
            f"{_dynamics(stage)} of {', '.join(stage.systems)}",
            "–" if still else ", ".join(f"{t:g}" for t in stage.temperatures),
            ", ".join(f"{p:g}" for p in stage.pressures) or "–",
            _trajectories(stage, gathered),
            _length(stage),
            _stage_trust(spec, stage),
        )
    return table


def _length(stage: Stage) -> str:
    checks = stage.md.steps // stage.md.every
    if isinstance(stage.engine, AsGiven):
        return f"at most {checks} frames"
    return f"{stage.md.steps * stage.md.timestep:g} ps, {checks} checks"


def _dynamics(stage: Stage) -> str:
    kind = stage.engine.kind
    if isinstance(stage.engine, AsGiven):
        return kind
    return stage.md.ensemble if kind == "md" else f"{kind} ({stage.md.ensemble})"


def _stage_trust(spec: Spec, stage: Stage) -> str:
    own = (f"{system}: {_trust(levels)}" for system, levels in stage.system_trust.items())
    rest = set(stage.systems) - set(stage.system_trust)
    return "; ".join([*own, *([_trust(stage.trust or spec.trust)] if rest else [])])


def conditions(stage: Stage) -> int:
    """Number of conditions that one round explores."""
    return len(list(stage.conditions()))


def _trajectories(stage: Stage, gathered: Gathered) -> str:
    count = conditions(stage)
    each = [stage.trajectories(gathered.starts(system)) for system in stage.systems]
    total = count // len(stage.systems) * sum(each)
    return f"{total} ({count} condition{'s' if count > 1 else ''})"


def _trust(trust: TrustLevels | AutoTrust) -> str:
    if isinstance(trust, AutoTrust):
        return f"automatic, for a force error of {trust.target:g} eV/Å"
    text = f"{trust.low:g}–{trust.high:g} eV/Å"
    if trust.relative is not None:
        text = f"{trust.low:g}–{trust.high:g} relative + {trust.relative:g} eV/Å"
    if trust.low_v is not None and trust.high_v is not None:
        text += f"; virial {trust.low_v:g}–{trust.high_v:g} eV/atom"
    return text


# ------------------------------------------------------------------------------ facts


def _facts_table(spec: Spec, gathered: Gathered, recipe: Recipe) -> Table:
    table = text_table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in (
        ("source of frames", _source_words(spec)),
        ("labels", recipe_words(recipe)),
        ("virial", _virial_words(spec, gathered, recipe)),
        ("initial data", _initial_words(gathered)),
        ("cross-check", _cross_check_words(gathered)),
        ("training", _training_words(spec)),
        ("training time", speed_words(spec, gathered)),
        ("selection", _selection_words(spec)),
        ("converged when", _convergence_words(spec)),
        ("verification", _verification_words(spec, gathered)),
        ("labels at most", _budget_words(spec, gathered)),
    ):
        if text:
            table.add_row(name, text)
    return table


def _source_words(spec: Spec) -> str:
    """The stages whose atoms something else than the committee moves."""
    drivers = {stage.name: driver_of(stage.engine) for stage in spec.stages}
    words = (f"{name}: {driver}" for name, driver in drivers.items() if driver is not None)
    text = "; ".join(words)
    return f"{text}; the committee only judges these frames" if text else ""


def _in_short(value: object) -> str:
    """A setting as one line, shortened if it is the text of a file."""
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST_SETTING else text[: LONGEST_SETTING - 1] + "…"


def recipe_words(recipe: Recipe) -> str:
    """Method, code, version and settings, marked if the labels are semi-empirical."""
    code = CODES[recipe.code]
    settings = ", ".join(f"{key} {_in_short(value)}" for key, value in recipe.settings.items())
    digest = f"; recipe {digest}" if (digest := _digest(recipe)) else ""
    text = (
        f"{code.method(recipe.settings)} with {recipe.program} ({settings}; charge "
        f"{recipe.charge}, multiplicity {recipe.multiplicity or 'lowest'}{digest})"
    )
    if recipe.version is not None and UNVERSIONED in recipe.version.split():
        text += "; the program has no stated version: labels are not shared with other campaigns"
    if recipe.electron_temperature is not None:
        text += f"; electron temperature from {recipe.electron_temperature} of each frame, K"
    for formula, inputs in recipe.compositions.items():
        text += f"; {formula}: {', '.join(f'{k} {_in_short(v)}' for k, v in inputs.given.items())}"
    return f"{SEMI_EMPIRICAL}: {text}" if code.semi_empirical(recipe.settings) else text


def _digest(recipe: Recipe) -> str | None:
    """None as long as the version is unknown, on which it depends."""
    return None if recipe.version is None else recipe.digest


def _virial_words(spec: Spec, gathered: Gathered, recipe: Recipe) -> str:
    """Whether labels must have a virial; empty if no frame has a cell."""
    if all(frame.cell is None for frames in gathered.systems.values() for frame in frames):
        return ""
    if needs_virial(spec):
        return f"required of every label, by {(uses_of_virial(spec) or ['labels.virial'])[0]}"
    reason = virial_less(CODES[recipe.code], recipe.settings)
    have = f"; these labels have none ({reason})" if reason else ""
    return f"not used, so that labels of periodic frames may have none{have}"


def _initial_words(gathered: Gathered) -> str:
    parts = []
    if gathered.initial:
        parts.append(f"{len(gathered.initial)} frames to label first")
    if gathered.labelled:
        counts = Counter(frame.formula for frame, _ in gathered.labelled)
        formulas = ", ".join(f"{count} {formula}" for formula, count in sorted(counts.items()))
        parts.append(f"{len(gathered.labelled)} imported labelled frames ({formulas})")
    return "; ".join(parts)


def _unchecked(spec: Spec) -> str:
    """What of the trainings the trainers find out."""
    if not deepmd_is_here():
        return "; checked by the trainers: no DeePMD-kit here"
    others = ", ".join(unbuilt(spec))
    return f"; not built here, but by the trainers: {others}" if others else ""


def _cross_check_words(gathered: Gathered) -> str:
    """Empty if no imported label is computed again."""
    count, sizes = gathered.compared, [len(frame.species) for frame, _ in gathered.labelled]
    if not count:
        return ""
    return (
        f"the labelers compute {count} of {len(sizes)} imported labels again before anything else "
        f"({count} single points of up to {max(sizes)} atoms, not counted in budget.labels); the "
        "campaign pauses if they differ (--no-cross-check omits this)"
    )


def _training_words(spec: Spec) -> str:
    training = spec.training
    warm = (
        f"; warm starts with {training.warm:.0%} of these steps, except one version in "
        f"{training.cold_every}"
        if training.warm
        else "; always from scratch"
    )
    start = ""
    if training.init is not None:
        start = f"; starts from {', '.join(training.init.model)} ({training.init.how})"
    return (
        f"{training.members} members ({training.backend}), {_batch_words(spec)}, steps = "
        f"{training.epochs:g} × frames / batch, between {training.min_steps} and "
        f"{training.max_steps}{warm}; final model "
        f"{training.final.steps_factor:g} × as long{start}{_unchecked(spec)}"
    )


def _batch_words(spec: Spec) -> str:
    given = spec.training.batch_atoms
    if given != "auto":
        return f"batches of {given} atoms"
    if spec.mode == "lockstep":
        return f"batches of {CPU_BATCH} atoms"
    return f"batches of {CPU_BATCH} atoms (on a GPU {GPU_BATCH}, in fewer steps)"


def _selection_words(spec: Spec) -> str:
    selection, cut, pool = spec.selection, "", ""
    if selection.clusters is not None:
        cut = f"clusters of {selection.clusters.radius:g} Å, "
    if selection.pool_size is not None or selection.pool_share is not None:
        sizes = [] if selection.pool_size is None else [f"{selection.pool_size}"]
        sizes += [] if selection.pool_share is None else [f"{selection.pool_share:.1%}"]
        pool = f" from the {' or '.join(sizes)} largest deviations of each system"
    return (
        f"{cut}{selection.drawn_by}{pool}, at most {selection.per_round} labels per round and "
        f"{selection.per_trajectory} per trajectory and version, {selection.min_separation:g} ps "
        f"apart; {spec.audit.per_round} audit labels per round, never trained on"
    )


def _convergence_words(spec: Spec) -> str:
    rule, audit = spec.convergence, spec.audit
    text = (
        f"the worst condition is ≥ {rule.accurate_ratio:.0%} accurate and ≤ {rule.max_failed:.0%} "
        f"failed, ≤ {rule.max_rejected:.0%} of labels rejected, in {rule.rounds} consecutive "
        f"round{'s' * (rule.rounds > 1)}"
    )
    if audit.per_round:
        text += (
            f", and on ≥ {audit.min_frames} audit frames from ≥ {audit.min_trajectories} "
            f"trajectories the 95 % upper bounds satisfy: force RMSE ≤ {audit.force_rmse:g} eV/Å, "
            f"P(error > {audit.error_target:g} eV/Å | accurate) ≤ {audit.exceed:g}"
        )
    return f"{text}; at most {spec.budget.rounds} rounds per stage"


def _verification_words(spec: Spec, gathered: Gathered) -> str:
    rule, parts = spec.verification, []
    held_out = len(gathered.test) + held_out_frames(spec)
    if held_out:
        parts.append(
            f"force RMSE ≤ {rule.max_force_error:.0%} of RMS force on {held_out} held-out frames"
        )
    if rule.nve_ps:
        parts.append(f"a stable NVE run of {rule.nve_ps:g} ps from {rule.nve_temperature:g} K")
    parts += [f"{p.property} of {p.system} within {100 * p.tolerance:g} %" for p in rule.properties]
    return "; ".join(parts) or "none"


def held_out_frames(spec: Spec) -> int:
    """Number of held-out frames from reference dynamics."""
    reference = spec.verification.reference_md
    return 0 if reference is None else reference.trajectories * reference.frames


def plan_facts(spec: Spec, gathered: Gathered, recipe: Recipe) -> dict[str, Any]:
    """The plan for programs: the spec with its defaults, and what follows from it."""
    return {
        "spec": expand_material(spec).model_dump(mode="json"),
        "recipe": {"digest": _digest(recipe), **recipe.model_dump(mode="json")},
        "systems": {name: len(frames) for name, frames in gathered.systems.items()},
        "initial_frames": len(gathered.initial),
        "imported_labels": len(gathered.labelled),
        "imported_labels_computed_again": gathered.compared,
        "labels_at_most": most_labels(spec, gathered.least(spec)),
        "warnings": gathered.warnings,
    }


def most_labels(spec: Spec, least: int) -> int:
    """Largest number of labels of a campaign: the `least` that are computed in any case, then the
    limits of every round of every stage (including audit), bounded by the budget. Reused labels
    count."""
    spec = expand_material(spec)
    planned = sum(rounds_of(spec, stage) * _per_round(spec, stage) for stage in spec.stages)
    return min(spec.budget.labels, least + planned)


def _per_round(spec: Spec, stage: Stage) -> int:
    return new_labels(spec, stage) + spec.audit.per_round


def _budget_words(spec: Spec, gathered: Gathered) -> str:
    most = most_labels(spec, gathered.least(spec))
    reference = spec.verification.reference_md
    further = {"for properties": gathered.measured}
    if reference is not None:
        trajectories = f"single points of {reference.trajectories} reference trajectories"
        further[trajectories] = reference.single_points
    first = "".join(f"{count} {what} + " for what, count in further.items() if count)
    text = (
        f"{most} = min(budget {spec.budget.labels}, {len(gathered.initial)} initial + {first}"
        f"{_rounds_words(spec)})"
    )
    if spec.share_checked:
        text += (
            f"; {spec.share_checked:.0%} of the labels found in the store are computed again, at "
            "least one of each labeler"
        )
    return text


def _rounds_words(spec: Spec) -> str:
    """Stages × rounds × labels per round, with equal stages combined."""
    alike = Counter((rounds_of(spec, stage), _per_round(spec, stage)) for stage in spec.stages)
    audit = spec.audit.per_round
    return " + ".join(
        f"{count} stages × {rounds} rounds × ({labels - audit} + {audit} audit)"
        for (rounds, labels), count in alike.items()
    )
