"""Measures the frames left out of a dataset with the last committee and the final model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dpstream.export.results import CampaignResults
from dpstream.inputs.frames_as_given import runs
from dpstream.services.explorer.evaluation import deviations, verdicts_of
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.services.trainer.training_input import BACKENDS
from dpstream.shared.atoms.frames import Batch, Floats, Frame, frame_key
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.messages import Judge
from dpstream.shared.runtime.context import Context
from dpstream.shared.runtime.device import device_of_environment
from dpstream.shared.runtime.scratch import private_folder
from dpstream.shared.values import Ref, Rejected, Trust, campaign_uri
from dpstream.simplify.pool import SimplifyPool

RESULT = "simplified.json"
BATCH = 200
"""Frames per evaluation."""


@dataclass(frozen=True)
class Remainder:
    """Numbers of frames, and errors on those left out. `deviation`: largest force deviation of the
    committee, eV/Å (dimensionless if `trust` is relative); `above`: number of frames that are not
    accurate; `error`: force RMSE of the final model, eV/Å, if labels are known."""

    frames: int
    kept: int
    rejected: int
    trust: Trust
    above: int = 0
    deviation: float = 0.0
    error: float | None = None

    @property
    def left_out(self) -> int:
        return self.frames - self.kept - self.rejected

    def __str__(self) -> str:
        text = f"kept {self.kept:,} of {self.frames:,} frames"
        if self.rejected:
            text += f", {self.rejected:,} were rejected (for reasons see dpstream why)"
        if not self.left_out:
            return f"{text}; none is left out"
        return f"{text}; {self._below}: max deviation {self.deviation:.3g}{self._unit}{self._error}"

    @property
    def _unit(self) -> str:
        return "" if self.trust.relative is not None else " eV/Å"

    @property
    def _below(self) -> str:
        level = f"the trust level ({self.trust.low:g}{self._unit})"
        if not self.above:
            return f"the remaining {self.left_out:,} are below {level}"
        return f"{self.above:,} of the remaining {self.left_out:,} are not below {level}"

    @property
    def _error(self) -> str:
        if self.error is None:
            return ""
        return f", force RMSE of the final model on them {self.error:.3g} eV/Å"


def measure(
    results: CampaignResults, pool: SimplifyPool, trust: Trust, folder: Path
) -> Remainder | None:
    """Count and measure the frames of the pool, and write the result to `folder` together with
    the numbers of the frames kept. None if there is no committee yet."""
    if not results.committee:
        return None
    kept = pool.frames.keys() & {frame_key(item.frame) for item in results.training_set()}
    lives = results.history.lives.items()
    rejected = {k for k, life in lives if isinstance(life.verdict, Rejected)} & pool.frames.keys()
    rest = {k: f for k, f in pool.frames.items() if k not in kept and k not in rejected}
    counts = Remainder(len(pool.frames), len(kept), len(rejected), trust)
    remainder = _measured(results, pool, rest, counts) if rest else counts
    numbers = sorted(number for key in kept for number in pool.numbers[key])
    document = {**vars(remainder), "trust": trust.model_dump(), "kept_frames": numbers}
    (folder / RESULT).write_text(json.dumps(document, indent=1) + "\n")
    return remainder


def _measured(
    results: CampaignResults, pool: SimplifyPool, rest: Mapping[str, Frame], counts: Remainder
) -> Remainder:
    devi: list[float] = []
    squares: list[Floats] = []
    above = 0
    with measuring(results, counts.trust) as (resources, context):
        models = resources.committee(_manifest(results), context).models
        final = None if results.final is None else resources.model(results.final.model, context)
        for frames in runs(list(rest.values()), BATCH):
            batch = Batch.of(frames)
            evaluation = resources.evaluate(models, batch, context)
            devi += deviations(evaluation, counts.trust)[0].tolist()
            above += sum(v != "accurate" for v in verdicts_of(evaluation, counts.trust))
            if final is not None and pool.labels:
                forces = resources.evaluate([final], batch, context).forces[0]
                known = np.stack([pool.labels[frame_key(frame)].forces for frame in frames])
                squares.append(((forces - known) ** 2).ravel())
    error = float(np.sqrt(np.mean(np.concatenate(squares)))) if squares else None
    return replace(counts, above=above, deviation=max(devi), error=error)


def _manifest(results: CampaignResults) -> Ref:
    uri = campaign_uri(results.campaign, "committees", f"{results.committee[0].version}.json")
    return Ref.to(uri, results.store.get(uri))


@contextmanager
def measuring(
    results: CampaignResults, trust: Trust
) -> Iterator[tuple[ExplorerResources, Context]]:
    """An explorer's resources, for the models of the campaign's own trainings, and the context of a
    task outside the campaign."""
    formats = frozenset({BACKENDS[results.spec.training.backend].suffix})
    command = Judge(
        id="simplify",
        campaign=results.campaign,
        time=0.0,
        task="simplify",
        title="measure what is left out",
        max_seconds=results.spec.training.max_hours * 3600,
        spec=Ref.to("spec.json", results.spec_bytes),
        committee=_manifest(results),
        version=results.committee[0].version,
        trust=trust,
    )
    with private_folder(None) as scratch:
        device, bus, stopping = device_of_environment(), InProcessBus(), threading.Event()
        resources = ExplorerResources(scratch / "bench", formats=formats, device=device)
        try:
            yield resources, Context(results.store, bus, command, scratch, "simplify", stopping)
        finally:
            resources.close()
