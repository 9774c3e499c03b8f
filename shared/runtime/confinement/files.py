"""Reads and writes files in a folder to which a confined process may write.

A child that may make symbolic links could replace a file, or a folder on the way to it, by a link
to what only its worker may reach. Links that stay inside the folder are followed by reads. What a
worker writes for such a child is written where no child reaches it, and then moved.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dpstream.shared.errors import Permanent
from dpstream.shared.runtime.scratch import LOCK, enclosing, folder_in

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def open_inside(path: Path, folder: Path, flags: int = os.O_RDONLY) -> int:
    """Descriptor of the file `path` in `folder`, which is in a private folder or is one. Raises
    Permanent if `path` leads out of `folder` or is not a regular file, and OSError."""
    private = enclosing(folder)
    root = private.resolve()
    real = Path(os.path.realpath(path))
    if root / folder.relative_to(private) not in real.parents:
        raise Permanent(f"{path.name}: leads out of its folder")
    descriptor = _open(root, real.relative_to(root).parts, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Permanent(f"{path.name}: not a regular file")
    return descriptor


def _open(root: Path, parts: Sequence[str], flags: int) -> int:
    with _folder(root, parts[:-1]) as place:
        further = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(parts[-1], flags | further, 0o600, dir_fd=place)


@contextmanager
def _folder(root: Path, parts: Sequence[str]) -> Iterator[int]:
    """Descriptor of a folder, opened one by one: a link made meanwhile is not followed."""
    place = os.open(root, FOLDER)
    try:
        for part in parts:
            inner = os.open(part, FOLDER, dir_fd=place)
            os.close(place)
            place = inner
        yield place
    finally:
        os.close(place)


@contextmanager
def arriving_in(folder: Path) -> Iterator[Path]:
    """An empty folder out of reach of all children. What it contains at the end of the block moves
    to `folder`, which is in a private folder or is one. Raises OSError for a link on the way."""
    private = enclosing(folder)
    with folder_in(private.parent) as fresh:
        yield fresh
        with _folder(private.resolve(), folder.relative_to(private).parts) as place:
            for path in sorted(fresh.iterdir()):
                if path.name != LOCK:
                    os.rename(path, path.name, dst_dir_fd=place)


def read_inside(path: Path, folder: Path) -> bytes:
    """The content of a file. Raises as `open_inside`."""
    with open(open_inside(path, folder), "rb") as file:
        return file.read()
