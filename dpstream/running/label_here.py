"""Labels frames in this process, outside any campaign.

Uses the labeler's own `FrameLabeler`, so acceptance rules, cache and provenance are the same as in
a campaign.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

from dpstream.services.labeler.labeling import FrameLabeler
from dpstream.services.labeler.resources import LabelerResources
from dpstream.shared.atoms.frames import Frame, FrameLabel, decode_labelled, frame_key
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.errors import SpecError, Stopped
from dpstream.shared.messages import Label as LabelCommand
from dpstream.shared.ports import Store
from dpstream.shared.runtime.context import Context
from dpstream.shared.runtime.scratch import private_folder
from dpstream.shared.spec import LabelSettings, Spec
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import Accepted, Recipe, Ref, Rejected

Verdict = Accepted | Rejected
Item = TypeVar("Item")


@dataclass(frozen=True)
class LabelMethod:
    """How labels are computed. `files`: files that the recipe refers to, by digest; `spec`: that of
    the campaign, if any, because dimers have their own limits."""

    labels: LabelSettings
    recipe: Recipe
    files: Mapping[str, bytes]
    spec: Spec | None = None


@contextmanager
def frame_labeler(
    method: LabelMethod, store: Store, purpose: str, stopping: threading.Event
) -> Iterator[FrameLabeler]:
    """A `FrameLabeler` with its cache in `store`; `purpose` is recorded as provenance. It raises
    `Stopped` once `stopping` is set. Raises `SpecError` if this machine does not allow the
    recipe."""
    with private_folder(None) as scratch:
        resources = LabelerResources.for_local_run(scratch, method.labels)
        refusal = resources.refusal(method.recipe)
        if refusal is not None:
            raise SpecError(f"labels: {refusal}")
        command = _command(method.labels, method.recipe, purpose)
        context = Context(store, InProcessBus(), command, scratch, purpose, stopping)
        try:
            yield FrameLabeler(
                resources, context, method.labels, method.recipe, method.spec, method.files
            )
        finally:
            resources.close()


def _command(labels: LabelSettings, recipe: Recipe, purpose: str) -> LabelCommand:
    return LabelCommand(
        id=purpose,
        campaign=purpose,
        time=0.0,
        task=purpose,
        title=purpose,
        max_seconds=labels.max_seconds,
        spec=Ref.to("labels.json", labels.model_dump_json().encode()),
        capability=labels.capability,
        recipe=recipe.digest,
        frames=(),
    )


def label_in_parallel(
    items: Iterable[Item],
    work: Callable[[FrameLabeler, Item], None],
    method: LabelMethod,
    store: Store,
    *,
    purpose: str,
    workers: int,
    stopping: threading.Event,
) -> None:
    """Call `work` on each item with `workers` threads, each with its own `FrameLabeler`. Returns
    early once `stopping` is set. A failure of one thread stops the others, and is raised."""
    waiting: SimpleQueue[Item] = SimpleQueue()
    for item in items:
        waiting.put(item)

    def work_through() -> None:
        try:
            with (
                suppress(Stopped, Empty),
                frame_labeler(method, store, purpose, stopping) as labeler,
            ):
                while True:
                    work(labeler, waiting.get_nowait())
        except BaseException:
            stopping.set()
            raise

    count = max(1, min(workers, waiting.qsize()))
    with ThreadPoolExecutor(count) as pool:  # an engine ends with its thread
        crew = [pool.submit(work_through) for _ in range(count)]
    for member in crew:
        member.result()


def label_frames(
    spec: Spec, recipe: Recipe, files: Mapping[str, bytes], frames: list[Frame]
) -> Iterator[FrameLabel | str]:
    """The label of each canonical frame, or the reason of its rejection, as they are computed.
    Nothing is stored. `files`: files that the recipe refers to, by digest."""
    method = LabelMethod(spec.labels, recipe, files, spec)
    with tempfile.TemporaryDirectory(prefix="dpstream-") as folder:
        store = FolderStore(Path(folder))
        with frame_labeler(method, store, "relabel", threading.Event()) as labeler:
            for frame in frames:
                yield _answer(labeler.judge(frame_key(frame), frame), store)


def _answer(verdict: Verdict, store: Store) -> FrameLabel | str:
    if isinstance(verdict, Rejected):
        return f"{verdict.rule}: {verdict.detail}"
    return decode_labelled(store.get(verdict.label.uri))[1]
