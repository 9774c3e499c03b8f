"""`dpstream label`: labels the frames of files outside any campaign.

Frames are read, made canonical and labelled as by a labeler, against the label cache of the
store. Rejections are appended to `rejected.jsonl` as they occur, so that a second run skips them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from dpstream.commands.options import DEFAULT_ROOT, MOST_WORKERS, Root, within
from dpstream.export.dataset_folder import OutputFolder, TypeMap, claim, type_map_for, write_dataset
from dpstream.inputs.read_structures import read_structures
from dpstream.running.connection import open_store
from dpstream.running.label_here import LabelMethod, label_in_parallel
from dpstream.running.recipe_file import RecipeOption, read_recipe
from dpstream.services.labeler.acceptance import AcceptanceLimits
from dpstream.services.labeler.labeling import FrameLabeler
from dpstream.shared.atoms.dataset import Labelled
from dpstream.shared.atoms.frames import Frame, as_frame, canonical, decode_labelled, frame_key
from dpstream.shared.errors import TaskError, errors_at
from dpstream.shared.ports import Store
from dpstream.shared.values import Accepted, Rejected
from dpstream.terminal.console import console, print_line
from dpstream.terminal.interrupt import INTERRUPTED, signals
from dpstream.terminal.progress import progress
from dpstream.terminal.tables import text_table

COMMAND = "label"
REJECTED = "rejected.jsonl"
SHOWN = 5
"""Frame numbers listed per rejection rule."""

Workers = Annotated[int, typer.Option(min=1, max=MOST_WORKERS, help="Frames computed in parallel.")]


def label(
    frames: Annotated[
        list[Path],
        typer.Argument(
            metavar="FRAMES...", help="Files or folders of frames, in any format of ASE or dpdata."
        ),
    ],
    recipe: RecipeOption,
    output: OutputFolder = Path("labelled"),
    workers: Workers = 2,
    type_map: TypeMap = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Compute frames again that were rejected before.")
    ] = False,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Label files of frames, outside any campaign.

    Labels are taken from the cache that all campaigns in --store share; missing ones are computed
    and added to it. Frames that cannot be labelled are listed with the reason, also in
    rejected.jsonl of the output folder.

    After Ctrl-C, run the same command to continue; nothing is computed twice.

    Exit status: 0 all labelled, 1 some rejected, 2 bad input, 130 interrupted.

    Example: dpstream label frames.extxyz --recipe recipe.yaml -o labelled
    """
    method, default = read_recipe(recipe)
    read = read_frames(frames)
    elements = type_map_for(type_map, default, read.elements)
    claim(output, COMMAND)
    with within(root):
        store = open_store(root)
        job = LabelJob(method, store, output, read)
        job.recall(retry)
        stopped = job.run(workers)
        labelled = job.labelled()
    about = {"recipe": method.recipe.model_dump(), "sources": [str(path) for path in frames]}
    print_line(console, f"{read.count} frames, {len(read.unique)} of them unique: {job.summary}")
    print_line(console, write_dataset(labelled, output, COMMAND, elements, **about))
    if stopped:
        print_line(
            console, f"interrupted: {job.left} frames are left; run the same command to continue"
        )
        raise typer.Exit(INTERRUPTED)
    if job.rejected:
        console.print(rejections(job.rejected, read.numbers))
        raise typer.Exit(1)


# ------------------------------------------------------------------------------ input


@dataclass(frozen=True)
class UniqueFrames:
    """Canonical frames by key without duplicates, and their numbers (from 0) in the files."""

    unique: dict[str, Frame]
    numbers: dict[str, list[int]]

    @property
    def elements(self) -> set[str]:
        return {symbol for frame in self.unique.values() for symbol in frame.species}

    @property
    def count(self) -> int:
        return sum(map(len, self.numbers.values()))


def read_frames(paths: list[Path]) -> UniqueFrames:
    """Read all frames of the files. Raises `SpecError` naming the file and frame that cannot be
    read."""
    read = UniqueFrames({}, {})
    for path in paths:
        for number, atoms in enumerate(read_structures(path)):
            where = f"{path}: frame {number}"
            with errors_at(where, ValueError):
                frame = canonical(as_frame(atoms, where)).frame
            key = frame_key(frame)
            read.unique.setdefault(key, frame)
            read.numbers.setdefault(key, []).append(read.count)
    return read


