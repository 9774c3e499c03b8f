"""What the parsers of the labeling codes find in an output, or in one ionic step of it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dpstream.inputs.reading.found import FoundFrame
from dpstream.inputs.reading.recognise import plainly_named
from dpstream.services.labeler.acceptance import Outcome
from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.codes.base import FileCode
from dpstream.shared.atoms.frames import Frame

NOWHERE = Frame(("H",), np.zeros((1, 3)), np.eye(3))
"""In place of a frame that is unknown, to find out whether an output is converged at all."""


def parsed(
    code: str,
    files: Mapping[str, str],
    frame: Frame | None,
    problem: str,
    complete: bool = False,
) -> FoundFrame:
    """What the parser of `code` reads from these files of a program that ended normally.
    `problem`: why there is no frame; `complete`: the text is whole although it lacks the
    program's last line, because another step follows."""
    program = CODES[code]
    assert isinstance(program, FileCode)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in files.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(text)
        outcome = program.read_outputs(folder, frame or NOWHERE, 0)
    outcome = replace(outcome, end_marker=outcome.end_marker or complete)
    return FoundFrame(frame, outcome, energy="free", problem=problem)


def unread(problem: str) -> FoundFrame:
    """An ionic step of which the output does not hold enough."""
    return FoundFrame(None, Outcome(end_marker=False), problem=problem)


def dpdata_frame(path: Path, form: str, periodic: bool) -> tuple[Frame | None, str]:
    """The first configuration that dpdata finds in its format `form`, or why it finds none."""
    import dpdata

    try:
        with plainly_named(path) as file:
            data = dpdata.LabeledSystem(str(file), fmt=form).data
        species = tuple(str(data["atom_names"][kind]) for kind in data["atom_types"])
        cell = np.array(data["cells"][0]) if periodic else None
        return Frame(species, np.array(data["coords"][0]), cell), ""
    except Exception as error:  # dpdata's readers raise many kinds
        return None, f"dpdata reads no frame ({type(error).__name__}: {error})"


def split_at(start: re.Pattern[str], text: str) -> tuple[str, list[str]]:
    """The text before the first match, and the parts that begin with one."""
    starts = [match.start() for match in start.finditer(text)]
    ends = [*starts[1:], len(text)]
    return text[: starts[0]] if starts else text, [
        text[a:b] for a, b in zip(starts, ends, strict=False)
    ]


def followed(steps: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """The steps, and whether another follows each: it is then complete."""
    yield from ((step, number < len(steps)) for number, step in enumerate(steps, start=1))
