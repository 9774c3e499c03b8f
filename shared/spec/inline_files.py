"""Reads files named in label settings into the spec, because their text is part of the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpstream.shared.errors import SpecError

LARGEST = 32 * 1024
"""Largest size of one text in bytes; a whole recipe must fit into one message."""


def with_texts(document: dict[Any, Any], path: Path) -> dict[Any, Any]:
    """Replace every `{file: NAME}` in `labels.settings` of `document` by the text of that file,
    relative to `path`. Raises SpecError naming a file that cannot be read."""
    labels = document.get("labels")
    if not isinstance(labels, dict) or "settings" not in labels:
        return document
    settings = _inlined(labels["settings"], path, "labels.settings")
    return {**document, "labels": {**labels, "settings": settings}}


def _inlined(value: Any, path: Path, key: str) -> Any:
    if isinstance(value, dict) and value.keys() == {"file"} and isinstance(value["file"], str):
        return text_of(path.parent / Path(value["file"]).expanduser(), f"{path}: {key}")
    if isinstance(value, dict):
        return {name: _inlined(part, path, f"{key}.{name}") for name, part in value.items()}
    return value


def text_of(file: Path, where: str) -> str:
    """The text of a file that a spec names at key `where`. Raises SpecError if it is unreadable."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise SpecError(f"{where}: {file}: cannot be read: {error.strerror}") from error
    if len(data) > LARGEST:
        raise SpecError(f"{where}: {file}: {len(data)} bytes; at most {LARGEST} allowed")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise SpecError(f"{where}: {file}: not a UTF-8 text file (byte {error.start})") from error
