"""Finds the line and the word for which a file of structures cannot be read.

ASE's readers report what broke in them (`KeyError: 'CU'`), not where in the file. For the two
formats that people write by hand this module reads the lines again and names the first wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ase.data import atomic_numbers

from dpstream.inputs.reading.recognise import COMPRESSED
from dpstream.shared.errors import SpecError

XYZ = (".xyz", ".extxyz")
POSCAR = ("POSCAR", "CONTCAR")
PLAIN = re.compile(r"Properties=\"?species:S:1:pos:R:3")
"""Lines of extended xyz that begin as those of plain xyz."""
LARGEST = 10_000_000
"""Bytes; the fault in a larger file is not looked for."""


class WrongLine(SpecError):
    """A file of structures that cannot be read because of a line that is known."""


class _FaultFound(Exception):
    """With the number of a line and what is wrong there."""


def fault_in(path: Path, is_xyz: bool = False) -> str | None:
    """`line 6: 'CU' is not an element; did you mean Cu?`, or None if no line is wrong or the format
    is another one. `is_xyz`: whatever the name."""
    if path.suffix in COMPRESSED or not path.is_file() or not 0 < path.stat().st_size <= LARGEST:
        return None
    lines = path.read_text(errors="replace").splitlines()
    try:
        if is_xyz or path.suffix in XYZ:
            _check_xyz(lines)
        elif path.name.startswith(POSCAR) or path.suffix in (".poscar", ".vasp"):
            _check_poscar(lines)
    except _FaultFound as found:
        return str(found)
    return None


def line_after(path: Path, frames: Sequence[int]) -> str | None:
    """The line of an xyz file at which its readers stop without a word, after frames of these
    numbers of atoms; None if nothing follows. For files of any size."""
    with path.open("rb") as file:
        last, vectors = 0, 0
        for number, line in enumerate(file, 1):
            last = number if line.strip() else last
            vectors += line.startswith(b"VEC")
    read = sum(frames) + 2 * len(frames) + vectors
    return f"line {read + 1}: not the number of atoms of a frame" if last > read else None


def _check_xyz(lines: Sequence[str]) -> None:
    start, end = 0, max((n for n, line in enumerate(lines, 1) if line.strip()), default=0)
    while start < end:
        if lines[start].startswith("VEC"):  # vectors of the cell, after the atoms
            start += 1
            continue
        (count,) = _numbers(lines, start, 1, int, "the number of atoms")
        if len(lines) < start + 2 + count:
            raise _FaultFound(f"line {start + 1}: {count} atoms, but the file ends before the last")
        for number in range(start + 2, start + 2 + count):
            words = lines[number].split()
            if not words:
                raise _FaultFound(f"line {number + 1}: empty; expected an element and x y z")
            if "Properties" not in lines[start + 1] or PLAIN.search(lines[start + 1]):
                _check_elements(number, [words[0].capitalize()])  # as ASE reads it
                _check_words(number, words[1:], 3, float, "x y z")
        start += 2 + count


def _check_poscar(lines: Sequence[str]) -> None:
    _numbers(lines, 1, 1, float, "the scale")
    for number in (2, 3, 4):
        _numbers(lines, number, 3, float, "a vector of the lattice")
    counts = 5
    words = _words(lines, counts, "elements")
    if not words[0].isdigit():
        _check_elements(counts, [word.split("/")[0].split("_")[0] for word in words])
        counts += 1
        given = _numbers(lines, counts, len(words), int, "a number of atoms for each element")
    else:
        given = _numbers(lines, counts, len(words), int, "numbers of atoms")
    first = counts + 1
    if _words(lines, first, "Direct or Cartesian")[0][0] in "sS":  # selective dynamics
        first += 1
    for number in range(first + 1, first + 1 + sum(given)):
        _numbers(lines, number, 3, float, f"coordinates of {sum(given)} atoms")


def _words(lines: Sequence[str], number: int, expected: str) -> list[str]:
    words = lines[number].split() if number < len(lines) else []
    if not words:
        what = "empty" if number < len(lines) else "missing"
        raise _FaultFound(f"line {number + 1}: {what}; expected {expected}")
    return words


def _numbers(
    lines: Sequence[str], number: int, count: int, kind: type[int] | type[float], expected: str
) -> list[int]:
    words = _words(lines, number, expected)
    _check_words(number, words, count, kind, expected)
    return [int(float(word)) for word in words[:count]]


def _check_words(
    number: int, words: Sequence[str], count: int, kind: type[int] | type[float], expected: str
) -> None:
    for word in words[:count]:
        try:
            kind(word)
        except ValueError:
            raise _FaultFound(
                f"line {number + 1}: {word[:40]!r} is not a number; expected {expected}"
            ) from None
    if len(words) < count:
        raise _FaultFound(f"line {number + 1}: {len(words)} numbers; expected {count}: {expected}")


def _check_elements(number: int, words: Iterable[str]) -> None:
    for word in words:
        if word in atomic_numbers or word.isdigit():
            continue
        close = word.capitalize()
        hint = f"; did you mean {close}?" if close in atomic_numbers else ""
        raise _FaultFound(f"line {number + 1}: {word[:40]!r} is not an element{hint}")
