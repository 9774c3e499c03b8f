"""Reads the output files of labeling programs. Runs in the parser of a labeler.

The files are those of a program that may have crashed, or that reads what others submitted: they
may be of any size, pipes, or links.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dpstream.services.labeler.child import frame_from_facts
from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.codes.base import FileCode
from dpstream.shared.runtime.child_process import Limits
from dpstream.shared.runtime.parser import MIB

FORK = True


def limits_for(atoms: int) -> Limits:
    """Limits for the output of a single point: an OUTCAR of 200 atoms has some 20 MB, of which the
    reader makes ten times as much."""
    return Limits(seconds=60.0 + 0.05 * atoms, memory=2048 * MIB + MIB * atoms // 4, file=MIB)


def read_outputs(
    code: str, folder: str, frame: Mapping[str, Any], exit_status: int
) -> dict[str, Any]:
    """The outcome (`Outcome.facts`) of a program's run in `folder`."""
    program = CODES[code]
    assert isinstance(program, FileCode)
    return program.read_outputs(Path(folder), frame_from_facts(frame), exit_status).facts()


OPERATIONS: dict[str, Callable[..., Any]] = {"read_outputs": read_outputs}
