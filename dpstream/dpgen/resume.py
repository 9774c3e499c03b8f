"""A folder that DP-GEN has run in: what is done, and every label in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dpstream.dpgen.param import Begun
from dpstream.shared.errors import SpecError

LAST_STEP = 8
"""DP-GEN's post_fp, which collects the labels of an iteration."""


def look_at(run: Path, place: Callable[[str], str]) -> Begun:
    """What the run in folder `run` has behind it; `place`: a path as seen from the spec. Raises
    `SpecError` where DP-GEN has never run."""
    steps = _recorded(run / "record.dpgen")
    jobs = 0
    while (jobs, LAST_STEP) in steps:
        jobs += 1
    found = sorted(run.glob("iter.*/02.fp/data.*"))
    folders = [folder for folder in found if any(folder.rglob("type.raw"))]
    labels = tuple(place(str(folder.absolute())) for folder in folders)
    said = f"{run}: {jobs} jobs are done and left out; labels of {len(labels)} folders are reused"
    return Begun(jobs, labels, (said, *_uncollected(run)))


def _recorded(path: Path) -> set[tuple[int, int]]:
    """Iteration and step of each line."""
    try:
        rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
        return {(int(iteration), int(step)) for iteration, step in rows}
    except OSError as error:
        raise SpecError(f"--from-run: {path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SpecError(f"--from-run: {path}: expected two numbers a line") from error


def _uncollected(run: Path) -> list[str]:
    """Iterations whose calculations have not become data yet."""
    notes = []
    for folder in sorted(run.glob("iter.*/02.fp")):
        tasks = len(list(folder.glob("task.*")))
        if tasks and not list(folder.glob("data.*")):
            notes.append(
                f"{folder}: {tasks} calculations are not collected: let DP-GEN end its step "
                f"{LAST_STEP} first, or they are computed anew"
            )
    return notes
