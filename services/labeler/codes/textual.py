"""Reading what a program printed: numbers that may be missing, garbled or cut off."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from shared.frames import Floats

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][-+]?\d+)?"


def read_text(path: Path) -> str:
    """The text of a file; nothing where there is none."""
    return path.read_text(errors="replace") if path.exists() else ""


def number(text: str) -> float:
    """As Fortran writes it."""
    return float(text.lower().replace("d", "e"))


def numbers(pattern: str, text: str) -> tuple[float, ...]:
    """The first group of every match."""
    return tuple(number(found) for found in re.findall(pattern, text, re.MULTILINE))


def rows(pattern: str, text: str) -> Floats | None:
    """The groups of every match, `(n, groups)`; None where there is no match."""
    found = re.findall(pattern, text, re.MULTILINE)
    return np.array([[number(word) for word in row] for row in found]) if found else None


def block(text: str, begin: str, end: str) -> str:
    """What stands between the last line that matches `begin` and the next that matches `end`;
    nothing where either is missing."""
    starts = list(re.finditer(begin, text, re.MULTILINE))
    if not starts:
        return ""
    rest = text[starts[-1].end() :]
    stop = re.search(end, rest, re.MULTILINE)
    return rest[: stop.start()] if stop else ""


def scaled(values: Floats | None, factor: float) -> Floats | None:
    """In other units, if there."""
    return None if values is None else values * factor
