"""Checks and error handling that all stores share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from dpstream.shared.errors import DigestMismatch, StoreError
from dpstream.shared.values import is_key

_CHUNK = 1 << 20
"""Bytes read at once."""


def checked(key: str) -> str:
    """The key itself. Raises StoreError if it is invalid."""
    if not is_key(key):
        raise StoreError(
            f"{key!r} is not a valid key: printable words separated by slashes, no leading dots"
        )
    return key


def checked_prefix(prefix: str) -> str:
    """The prefix itself. Raises StoreError if no key can start with it."""
    if prefix:
        checked(prefix.removesuffix("/"))
    return prefix


def entries_of(folder: str, keys: Iterable[str]) -> list[str]:
    """Of all keys in a folder, those directly in it, and the folders in it."""
    found = {key[len(folder) :].partition("/")[:2] for key in keys}
    return sorted(f"{folder}{name}{slash}" for name, slash in found)


def bounded(key: str, size: int, most: int | None) -> None:
    """Raises DigestMismatch for an object of more than `most` bytes."""
    if most is not None and size > most:
        raise DigestMismatch(f"{key}: {size} bytes, above {most}")


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Converts OSError into StoreError that names the file."""
    try:
        yield
    except OSError as error:
        where = "" if error.filename in (None, str(path)) else f" ({error.filename})"
        raise StoreError(f"{path}: {error.strerror}{where}") from error


def digested(file: BinaryIO, digest: Any) -> Any:
    """`digest` updated with the rest of the file, whose position is restored."""
    start = file.tell()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    file.seek(start)
    return digest
