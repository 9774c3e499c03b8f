"""Opens files in a folder to which a confined process may write.

A child that may make symbolic links could replace a file, or a folder on the way to it, by a link
to what only its worker may reach. Links that stay inside the folder are followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from dpstream.shared.errors import Permanent
from dpstream.shared.runtime.scratch import enclosing

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
    """Open folder by folder: a link that was made meanwhile is not followed."""
    place = os.open(root, FOLDER)
    try:
        for part in parts[:-1]:
            inner = os.open(part, FOLDER, dir_fd=place)
            os.close(place)
            place = inner
        further = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(parts[-1], flags | further, 0o600, dir_fd=place)
    finally:
        os.close(place)


def read_inside(path: Path, folder: Path) -> bytes:
    """The content of a file. Raises as `open_inside`."""
    with open(open_inside(path, folder), "rb") as file:
        return file.read()
