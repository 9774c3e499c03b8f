"""The `judge` task: judges candidates and frames pending a label again with a newer committee."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpstream.services.explorer.evaluation import verdicts_of, with_deviations
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.shared.atoms.deviation import Verdict, count
from dpstream.shared.atoms.frames import Batch, frame_key
from dpstream.shared.messages import FramesJudged, Judge
from dpstream.shared.runtime.context import Context
from dpstream.shared.values import FrameRef, PoolItem, Ref, is_offered


def judge(resources: ExplorerResources, command: Judge, context: Context) -> FramesJudged:
    """Judge frames again with a newer committee. Frames that are no longer candidates leave the
    pool; frames pending a label that are now accurate are reported."""
    models = resources.committee(command.committee, context).models
    kinds: list[Verdict] = []
    pool, offered = [], dict[str, Any]()
    for number, item in enumerate(command.pool):
        batch = Batch.loads(context.fetch(item.frames))
        batch, verdicts = _judged(resources, models, batch, command, context)
        kinds += verdicts
        rows = [row for row, kind in enumerate(verdicts) if kind == "candidate"]
        if is_offered(item.trajectory):
            keys = [frame_key(frame) for frame in batch]
            pairs = zip(keys, verdicts, strict=True)
            offered |= {key: kind for key, kind in pairs if kind != "candidate"}
        if rows:
            pool.append(_remaining(item, batch.take(rows), number, command, context))
    pending = _pending(resources, models, command, context)
    kinds += [kind for _, kind in pending]
    return FramesJudged(
        **context.envelope(),
        version=command.version,
        pool=tuple(pool),
        counts=count(kinds),
        accurate=tuple(ref.key for ref, kind in pending if kind == "accurate"),
        offered=offered,
    )


def _judged(
    resources: ExplorerResources,
    models: Sequence[Path],
    batch: Batch,
    command: Judge,
    context: Context,
) -> tuple[Batch, list[Verdict]]:
    """The batch with updated deviations and version, and the verdicts."""
    evaluation = resources.evaluate(models, batch, context)
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
    resources: ExplorerResources, models: Sequence[Path], command: Judge, context: Context
) -> list[tuple[FrameRef, Verdict]]:
    """The command's individual frames with their verdicts, evaluated batch by batch."""
    batches: dict[Ref, list[FrameRef]] = {}
    for ref in command.frames:
        batches.setdefault(ref.batch, []).append(ref)
    found: list[tuple[FrameRef, Verdict]] = []
    for batch, refs in batches.items():
        frames = Batch.loads(context.fetch(batch)).take([ref.index for ref in refs])
        kinds = verdicts_of(resources.evaluate(models, frames, context), command.trust)
        found += zip(refs, kinds, strict=True)
    return found
