"""Reads files of several POSCARs, one after the other, as structure searches write them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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


def one_by_one(text: str) -> Iterator[tuple[int, str]]:
    """The text of each POSCAR and the line that it begins in, from 1. Raises `SpecError` naming the
    line of one that is none."""
    lines, start = text.splitlines(), 0
    while any(line.strip() for line in lines[start:]):
        try:
            end = _end(lines, start)
        except (IndexError, ValueError) as error:
            raise SpecError(f"line {start + 7}: must be numbers of atoms") from error
        yield start + 1, "\n".join(lines[start:end]) + "\n"
        start = end


def _end(lines: Sequence[str], start: int) -> int:
    """The line after the POSCAR that begins in line `start`, with elements and without selective
    dynamics."""
    atoms = sum(int(word) for word in lines[start + 6].split())
    return start + 8 + atoms + (lines[start + 7][:1] in "sS")