# ------------------------------------------------------------------------------ the work


@dataclass
class LabelJob:
    """One run over the frames. Each rejection is written to disk as it occurs."""

    method: LabelMethod
    store: Store
    folder: Path
    frames: UniqueFrames
    accepted: dict[str, Accepted] = field(default_factory=dict)
    rejected: dict[str, Rejected] = field(default_factory=dict)
    _writing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def left(self) -> int:
        return len(self.frames.unique) - len(self.accepted) - len(self.rejected)

    @property
    def _terms(self) -> dict[str, Any]:
        """The settings that a rejection depends on; after a change of these the frame is computed
        again."""
        limits = vars(AcceptanceLimits.of(self.method.labels))
        seconds = self.method.labels.max_seconds
        return {"recipe": self.method.recipe.digest, **limits, "max_seconds": seconds}

    def recall(self, retry: bool) -> None:
        """Reuse the rejections of an earlier run with the same settings; `retry` discards them."""
        path = self.folder / REJECTED
        if retry:
            path.unlink(missing_ok=True)
        for line in path.read_text().splitlines() if path.exists() else []:
            with suppress(ValueError):  # a killed run may leave an incomplete last line
                document = json.loads(line)
                if document["terms"] == self._terms and document["key"] in self.frames.unique:
                    verdict = {name: document[name] for name in ("key", "rule", "detail")}
                    self.rejected[document["key"]] = Rejected.model_validate(verdict)

    def run(self, workers: int) -> bool:
        """Label the remaining frames. Returns whether it was interrupted. Raises `SpecError` if the
        recipe fails regardless of the frame."""
        waiting = {k: f for k, f in self.frames.unique.items() if k not in self.rejected}
        with signals(console) as stopping, progress("labels", len(waiting)) as advance:

            def work(labeler: FrameLabeler, item: tuple[str, Frame]) -> None:
                self._record(labeler.judge(*item))
                advance(self.summary)

            with errors_at("labels", TaskError):
                label_in_parallel(
                    waiting.items(),
                    work,
                    self.method,
                    self.store,
                    purpose=COMMAND,
                    workers=workers,
                    stopping=stopping,
                )
            return stopping.is_set()

    @property
    def summary(self) -> str:
        reused = sum(verdict.reused for verdict in list(self.accepted.values()))
        computed = len(self.accepted) - reused
        return f"{computed} computed, {reused} cached, {len(self.rejected)} rejected"

    def _record(self, verdict: Accepted | Rejected) -> None:
        with self._writing:
            if isinstance(verdict, Accepted):
                self.accepted[verdict.key] = verdict
                return
            self.rejected[verdict.key] = verdict
            line = {**verdict.model_dump(), "frames": self.frames.numbers[verdict.key]}
            with (self.folder / REJECTED).open("a") as file:
                file.write(json.dumps({**line, "terms": self._terms}) + "\n")

    def labelled(self) -> list[Labelled]:
        """The labelled frames, in the order of the files."""
        verdicts = [self.accepted[key] for key in self.frames.unique if key in self.accepted]
        return [Labelled(*decode_labelled(self.store.get(v.label.uri))) for v in verdicts]


# ------------------------------------------------------------------------------ output


def rejections(rejected: Mapping[str, Rejected], numbers: Mapping[str, list[int]]) -> Table:
    """A table by rule: number of frames, the first frame numbers, and one reason in full."""
    by_rule: dict[str, list[Rejected]] = {}
    for verdict in rejected.values():
        by_rule.setdefault(verdict.rule, []).append(verdict)
    table = text_table("rejected", "frames", "frame numbers", "first reason")
    for rule, verdicts in sorted(by_rule.items()):
        affected = sorted(number for verdict in verdicts for number in numbers[verdict.key])
        first = ", ".join(map(str, affected[:SHOWN])) + (", …" if len(affected) > SHOWN else "")
        table.add_row(rule, str(len(affected)), first, escape(verdicts[0].detail))
    return table
