"""What every store does alike: keys are checked before anything is touched, files arrive whole."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from shared.errors import DigestMismatch, StoreError
from shared.values import is_key

_CHUNK = 1 << 20
"""Bytes read at once."""


def checked(key: str) -> str:
    """The key; StoreError for what is none."""
    if not is_key(key):
        raise StoreError(f"{key!r} is not a key: printable words between slashes, no dot first")
    return key


def checked_prefix(prefix: str) -> str:
    """What some key may begin with; StoreError for what none can."""
    if prefix:
        checked(prefix.removesuffix("/"))
    return prefix


def bounded(key: str, size: int, most: int | None) -> None:
    """DigestMismatch for an object of more bytes than are expected."""
    if most is not None and size > most:
        raise DigestMismatch(f"{key}: {size} bytes, above {most}")


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """OSErrors as StoreErrors that name the file."""
    try:
        yield
    except OSError as error:
        where = "" if error.filename in (None, str(path)) else f" ({error.filename})"
        raise StoreError(f"{path}: {error.strerror}{where}") from error


@contextmanager
def arriving(path: Path) -> Iterator[BinaryIO]:
    """An open file that becomes `path` when all went well, and leaves nothing behind else."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with file_errors(path):
        try:
            with partial.open("xb") as file:
                yield file
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def digested(file: BinaryIO, digest: Any) -> Any:
    """The hash, fed with the rest of the file, which stays where it is."""
    start = file.tell()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    file.seek(start)
    return digest
