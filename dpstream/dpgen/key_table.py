"""DP-GEN's files as plain mappings, and an account of every key in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dpstream.shared.errors import SpecError
from dpstream.shared.spec.errors import did_you_mean, read_document, shown

Fate = Literal["mapped", "unused", "refused"]
WORTH_SHOWING = 40
"""Characters of a value in the account."""


@dataclass(frozen=True)
class Key:
    """What becomes of one key of DP-GEN's. `words`: our key where it is mapped, else the reason, or
    what to do instead; `harmless`: values with which a refused key asks for nothing."""

    name: str
    fate: Fate
    words: str
    harmless: tuple[Any, ...] = ()


@dataclass(frozen=True)
class KeyLine:
    """One key as it was found in a file."""

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
    """The mapping in a JSON or YAML file of DP-GEN's, without comments: keys that begin with an
    underscore. Raises `SpecError`."""
    found: dict[str, Any] = without_comments(read_document(path))
    return found


def without_comments(value: Any) -> Any:
    """`value` without the keys that DP-GEN's users comment with, at any depth. A bare `_` is CP2K's
    section parameter."""
    if isinstance(value, dict):
        return {key: without_comments(v) for key, v in value.items() if not _is_comment(key)}
    if isinstance(value, list):
        return [without_comments(item) for item in value]
    return value


def _is_comment(key: Any) -> bool:
    return isinstance(key, str) and key.startswith("_") and len(key) > 1


def is_param(document: Mapping[Any, Any]) -> bool:
    """Whether this is a param file of DP-GEN's `run`, and not a spec of ours."""
    ours = {"stages", "material", "systems"}
    return bool({"model_devi_jobs", "sys_configs", "fp_style"} & document.keys()) and not (
        ours & document.keys()
    )


def account(values: Mapping[str, Any], table: Sequence[Key], where: str = "") -> list[KeyLine]:
    """What becomes of each key of `values`. Raises `SpecError` for one that asks for what cannot be
    done, or else for a key nobody knows."""
    known = {key.name: key for key in table}
    names = sorted(values, key=lambda name: name not in known)
    return [_line(where, name, values[name], known) for name in names]


def _line(where: str, name: str, value: Any, known: Mapping[str, Key]) -> KeyLine:
    key = known.get(name)
    if key is None:
        raise SpecError(f"{where}{name}: unknown key{_hint(name, known)}")
    idle = any(value is given or value == given for given in key.harmless)
    if key.fate == "refused" and not idle:
        raise SpecError(f"{where}{name}: {_brief(value)}: {key.words}")
    words = "as it is here anyway" if key.fate == "refused" else key.words
    fate: Fate = "unused" if key.fate == "refused" else key.fate
    return KeyLine(where + name, _brief(value), fate, words)


def _hint(name: str, known: Iterable[str]) -> str:
    return did_you_mean(name, known) or "; comments begin with an underscore"


def _brief(value: Any) -> str:
    text = shown(value)
    return text if len(text) <= WORTH_SHOWING else text[: WORTH_SHOWING - 1] + "…"
