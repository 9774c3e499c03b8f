"""Reads the working folder of a DP-GEN run: finished jobs, and folders with labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dpstream.dpgen.param import Begun
from dpstream.shared.errors import SpecError

LAST_STEP = 8
"""DP-GEN's step post_fp, which collects the labels of an iteration."""


def look_at(run: Path, place: Callable[[str], str]) -> Begun:
    """The finished jobs and labels of the run in folder `run`. `place` converts a path to one
    relative to the spec. Raises `SpecError` if the folder has no record of a run."""
    steps = _recorded(run / "record.dpgen")
    jobs = 0
    while (jobs, LAST_STEP) in steps:
        jobs += 1
    candidates = sorted(run.glob("iter.*/02.fp/data.*"))
    folders = [folder for folder in candidates if any(folder.rglob("type.raw"))]
    labels = tuple(place(str(folder.absolute())) for folder in folders)
    note = f"{run}: {jobs} finished jobs are skipped; labels of {len(labels)} folders are reused"
    return Begun(jobs, labels, (note, *_uncollected(run)))


def _recorded(path: Path) -> set[tuple[int, int]]:
    """Iteration and step of each line of record.dpgen."""
    try:
        rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
        return {(int(iteration), int(step)) for iteration, step in rows}
    except OSError as error:
        raise SpecError(f"--from-run: {path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SpecError(f"--from-run: {path}: must be two numbers per line") from error


def _uncollected(run: Path) -> list[str]:
    """A note for each iteration whose calculations have not been collected."""
    notes = []
    for folder in sorted(run.glob("iter.*/02.fp")):
        tasks = len(list(folder.glob("task.*")))
        if tasks and not list(folder.glob("data.*")):
            notes.append(
                f"{folder}: {tasks} calculations are not collected and will be computed again; to "
                f"reuse them, let DP-GEN finish step {LAST_STEP} first"
            )
    return notes
