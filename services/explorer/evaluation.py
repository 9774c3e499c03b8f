"""Committees measured against frames: the `judge` and `audit` tasks, and errors on labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from services.explorer.audit import AuditSummary, summarise
from services.explorer.bench import Bench, Evaluation
from services.explorer.calibration import calibrate
from shared.context import Context
from shared.dataset import Labelled, load_dataset
from shared.deviation import (
    Verdict,
    count,
    force_deviation,
    max_force_deviation,
    max_force_error,
    mean_square_error,
    verdict,
    virial_deviation,
)
from shared.frames import Batch, Floats, frame_key
from shared.messages import Audit, AuditDone, FramesJudged, Judge
from shared.spec import AutoTrust
from shared.values import FrameRef, PoolItem, Ref, Rmse, Trust, is_offered

PARITY_POINTS = 1500
"""Force components told to the report."""


@dataclass(frozen=True)
class Pair:
    """One labelled frame under one committee: `deviation` ε and `error` ε̂ in eV/Å, `squared` the
    mean square error of a force component in (eV/Å)², `weight` inverse inclusion probability."""

    key: str
    origin: str
    deviation: float
    error: float
    squared: float
    weight: float
    verdict: Verdict


# ---------------------------------------------------------------------------------------- judging


def judge(bench: Bench, command: Judge, context: Context) -> FramesJudged:
    """Judge waiting frames again by a newer committee: what is no candidate any more leaves the
    pool, and frames whose label is pending but that are accurate now are named."""
    models = bench.committee(command.committee, context).models
    kinds: list[Verdict] = []
    pool, offered = [], dict[str, Any]()
    for number, item in enumerate(command.pool):
        batch = Batch.loads(context.fetch(item.frames))
        batch, verdicts = _judged(bench, models, batch, command, context)
        kinds += verdicts
        rows = [row for row, kind in enumerate(verdicts) if kind == "candidate"]
        if is_offered(item.trajectory):
            keys = [frame_key(frame) for frame in batch]
            pairs = zip(keys, verdicts, strict=True)
            offered |= {key: kind for key, kind in pairs if kind != "candidate"}
        if rows:
            pool.append(_remaining(item, batch.take(rows), number, command, context))
    pending = _pending(bench, models, command, context)
    kinds += [kind for _, kind in pending]
    return FramesJudged(
        **context.envelope(),
        version=command.version,
        pool=tuple(pool),
        counts=count(kinds),
        accurate=tuple(ref.key for ref, kind in pending if kind == "accurate"),
        offered=offered,
    )


def deviations(evaluation: Evaluation, trust: Trust) -> tuple[Floats, Floats | None]:
    """ε_f `(n_frames,)` and ε_v `(n_frames,)` (None in vacuum), relative where `trust` says so."""
    devi_f = max_force_deviation(evaluation.forces, trust.relative)
    if evaluation.virials is None:
        return devi_f, None
    n_atoms = evaluation.forces.shape[-2]
    return devi_f, virial_deviation(evaluation.virials, n_atoms, trust.relative_v)


def with_deviations(
    batch: Batch, evaluation: Evaluation, trust: Trust, **arrays: npt.NDArray[Any]
) -> Batch:
    """With arrays devi_f and devi_v (zero in vacuum), and those given, in place of earlier ones."""
    devi_f, devi_v = deviations(evaluation, trust)
    judged = {"devi_f": devi_f, "devi_v": np.zeros(len(batch)) if devi_v is None else devi_v}
    return replace(batch, arrays={**batch.arrays, **judged, **arrays})


def verdicts_of(evaluation: Evaluation, trust: Trust) -> list[Verdict]:
    devi_f, devi_v = deviations(evaluation, trust)
    pairs = zip(devi_f, devi_f if devi_v is None else devi_v, strict=True)
    return [verdict(float(f), None if devi_v is None else float(v), trust) for f, v in pairs]


def _judged(
    bench: Bench, models: Sequence[Path], batch: Batch, command: Judge, context: Context
) -> tuple[Batch, list[Verdict]]:
    """The batch with its deviations and version brought up to date, and the verdicts."""
    evaluation = bench.evaluate(models, batch, context)
    version = np.full(len(batch), command.version)
    judged = with_deviations(batch, evaluation, command.trust, version=version)
    return judged, verdicts_of(evaluation, command.trust)


def _remaining(
    item: PoolItem, batch: Batch, number: int, command: Judge, context: Context
) -> PoolItem:
    frames = context.put(f"judged-{number}.npz", batch.dumps())
    changes = {"frames": frames, "count": len(batch), "version": command.version}
    return item.model_copy(update=changes)


def _pending(
    bench: Bench, models: Sequence[Path], command: Judge, context: Context
) -> list[tuple[FrameRef, Verdict]]:
    """The command's single frames and their verdicts, evaluated batch by batch."""
    batches: dict[Ref, list[FrameRef]] = {}
    for ref in command.frames:
        batches.setdefault(ref.batch, []).append(ref)
    found: list[tuple[FrameRef, Verdict]] = []
    for batch, refs in batches.items():
        frames = Batch.loads(context.fetch(batch)).take([ref.index for ref in refs])
        kinds = verdicts_of(bench.evaluate(models, frames, context), command.trust)
        found += zip(refs, kinds, strict=True)
    return found


# ---------------------------------------------------------------------------------------- auditing


