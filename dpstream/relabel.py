"""Labels of a few frames here and now, through the labeler's own handler."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import services.labeler.handlers as labeler
from shared.context import Context
from shared.embedded import FolderStore, InProcessBus
from shared.frames import Batch, Frame, Label, decode_labelled, frame_key
from shared.messages import Label as LabelCommand
from shared.messages import LabelsDone
from shared.spec import Labels, Spec
from shared.values import FrameRef, Recipe, Ref


def label_frames(spec: Spec, recipe: Recipe, frames: list[Frame]) -> list[Label | str]:
    """The label of each canonical frame, or the reason of its rejection."""
    with tempfile.TemporaryDirectory(prefix="dpstream-") as folder:
        store = FolderStore(Path(folder) / "store")
        command = LabelCommand(
            id="relabel",
            campaign=spec.name,
            time=0.0,
            task="relabel",
            title=f"label {len(frames)} frames",
            max_seconds=spec.labels.max_seconds,
            spec=_stored(store, "spec.json", spec.model_dump_json().encode()),
            capability=spec.labels.capability,
            recipe=recipe.digest,
            frames=tuple(_frame_ref(store, frame) for frame in frames),
        )
        done = _done(store, command, Path(folder), spec.labels)
        answers: dict[str, Label | str] = {r.key: f"{r.rule}: {r.detail}" for r in done.rejected}
        for accepted in done.accepted:
            answers[accepted.key] = decode_labelled(store.get(accepted.label.uri))[1]
        return [answers[frame_key(frame)] for frame in frames]


def _done(store: FolderStore, command: LabelCommand, folder: Path, labels: Labels) -> LabelsDone:
    scratch = folder / "scratch"
    scratch.mkdir()
    bench = labeler.Bench.at_home(scratch, labels)
    try:
        context = Context(store, InProcessBus(), command, scratch, "relabel", threading.Event())
        return labeler.label(bench, command, context)
    finally:
        bench.close()


def _frame_ref(store: FolderStore, frame: Frame) -> FrameRef:
    key = frame_key(frame)
    return FrameRef(batch=_stored(store, f"{key}.npz", Batch.of([frame]).dumps()), index=0, key=key)


def _stored(store: FolderStore, uri: str, data: bytes) -> Ref:
    store.create(uri, data)
    return Ref.to(uri, data)
