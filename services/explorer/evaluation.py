"""Evaluates models on frames: model deviations, verdicts, errors.

The energies and forces come from the child process (`ExplorerResources.evaluate`); the functions
here compute what follows from them. Shared by the tasks judge, screen, audit, measure and verify.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpstream.services.explorer.resources import Evaluation, ExplorerResources
from dpstream.shared.atoms.dataset import Labelled
from dpstream.shared.atoms.deviation import Verdict, max_force_deviation, verdict, virial_deviation
from dpstream.shared.atoms.frames import Batch, Floats
from dpstream.shared.runtime.context import Context
from dpstream.shared.values import Rmse, Trust


def deviations(evaluation: Evaluation, trust: Trust) -> tuple[Floats, Floats | None]:
    """ε_f `(n_frames,)` and ε_v `(n_frames,)` (None in vacuum), relative if `trust` is."""
    devi_f = max_force_deviation(evaluation.forces, trust.relative)
    if evaluation.virials is None:
        return devi_f, None
    n_atoms = evaluation.forces.shape[-2]
    return devi_f, virial_deviation(evaluation.virials, n_atoms, trust.relative_v)


def with_deviations(
    batch: Batch, evaluation: Evaluation, trust: Trust, **arrays: npt.NDArray[Any]
) -> Batch:
    """`batch` with updated arrays devi_f, devi_v (zero in vacuum) and `arrays`."""
    devi_f, devi_v = deviations(evaluation, trust)
    judged = {"devi_f": devi_f, "devi_v": np.zeros(len(batch)) if devi_v is None else devi_v}
    return replace(batch, arrays={**batch.arrays, **judged, **arrays})


def verdicts_of(evaluation: Evaluation, trust: Trust) -> list[Verdict]:
    devi_f, devi_v = deviations(evaluation, trust)
    pairs = zip(devi_f, devi_f if devi_v is None else devi_v, strict=True)
    return [verdict(float(f), None if devi_v is None else float(v), trust) for f, v in pairs]


def evaluated(
    resources: ExplorerResources,
    models: Sequence[Path],
    labelled: Sequence[Labelled],
    context: Context,
) -> Iterator[tuple[list[int], Evaluation]]:
    """Evaluates models on labelled frames, one composition at a time; yields row numbers of
    `labelled` and the evaluation of these rows."""
    for rows in Batch.grouped([item.frame for item in labelled]):
        batch = Batch.of([labelled[row].frame for row in rows])
        yield rows, resources.evaluate(models, batch, context)


def rmse(
    resources: ExplorerResources, model: Path, labelled: Sequence[Labelled], context: Context
) -> Rmse:
    """Errors of one model on labelled frames. Raises ValueError without frames."""
    if not labelled:
        raise ValueError("no labelled frames to measure errors on")
    energy, force, virial, own = [], [], [], []
    for rows, evaluation in evaluated(resources, [model], labelled, context):
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
