"""Reads DP-GEN's files as plain mappings, and accounts for every key in them.

Every known key is mapped, unused or refused. An unknown key is an error, so that no setting is lost
silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from dpstream.shared.errors import SpecError
from dpstream.shared.spec.errors import did_you_mean, read_document, shown

Fate = Literal["mapped", "unused", "refused"]
MOST_SHOWN = 40
"""Largest number of characters of a value in the table."""

MISSPELT = 0.8
"""Similarity of a misspelt key to the one that is meant."""


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


def account(values: Mapping[str, Any], table: Sequence[Key], where: str = "") -> list[KeyLine]:
    """What each key of `values` becomes. Raises `SpecError` for the first refused or unknown key;
    refused keys come first."""
    known = {key.name: key for key in table}
    names = sorted(values, key=lambda name: name not in known)
    return [_line(where, name, values[name], known) for name in names]


def is_misspelt(name: str, known: Sequence[str]) -> bool:
    """Whether an unknown key is probably a misspelt known one."""
    return bool(get_close_matches(name, known, n=1, cutoff=MISSPELT))


def stray(where: str, name: str, value: Any) -> KeyLine:
    """The line of a key that DP-GEN ignores as well."""
    return KeyLine(where + name, _brief(value), "unused", "DP-GEN ignores it, too")


def _line(where: str, name: str, value: Any, known: Mapping[str, Key]) -> KeyLine:
    key = known.get(name)
    if key is None:
        raise SpecError(f"{where}{name}: unknown key{_hint(name, known)}")
    harmless = any(value is given or value == given for given in key.harmless)
    if key.fate == "refused" and not harmless:
        raise SpecError(f"{where}{name}: {_brief(value)}: {key.words}")
    words = "this value has no effect" if key.fate == "refused" else key.words
    fate: Fate = "unused" if key.fate == "refused" else key.fate
    return KeyLine(where + name, _brief(value), fate, words)


def _hint(name: str, known: Iterable[str]) -> str:
    return did_you_mean(name, known) or "; comments begin with an underscore"


def _brief(value: Any) -> str:
    text = shown(value)
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 1] + "…"
