"""What was left out of a dataset, measured by the last committee and the final model."""

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
from dpstream.shared.atoms.frames import Batch, Floats, Frame, frame_key
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.messages import Judge
from dpstream.shared.runtime.context import Context
from dpstream.shared.runtime.scratch import private_folder
from dpstream.shared.values import Ref, Rejected, Trust, campaign_uri
from dpstream.simplify.pool import SimplifyPool

TOLD = "simplified.json"
BATCH = 200
"""Frames evaluated at once."""


@dataclass(frozen=True)
class Remainder:
    """Numbers of frames; `deviation`: the largest of the committee's force on those left out, eV/Å,
    relative where `trust` is; `above`: how many of them are not accurate; `error`: force RMSE of
    the final model on them, eV/Å, where their labels are known."""

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
            text += f", {self.rejected:,} were rejected (dpstream why says for what)"
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
            return f"the remaining {self.left_out:,} lie below {level}"
        return f"{self.above:,} of the remaining {self.left_out:,} do not lie below {level}"

    @property
    def _error(self) -> str:
        if self.error is None:
            return ""
        return f", force RMSE of the final model on them {self.error:.3g} eV/Å"


def measure(
    harvest: CampaignResults, pool: SimplifyPool, trust: Trust, folder: Path
) -> Remainder | None:
    """What became of the pool; written into `folder` too, with the numbers of the frames kept.
    None before there is a committee."""
    if not harvest.committee:
        return None
    kept = pool.frames.keys() & {frame_key(item.frame) for item in harvest.training_set()}
    lives = harvest.history.lives.items()
    rejected = {k for k, life in lives if isinstance(life.verdict, Rejected)} & pool.frames.keys()
    rest = {k: f for k, f in pool.frames.items() if k not in kept and k not in rejected}
    counts = Remainder(len(pool.frames), len(kept), len(rejected), trust)
    found = _measured(harvest, pool, rest, counts) if rest else counts
    numbers = sorted(number for key in kept for number in pool.numbers[key])
    document = {**vars(found), "trust": trust.model_dump(), "kept_frames": numbers}
    (folder / TOLD).write_text(json.dumps(document, indent=1) + "\n")
    return found


def _measured(
    harvest: CampaignResults, pool: SimplifyPool, rest: Mapping[str, Frame], counts: Remainder
) -> Remainder:
    devi: list[float] = []
    squares: list[Floats] = []
    above = 0
    with _at_bench(harvest, counts.trust) as (resources, context):
        models = resources.committee(_manifest(harvest), context).models
        final = None if harvest.final is None else resources.model(harvest.final.model, context)
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


def _manifest(harvest: CampaignResults) -> Ref:
    uri = campaign_uri(harvest.campaign, "committees", f"{harvest.committee[0].version}.json")
    return Ref.to(uri, harvest.store.get(uri))


@contextmanager
def _at_bench(
    harvest: CampaignResults, trust: Trust
) -> Iterator[tuple[ExplorerResources, Context]]:
    """An explorer's bench, and the context of a task that is nobody's."""
    command = Judge(
        id="simplify",
        campaign=harvest.campaign,
        time=0.0,
        task="simplify",
        title="measure what is left out",
        max_seconds=harvest.spec.training.max_hours * 3600,
        spec=Ref.to("spec.json", harvest.spec_bytes),
        committee=_manifest(harvest),
        version=harvest.committee[0].version,
        trust=trust,
    )
    with private_folder(None) as scratch:
        resources, bus = ExplorerResources(scratch / "bench"), InProcessBus()
        try:
            yield (
                resources,
                Context(harvest.store, bus, command, scratch, "simplify", threading.Event()),
            )
        finally:
            resources.close()
