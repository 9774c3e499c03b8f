"""Replaces names of atoms in bias inputs by atom numbers, and checks such inputs.

LAMMPS numbers the atoms of a canonical frame: sorted by element, otherwise in the order of the
user's file. The name `H2`, the second hydrogen, denotes the same atom in both orders.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

NAME = re.compile(r"@([A-Z][a-z]?\d*)\b")
ELSEWHERE = re.compile(r"(?:^|[\s='\"{(,:])[/~](?=\S)|(?<!\.)\.\.(?!\.)", re.MULTILINE)
RUNS_CODE = re.compile(
    r"\b(?:LOAD|INCLUDE|PYCVINTERFACE|PYFUNCTION|PYTORCH_MODEL|METATENSOR|METATOMIC|PYTHON_BIN"
    r"|(?i:scripted\w*|torchANN))\b|@(?:mda|mdt|vmd\w*):"
)
"""PLUMED's and Colvars' keywords that compile or execute code or read another input."""


def atom_numbers(name: str, species: Sequence[str]) -> list[int]:
    """Numbers, from 1, of the atoms that `name` (`H2`, or `H` for all) denotes in a canonical
    frame. Raises ValueError if there is no such atom."""
    symbol = name.rstrip("0123456789")
    numbers = [number for number, each in enumerate(species, 1) if each == symbol]
    place = name[len(symbol) :]
    if not numbers or (place and not 1 <= int(place) <= len(numbers)):
        raise ValueError(f"there is no atom {name}: the structure has {len(numbers)} {symbol}")
    return [numbers[int(place) - 1]] if place else numbers


def numbered(text: str, species: Sequence[str], separator: str) -> str:
    """`text` with every `@H2` or `@H` replaced by atom numbers."""
    return NAME.sub(lambda found: separator.join(map(str, atom_numbers(found[1], species))), text)


def refusal(text: str) -> str | None:
    """Reason why a worker refuses a campaign's bias input, or None. The input must neither run code
    nor access files outside the worker's folder."""
    found = RUNS_CODE.search(text) or ELSEWHERE.search(text)
    if found is None:
        return None
    line = text[: found.end()].count("\n") + 1
    what = found[0].strip()
    return f"line {line}: {what!r} runs code or accesses files outside the worker's folder"
