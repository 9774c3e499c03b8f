"""Labels here and now, through the labeler's own desk: outside any campaign, by the same contract
and into the same cache."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

import services.labeler.handlers as labeler
from dpstream.inputs import Gathered
from dpstream.plan import cross_check
from shared.context import Context
from shared.embedded import FolderStore, InProcessBus
from shared.errors import SpecError, Stopped
from shared.frames import Frame, Label, decode_labelled, frame_key
from shared.messages import Label as LabelCommand
from shared.ports import Store
from shared.scratch import private_folder
from shared.spec import Labels, Spec
from shared.values import Accepted, Recipe, Ref, Rejected

Verdict = Accepted | Rejected
Item = TypeVar("Item")


@dataclass(frozen=True)
class Method:
    """How labels are computed here. `files` are those that the recipe refers to, by digest; `spec`
    is the campaign's, whose dimers have caps of their own."""

    labels: Labels
    recipe: Recipe
    files: Mapping[str, bytes]
    spec: Spec | None = None


@contextmanager
def at_desk(
    method: Method, store: Store, purpose: str, stopping: threading.Event
) -> Iterator[labeler.Desk]:
    """A desk whose labels are looked up in `store` and kept there; `purpose` is what their
    provenance says. Once `stopping` is set it raises `Stopped`. Raises `SpecError` where this
    machine must not compute by the recipe."""
    with private_folder(None) as scratch:
        bench = labeler.Bench.at_home(scratch, method.labels)
        refusal = bench.refusal(method.recipe)
        if refusal is not None:
            raise SpecError(f"labels: {refusal}")
        command = _command(method.labels, method.recipe, purpose)
        context = Context(store, InProcessBus(), command, scratch, purpose, stopping)
        try:
            yield labeler.Desk(
                bench, context, method.labels, method.recipe, method.spec, method.files
            )
        finally:
            bench.close()


def _command(labels: Labels, recipe: Recipe, purpose: str) -> LabelCommand:
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


def work_at_desks(
    items: Iterable[Item],
    work: Callable[[labeler.Desk, Item], None],
    method: Method,
    store: Store,
    *,
    purpose: str,
    workers: int,
    stopping: threading.Event,
) -> None:
    """`work` on each item, by `workers` at once, each at a desk of its own. Returns early once
    `stopping` is set, which a failure of one worker does to the others. Raises what it died of."""
    waiting: SimpleQueue[Item] = SimpleQueue()
    for item in items:
        waiting.put(item)

    def employed() -> None:
        try:
            with (
                suppress(Stopped, Empty),
                at_desk(method, store, purpose, stopping) as desk,
            ):
                while True:
                    work(desk, waiting.get_nowait())
        except BaseException:
            stopping.set()
            raise

    count = max(1, min(workers, waiting.qsize()))
    with ThreadPoolExecutor(count) as pool:  # a desk's engine lives as long as its thread
        crew = [pool.submit(employed) for _ in range(count)]
    for member in crew:
        member.result()


def label_frames(
    spec: Spec, recipe: Recipe, files: Mapping[str, bytes], frames: list[Frame]
) -> list[Label | str]:
    """The label of each canonical frame, or the reason of its rejection, kept nowhere; `files` are
    those that the recipe refers to, by digest."""
    method = Method(spec.labels, recipe, files, spec)
    with tempfile.TemporaryDirectory(prefix="dpstream-") as folder:
        store = FolderStore(Path(folder))
        with at_desk(method, store, "relabel", threading.Event()) as desk:
            return [_answer(desk.judge(frame_key(frame), frame), store) for frame in frames]


def _answer(verdict: Verdict, store: Store) -> Label | str:
    if isinstance(verdict, Rejected):
        return f"{verdict.rule}: {verdict.detail}"
    return decode_labelled(store.get(verdict.label.uri))[1]


def check_imported(gathered: Gathered, spec: Spec, recipe: Recipe) -> None:
    """`cross_check` by labels computed here."""
    cross_check(gathered, spec, partial(label_frames, spec, recipe, gathered.attachments))
