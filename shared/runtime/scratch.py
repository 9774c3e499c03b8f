"""Private folders for the files of tasks.

A process that dies leaves its folder behind; the next process deletes it. A lock file tells folders
in use from abandoned ones.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dpstream.shared.errors import SpecError

STEM = "dpstream-worker-"
LOCK = ".lock"


@contextmanager
def private_folder(base: Path | None) -> Iterator[Path]:
    """A new folder below `base` (default: a folder of this user in the system's temporary folder),
    deleted at the end of the block. Raises `SpecError` if it cannot be created."""
    base = _own_base() if base is None else base.absolute()
    with ExitStack() as stack:
        try:
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = stack.enter_context(folder_in(base))
        except OSError as error:
            reason = f"cannot be used: {error.strerror}"
            raise SpecError(f"DPSTREAM_SCRATCH: {base}: {reason}") from error
        yield folder


@contextmanager
def folder_in(base: Path) -> Iterator[Path]:
    """As `private_folder`, in a folder that exists. Raises OSError."""
    folder, lock = _claim(base)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def enclosing(folder: Path) -> Path:
    """The private folder in which `folder` is; `folder` itself outside of private folders."""
    around = (folder, *folder.parents)
    return next((each for each in around if each.name.startswith(STEM)), folder)


def _own_base() -> Path:
    """The default base folder. Refused if another user could have created it."""
    base = Path(tempfile.gettempdir()) / f"dpstream-{os.getuid()}"
    if base.is_symlink() or (base.exists() and base.stat().st_uid != os.getuid()):
        raise SpecError(f"{base}: belongs to another user; set DPSTREAM_SCRATCH")
    return base


def _claim(base: Path) -> tuple[Path, int]:
    """A new folder and the lock that marks it as in use. Only one process at a time sweeps and
    creates, so that no folder is deleted while it is being created."""
    gate = os.open(base / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)
        _sweep(base)
        folder = Path(tempfile.mkdtemp(prefix=STEM, dir=base))
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder, lock
    finally:
        os.close(gate)


def _sweep(base: Path) -> None:
    for folder in base.glob(f"{STEM}*"):
        if _is_left_behind(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_left_behind(folder: Path) -> bool:
    try:
        lock = os.open(folder / LOCK, os.O_RDWR)
    except OSError:  # its process died before it created the lock
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True
