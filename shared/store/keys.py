"""What every store does alike: keys are checked before anything is touched, and errors of files
name the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from dpstream.shared.errors import DigestMismatch, StoreError
from dpstream.shared.values import is_key

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


def digested(file: BinaryIO, digest: Any) -> Any:
    """The hash, fed with the rest of the file, which stays where it is."""
    start = file.tell()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    file.seek(start)
    return digest
