"""Reads DP-GEN's files as plain mappings, and accounts for every key in them.

Every known key is mapped, unused or refused. DP-GEN ignores keys that it does not know, and so does
the import, which names them. Only a probable misspelling of a key that matters is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from dpstream.shared.errors import SpecError
from dpstream.shared.spec.errors import read_document, shown

Fate = Literal["mapped", "unused", "refused", "ignored"]
MOST_SHOWN = 40
"""Largest number of characters of a value in the table."""

MISSPELT = 0.8
"""Similarity of a misspelt key to the one that is meant."""
STRAY = "DP-GEN ignores it, too"


@dataclass(frozen=True)
class Key:
    """What one key of DP-GEN becomes. `words`: the spec's key if it is mapped, otherwise the reason
    or an alternative; `harmless`: values of a refused key that have no effect."""

    name: str
    fate: Fate
    words: str
    harmless: tuple[Any, ...] = ()


@dataclass(frozen=True)
class KeyLine:
    """One key of a file, and what it becomes."""

    key: str
    value: str
    fate: Fate
    words: str


def mapped(name: str, words: str) -> Key:
    return Key(name, "mapped", words)


def unused(name: str, words: str) -> Key:
    return Key(name, "unused", words)


def ignored(name: str, words: str) -> Key:
    return Key(name, "ignored", words)


def refused(name: str, words: str, *harmless: Any) -> Key:
    return Key(name, "refused", words, (None, *harmless))


def read(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML file of DP-GEN without comments (keys with a leading underscore). Raises
    `SpecError`."""
    values: dict[str, Any] = without_comments(read_document(path))
    return values


def without_comments(value: Any) -> Any:
    """`value` without keys that start with an underscore, at any depth. A bare `_` is the section
    parameter of CP2K and stays."""
    if isinstance(value, dict):
        return {key: without_comments(v) for key, v in value.items() if not _is_comment(key)}
    if isinstance(value, list):
        return [without_comments(item) for item in value]
    return value


def _is_comment(key: Any) -> bool:
    return isinstance(key, str) and key.startswith("_") and len(key) > 1


def is_param(document: Mapping[Any, Any]) -> bool:
    """Whether this is a parameter file of `dpgen run`, and not a campaign spec."""
    theirs, ours = {"model_devi_jobs", "sys_configs", "fp_style"}, {"stages", "material", "systems"}
    return bool(theirs & document.keys()) and not ours & document.keys()


def account(
    values: Mapping[str, Any],
    table: Sequence[Key],
    where: str = "",
    elsewhere: Sequence[Key] = (),
) -> list[KeyLine]:
    """What each key of `values` becomes. `elsewhere`: further keys that a misspelt one may mean.
    Raises `SpecError` for the first refused key, then for the first that is probably misspelt."""
    known = {key.name: key for key in table}
    names = sorted(values, key=lambda name: name not in known)
    meant = [key.name for key in (*table, *elsewhere) if key.fate in ("mapped", "refused")]
    return [_line(where, name, values[name], known, meant) for name in names]


def _line(
    where: str, name: str, value: Any, known: Mapping[str, Key], meant: Sequence[str]
) -> KeyLine:
    """The line of one key. `meant`: the keys that matter."""
    key = known.get(name)
    if key is None:
        for close in _resembling(str(name), meant)[:1]:
            raise SpecError(
                f"{where}{name}: unknown key; did you mean {close!r}? If it is a comment, write "
                f"_{name}"
            )
        return KeyLine(f"{where}{name}", _brief(value), "ignored", STRAY)
    harmless = any(value is given or value == given for given in key.harmless)
    if key.fate == "refused" and not harmless:
        raise SpecError(f"{where}{name}: {_brief(value)}: {key.words}")
    words = "this value has no effect" if key.fate == "refused" else key.words
    fate: Fate = "unused" if key.fate == "refused" else key.fate
    return KeyLine(where + name, _brief(value), fate, words)


def _resembling(name: str, meant: Sequence[str]) -> list[str]:
    """The keys that `name` probably misspells: similar ones, and those with the same letters."""
    swapped = [key for key in meant if sorted(key) == sorted(name)]
    return swapped or get_close_matches(name, meant, n=1, cutoff=MISSPELT)


def _brief(value: Any) -> str:
    text = shown(value)
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 1] + "…"
