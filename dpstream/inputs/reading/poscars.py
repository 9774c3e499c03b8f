"""Reads files of several POSCARs, one after the other, as structure searches write them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

from dpstream.inputs.reading.recognise import PATTERNS, POSCAR
from dpstream.shared.errors import SpecError


def are_several(text: str) -> bool:
    """Whether another POSCAR follows the first. Velocities may follow, too."""
    lines = text.splitlines()
    try:
        rest = lines[_end(lines, 0) :]
    except (IndexError, ValueError):
        return False
    return PATTERNS[POSCAR].match("\n".join([*rest, ""])) is not None


def read_several(text: str) -> Iterator[Any]:
    """Each structure as `ase.Atoms`. Raises `SpecError` naming the line of one that is none."""
    lines, start = text.splitlines(), 0
    while any(line.strip() for line in lines[start:]):
        try:
            end = _end(lines, start)
        except (IndexError, ValueError) as error:
            raise SpecError(f"line {start + 7}: must be numbers of atoms") from error
        yield parsed("\n".join(lines[start:end]) + "\n", "vasp", f"line {start + 1}")
        start = end


def _end(lines: Sequence[str], start: int) -> int:
    """The line after the POSCAR that begins in line `start`, with elements and without selective
    dynamics."""
    atoms = sum(int(word) for word in lines[start + 6].split())
    return start + 8 + atoms + (lines[start + 7][:1] in "sS")


def parsed(text: str, form: str, where: str) -> Any:
    from ase.io import read

    try:
        return read(io.StringIO(text), format=form)
    except Exception as error:  # ASE's readers raise many kinds
        reason = " ".join(str(error).split())
        raise SpecError(f"{where}: cannot be read as a structure: {reason}") from error
