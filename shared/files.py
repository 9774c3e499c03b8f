"""Atomic writes: a file appears complete or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

DEFAULT_MODE = 0o666
"""Mode of a new file before the process's umask is applied."""


@contextmanager
def arriving(path: Path, mode: int = DEFAULT_MODE) -> Iterator[BinaryIO]:
    """An open file that replaces `path` when the block ends without an error and is removed
    otherwise. Its permissions never exceed `mode`."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes, mode: int = DEFAULT_MODE) -> None:
    """Write a file, text as UTF-8, and the folders above it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with arriving(path, mode) as file:
        file.write(content.encode() if isinstance(content, str) else content)
