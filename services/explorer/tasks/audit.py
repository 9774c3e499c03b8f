"""The `audit` task: measures the committee's true error on labelled audit frames.

Each labelled frame gives a pair of model deviation and true error. The pairs give the error
statistics and, with `auto` trust levels, the calibrated levels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpstream.services.explorer.evaluation import evaluated, verdicts_of
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.services.explorer.statistics.audit import AuditSummary, summarise
from dpstream.services.explorer.statistics.trust_calibration import calibrate
from dpstream.shared.atoms.dataset import Labelled, load_dataset
from dpstream.shared.atoms.deviation import (
    Verdict,
    force_deviation,
    max_force_error,
    mean_square_error,
)
from dpstream.shared.atoms.frames import frame_key
from dpstream.shared.messages import Audit, AuditDone
from dpstream.shared.runtime.context import Context
from dpstream.shared.spec import AutoTrust
from dpstream.shared.values import Trust

PARITY_POINTS = 1500
"""Maximum force components in the report's parity plot."""


@dataclass(frozen=True)
class AuditPair:
    """One labelled frame evaluated by one committee: `deviation` ε and `error` ε̂ in eV/Å,
    `squared` the mean square error of a force component in (eV/Å)², `weight` inverse inclusion
    probability."""

    key: str
    origin: str
    deviation: float
    error: float
    squared: float
    weight: float
    verdict: Verdict


def audit(resources: ExplorerResources, command: Audit, context: Context) -> AuditDone:
    """Measure the committee's true error on frames that are never used for training; with `auto`
    trust levels, also calibrate the levels with these and the round's new labels."""
    models = resources.committee(command.committee, context).models
    audited = load_dataset(context.fetch, command.audit)
    pairs = pairs_of(resources, models, audited, command.trust, context)
    fresh = []
    if command.pairs is not None:
        labelled = load_dataset(context.fetch, command.pairs)
        fresh = pairs_of(resources, models, labelled, command.trust, context)
    parity = _parity(resources, models, audited, context)
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
    resources: ExplorerResources,
    models: Sequence[Path],
    labelled: Sequence[Labelled],
    trust: Trust,
    context: Context,
) -> list[AuditPair]:
    """One pair per labelled frame, in their order."""
    pairs: dict[int, AuditPair] = {}
    for rows, evaluation in evaluated(resources, models, labelled, context):
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
            pairs[row] = _pair(labelled[row], float(deviation), float(error), float(squared), kind)
    return [pairs[row] for row in range(len(labelled))]


def _pair(
    item: Labelled, deviation: float, error: float, squared: float, kind: Verdict
) -> AuditPair:
    key = frame_key(item.frame)
    return AuditPair(key, item.origin, deviation, error, squared, item.weight, kind)


def _parity(
    resources: ExplorerResources,
    models: Sequence[Path],
    labelled: Sequence[Labelled],
    context: Context,
) -> dict[str, list[float]]:
    """Force components of labels and of the committee's mean, eV/Å, evenly thinned."""
    label, model = [], []
    for rows, evaluation in evaluated(resources, models, labelled, context):
        label += [labelled[row].label.forces.ravel() for row in rows]
        model += list(evaluation.forces.mean(axis=0).reshape(len(rows), -1))
    columns = {"label": np.concatenate(label), "model": np.concatenate(model)}
    every = -(-len(columns["label"]) // PARITY_POINTS)
    return {name: np.round(values[::every], 5).tolist() for name, values in columns.items()}


def _summary(pairs: Sequence[AuditPair], command: Audit, context: Context) -> AuditSummary:
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


def _levels(pairs: Sequence[AuditPair], command: Audit, context: Context) -> dict[str, Any]:
    """Calibrated trust levels for the event; empty if the levels are fixed."""
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


def _rows(pairs: Sequence[AuditPair]) -> list[dict[str, Any]]:
    return [vars(pair) for pair in pairs]
