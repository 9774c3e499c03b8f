"""Compares imported labels with the recipe in this process: `dpstream validate --cross-check`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from dpstream.inputs.gather import Gathered
from dpstream.running.cross_check import force_tolerance, labels_to_check
from dpstream.running.label_here import label_frames
from dpstream.services.labeler.acceptance import Comparison
from dpstream.services.labeler.recipes import code_of, unknown_here
from dpstream.shared.atoms.frames import Frame, FrameLabel
from dpstream.shared.cross_check import ComparedLabel, disagreement
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Spec
from dpstream.shared.values import Recipe
from dpstream.terminal.console import notes, print_line
from dpstream.terminal.progress import progress


def check_here(gathered: Gathered, spec: Spec, recipe: Recipe) -> None:
    """`compare` with labels computed in this process, announced and with progress. Raises
    `SpecError`, also if this machine lacks the code."""

    def labels(frames: list[Frame]) -> Iterator[FrameLabel | str]:
        missing = unknown_here(spec.labels)
        if missing is not None:
            raise SpecError(f"--cross-check: computes labels on this machine: {missing}")
        number = f"{len(frames)} of {len(gathered.labelled)}"
        print_line(notes, f"cross-check: the recipe labels {number} imported frames again")
        with progress("cross-check", len(frames)) as step:
            for label in label_frames(spec, recipe, gathered.attachments, frames):
                yield label
                step("")

    compare(gathered, spec, labels)


def compare(
    gathered: Gathered,
    spec: Spec,
    label_frames: Callable[[list[Frame]], Iterable[FrameLabel | str]],
) -> None:
    """Compare a few imported labels with those that `label_frames` yields: a label, or the reason
    of a rejection, per frame. Raises `SpecError` if they disagree, as in a campaign."""
    chosen = labels_to_check(gathered, spec)
    if not chosen:
        return
    answers = label_frames([frame for frame, _ in chosen])
    compared = [
        _compared(frame, label, answer, spec)
        for (frame, label), answer in zip(chosen, answers, strict=True)
    ]
    problem = disagreement(compared, force_tolerance(gathered, spec))
    if problem is not None:
        raise SpecError(problem)


def _compared(
    frame: Frame, imported: FrameLabel, answer: FrameLabel | str, spec: Spec
) -> ComparedLabel:
    if isinstance(answer, str):
        return ComparedLabel(rejected=f"{frame.formula}: {answer}")
    found = Comparison.of(imported, answer, code_of(spec.labels))
    return ComparedLabel(found.forces, found.energy, found.opposed)
