"""Helpers that write program input: keywords, tables of numbers, fractional coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpstream.shared.atoms.frames import Floats, Frame


def volume(frame: Frame) -> float:
    """Volume of a periodic frame, Å³."""
    assert frame.cell is not None
    return float(np.linalg.det(frame.cell))


def fractions(frame: Frame) -> Floats:
    """Fractional coordinates `(n_atoms, 3)`."""
    assert frame.cell is not None
    return np.asarray(np.linalg.solve(frame.cell.T, frame.positions.T).T, dtype=np.float64)


def from_fractions(fractional: NDArray[np.floating[Any]] | None, frame: Frame) -> Floats | None:
    """Positions in Å, each in the periodic image nearest to the submitted one, since programs wrap
    atoms differently."""
    if fractional is None or frame.cell is None or len(fractional) != len(frame.species):
        return None if fractional is None or frame.cell is None else fractional @ frame.cell
    images = np.rint(fractional - fractions(frame))
    return np.asarray((fractional - images) @ frame.cell, dtype=np.float64)


def by_element(frame: Frame) -> list[tuple[str, int]]:
    """Elements with their numbers of atoms, in the order of a canonical frame."""
    return [(symbol, frame.species.count(symbol)) for symbol in sorted(set(frame.species))]


def table(array: Floats, digits: int) -> str:
    """An array `(n, m)` as text, one row per line."""
    return "\n".join(" ".join(f"{x:.{digits}f}" for x in row) for row in array)


def vector(values: Floats) -> str:
    """Numbers on one line, with ten decimals."""
    return " ".join(f"{value:.10f}" for value in values)


def keywords(given: Any, template: str, words: Mapping[bool, str]) -> Any:
    """A mapping of keywords as lines of an input file. `template` contains `{key}` and `{value}`;
    `words` are the texts for true and false. Text is returned unchanged."""
    if not isinstance(given, dict):
        return given
    return "".join(template.format(key=k, value=_word(v, words)) + "\n" for k, v in given.items())


def _word(value: Any, words: Mapping[bool, str]) -> str:
    if isinstance(value, bool):
        return words[value]
    if isinstance(value, (list, tuple)):
        return " ".join(_word(part, words) for part in value)
    return str(value)