def audit(bench: Bench, command: Audit, context: Context) -> AuditDone:
    """The committee's true error on labelled frames it never trained on; with `auto` trust levels
    also the levels that these and the round's own labels speak for."""
    models = bench.committee(command.committee, context).models
    audited = load_dataset(context.fetch, command.audit)
    pairs = pairs_of(bench, models, audited, command.trust, context)
    fresh = []
    if command.pairs is not None:
        labelled = load_dataset(context.fetch, command.pairs)
        fresh = pairs_of(bench, models, labelled, command.trust, context)
    parity = _parity(bench, models, audited, context)
    document = json.dumps({"audit": _rows(pairs), "pairs": _rows(fresh), "parity": parity})
    return AuditDone(
        **context.envelope(),
        version=command.version,
        stage=command.stage,
        **vars(_summary(pairs, command, context)),
        pairs=context.put("pairs.json", document.encode()),
        **_levels([*pairs, *fresh], command, context),
    )


def pairs_of(
    bench: Bench,
    models: Sequence[Path],
    labelled: Sequence[Labelled],
    trust: Trust,
    context: Context,
) -> list[Pair]:
    """One pair per labelled frame, in their order."""
    found: dict[int, Pair] = {}
    for rows, evaluation in evaluated(bench, models, labelled, context):
        reference = np.stack([labelled[row].label.forces for row in rows])
        numbers = zip(
            rows,
            np.max(force_deviation(evaluation.forces), axis=-1),
            max_force_error(evaluation.forces, reference),
            mean_square_error(evaluation.forces, reference),
            verdicts_of(evaluation, trust),
            strict=True,
        )
        for row, deviation, error, squared, kind in numbers:
            found[row] = _pair(labelled[row], float(deviation), float(error), float(squared), kind)
    return [found[row] for row in range(len(labelled))]


def _pair(item: Labelled, deviation: float, error: float, squared: float, kind: Verdict) -> Pair:
    key = frame_key(item.frame)
    return Pair(key, item.origin, deviation, error, squared, item.weight, kind)


def evaluated(
    bench: Bench, models: Sequence[Path], labelled: Sequence[Labelled], context: Context
) -> Iterator[tuple[list[int], Evaluation]]:
    """The models on labelled frames, one composition at a time: rows of `labelled`, and what the
    models say of those."""
    for rows in Batch.grouped([item.frame for item in labelled]):
        batch = Batch.of([labelled[row].frame for row in rows])
        yield rows, bench.evaluate(models, batch, context)


def _parity(
    bench: Bench, models: Sequence[Path], labelled: Sequence[Labelled], context: Context
) -> dict[str, list[float]]:
    """Force components of labels and of the committee's mean, eV/Å, evenly thinned."""
    label, model = [], []
    for rows, evaluation in evaluated(bench, models, labelled, context):
        label += [labelled[row].label.forces.ravel() for row in rows]
        model += list(evaluation.forces.mean(axis=0).reshape(len(rows), -1))
    columns = {"label": np.concatenate(label), "model": np.concatenate(model)}
    every = -(-len(columns["label"]) // PARITY_POINTS)
    return {name: np.round(values[::every], 5).tolist() for name, values in columns.items()}


def _summary(pairs: Sequence[Pair], command: Audit, context: Context) -> AuditSummary:
    return summarise(
        squared=np.array([pair.squared for pair in pairs], dtype=np.float64),
        max_error=np.array([pair.error for pair in pairs], dtype=np.float64),
        accurate=np.array([pair.verdict == "accurate" for pair in pairs], dtype=np.bool_),
        judged_failed=np.array([pair.verdict == "failed" for pair in pairs], dtype=np.bool_),
        weights=np.array([pair.weight for pair in pairs], dtype=np.float64),
        origins=[pair.origin for pair in pairs],
        deviation=np.array([pair.deviation for pair in pairs], dtype=np.float64),
        target=context.spec().audit.error_target,
        seed=command.seed,
    )


def _levels(pairs: Sequence[Pair], command: Audit, context: Context) -> dict[str, Any]:
    """Calibrated trust levels for the event; nothing where the levels are given."""
    spec = context.spec()
    trust = spec.stages[command.stage].trust or spec.trust
    if not isinstance(trust, AutoTrust):
        return {}
    low, high, why = calibrate(
        np.array([pair.deviation for pair in pairs], dtype=np.float64),
        np.array([pair.error for pair in pairs], dtype=np.float64),
        np.array([pair.weight for pair in pairs], dtype=np.float64),
        trust.target,
        (command.trust.low, command.trust.high),
        trust.min_pairs,
    )
    return {"levels": (low, high), "levels_why": why}


def _rows(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    return [vars(pair) for pair in pairs]


# ------------------------------------------------------------------------------- errors on labels


def rmse(bench: Bench, model: Path, labelled: Sequence[Labelled], context: Context) -> Rmse:
    """Errors of one model on labelled frames; ValueError without any."""
    if not labelled:
        raise ValueError("no labelled frames to measure on")
    energy, force, virial, own = [], [], [], []
    for rows, evaluation in evaluated(bench, [model], labelled, context):
        for row, index in enumerate(rows):
            label, n_atoms = labelled[index].label, len(labelled[index].frame.species)
            energy.append((evaluation.energies[0, row] - label.energy) / n_atoms)
            force.append((evaluation.forces[0, row] - label.forces).ravel())
            own.append(label.forces.ravel())
            if evaluation.virials is not None and label.virial is not None:
                virial.append((evaluation.virials[0, row] - label.virial).ravel() / n_atoms)
    return Rmse(
        frames=len(labelled),
        energy=_root_mean_square([np.array(energy)]),
        force=_root_mean_square(force),
        virial=_root_mean_square(virial) if virial else None,
        rms_force=_root_mean_square(own),
    )


def _root_mean_square(values: Sequence[Floats]) -> float:
    return float(np.sqrt(np.mean(np.square(np.concatenate(list(values))))))
