"""Reads the keywords of users' input texts as the programs do, so that they are judged by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

QUOTED = re.compile(r'"[^"]*"')


def incar_tags(text: str) -> dict[str, str]:
    """Tags of an INCAR, in capitals, with their values; of repeated ones the first, as in VASP.
    Tags are separated by line ends and `;`, comments begin with `#` or `!`, and a backslash
    continues a line."""
    tags: dict[str, str] = {}
    for statement in _statements(QUOTED.sub('""', text)):
        name, equals, value = statement.partition("=")
        if equals and name.strip():
            tags.setdefault(name.split()[-1].upper(), value.strip())
    return tags


def _statements(text: str) -> Iterator[str]:
    lines = (re.split(r"[#!]", line)[0].rstrip() for line in text.splitlines())
    joined = "".join(
        line.removesuffix("\\") + " " if line.endswith("\\") else line + "\n" for line in lines
    )
    yield from re.split(r"[;\n]", joined)


def abacus_words(text: str) -> dict[str, str]:
    """Keywords of ABACUS' INPUT in lower case with the rest of their lines; comments begin with `#`
    or `//`."""
    lines = (re.split(r"#|//", line)[0].split(maxsplit=1) for line in text.splitlines())
    return {words[0].lower(): words[1].strip() if words[1:] else "" for words in lines if words}


def route_words(text: str) -> dict[str, str]:
    """Keywords of a route section of Gaussian in lower case with their options. Words are separated
    by blanks and commas outside parentheses."""
    route = re.sub(r"^\s*#[pnt]?(?=\s|$)|^\s*#", " ", text.strip().lower())
    words = re.findall(r"(?:[^\s,(]|\([^)]*\))+", re.sub(r"\s*([=(])\s*", r"\1", route))
    pairs = (re.match(r"([^=(]*)=?(.*)", word) for word in words)
    return {found[1]: found[2] for found in pairs if found}


def refuse(given: Mapping[str, str], owned: Mapping[str, str], where: str = "") -> None:
    """Raises ValueError, with the remedy, for the first of the `given` keywords that is in `owned`,
    whose names are in capitals. `where`: begins the message."""
    for name in given:
        remedy = owned.get(name.upper())
        if remedy is not None:
            raise ValueError(f"{where}{name}: remove it; {remedy}")


def is_true(value: Any) -> bool:
    """Whether a logical, as text or as Python's, is true as Fortran reads it: `.TRUE.`, `T`, `.t.`…
    Quotes around it are ignored."""
    return str(value).lower().lstrip(". '\"").startswith("t")


def number_of(value: str, default: float) -> float:
    """The first number of a value; `default` if it does not begin with one."""
    try:
        return float(value.split()[0].lower().replace("d", "e"))
    except (ValueError, IndexError):
        return default
