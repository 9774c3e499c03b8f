"""Helpers that parse program output, in which numbers may be missing, garbled or truncated."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dpstream.shared.atoms.frames import Floats

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][-+]?\d+)?"


def read_text(path: Path) -> str:
    """The text of a file; empty if it does not exist."""
    return path.read_text(errors="replace") if path.exists() else ""


def number(text: str) -> float:
    """A number in Fortran notation (`1.0D+00`)."""
    return float(text.lower().replace("d", "e"))


def numbers(pattern: str, text: str) -> tuple[float, ...]:
    """The number in the first group of every match."""
    return tuple(number(found) for found in re.findall(pattern, text, re.MULTILINE))


def first(pattern: str, text: str) -> str | None:
    """The first group of the first match; None without a match."""
    found = re.search(pattern, text, re.MULTILINE)
    return None if found is None else found[1]


def rows(pattern: str, text: str) -> Floats | None:
    """The numbers in the groups of every match, `(n, groups)`; None without a match."""
    found = re.findall(pattern, text, re.MULTILINE)
    return np.array([[number(word) for word in row] for row in found]) if found else None


def block(text: str, begin: str, end: str) -> str:
    """The text between the last match of `begin` and the next match of `end`; empty if either is
    missing."""
    starts = list(re.finditer(begin, text, re.MULTILINE))
    if not starts:
        return ""
    rest = text[starts[-1].end() :]
    stop = re.search(end, rest, re.MULTILINE)
    return rest[: stop.start()] if stop else ""


def scaled(values: Floats | None, factor: float) -> Floats | None:
    """`values` times `factor`; None stays None."""
    return None if values is None else values * factor


def triples(lines: Sequence[str], first: int, columns: slice) -> Floats | None:
    """The rows of three numbers `(n, 3)` from line `first` up to the first line that is not such a
    row. A garbled number (Fortran's asterisks) also ends the rows."""
    found: list[list[float]] = []
    for line in lines[first:]:
        try:
            row = [float(word) for word in line.split()[columns]]
        except ValueError:
            break
        if len(row) != 3:
            break
        found.append(row)
    return np.array(found) if found else None


def rows_after(lines: Sequence[str], heading: str, columns: slice, skip: int = 1) -> Floats | None:
    """The rows of three numbers that begin `skip` lines after the last line with `heading`."""
    at = last_line(lines, heading)
    return None if at is None else triples(lines, at + skip, columns)


def last_line(lines: Sequence[str], pattern: str) -> int | None:
    """Number of the last line in which `pattern` is found."""
    matching = (i for i in range(len(lines) - 1, -1, -1) if re.search(pattern, lines[i]))
    return next(matching, None)


def are_whole_records(data: bytes) -> bool:
    """Whether `data` is a Fortran unformatted file of complete records, each between two marks of
    four bytes with its length."""
    at = 0
    while at < len(data):
        mark = data[at : at + 4]
        end = at + 4 + int.from_bytes(mark, sys.byteorder)
        if len(mark) < 4 or data[end : end + 4] != mark:
            return False
        at = end + 4
    return at > 0
