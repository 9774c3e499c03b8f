"""Atomic writes, by which a file appears complete or not at all, and reads of untrusted files."""

from __future__ import annotations

import os
import stat
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


def read_plain(path: Path, most: int) -> bytes | None:
    """The content of a regular file of at most `most` bytes; None for a longer one, and for a
    folder, a pipe or a device. Raises OSError, also for a link."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            return None
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size)  # no further, should it grow
    finally:
        os.close(descriptor)
