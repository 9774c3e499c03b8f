"""Programs read and write only in the folder of their run.

A recipe's texts become the input of a program whose keywords may name files. The list of such
keywords is long and differs by version, so that every text is judged, whatever its keyword.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

BEFORE = r"(?:^|(?<=[\s='\"(,:;<>@|{\[]))"
"""What precedes a file name."""
ELSEWHERE = re.compile(rf"{BEFORE}(?:[/~]\S|\.\.(?=[/'\"\s]|$))\S*|\S*/\.\.(?=[/'\"\s]|$)\S*")
"""An absolute path, one that begins in a home folder, and one that leads upwards."""
COMPOSED = re.compile(r"\S*\$\S*/\S*|\S*/\S*\$\S*")
"""A path with a variable, whose value is known only to the program."""
CONTROL = re.compile(r"[^\S\t\n\r ]|[\x00-\x08\x0e-\x1f\x7f]")
COMMENT = re.compile(r"\s*[#!]")


def check_inside(settings: Mapping[str, Any]) -> None:
    """Raises ValueError, with the key, if a text in `settings` may name a file outside the run's
    folder. Comment lines of a text of several lines are free."""
    for key, text in _texts(settings, ""):
        if CONTROL.search(text):
            raise ValueError(f"{key}: control characters are not allowed")
        lines = text.split("\n")
        for line in lines:
            found = ELSEWHERE.search(line) or COMPOSED.search(line)
            if found and not (len(lines) > 1 and COMMENT.match(line)):
                raise ValueError(f"{key}: {found[0]!r} may be outside the folder of the run")


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, key)
