"""Private folders for the files of tasks; those of processes that died are swept by the next."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpstream.shared.errors import SpecError

STEM = "dpstream-worker-"
LOCK = ".lock"


@contextmanager
def private_folder(base: Path | None) -> Iterator[Path]:
    """A fresh folder below `base` (by default one of this user's in the system's temporary
    folder), removed at the end. Raises `SpecError` where none can be made."""
    base = _own_base() if base is None else base.absolute()
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder, lock = _claim(base)
    except OSError as error:
        raise SpecError(f"DPSTREAM_SCRATCH: {base}: cannot be used: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _own_base() -> Path:
    """Where others can write, a folder may be a trap laid by them."""
    base = Path(tempfile.gettempdir()) / f"dpstream-{os.getuid()}"
    if base.is_symlink() or (base.exists() and base.stat().st_uid != os.getuid()):
        raise SpecError(f"{base}: belongs to another user; set DPSTREAM_SCRATCH")
    return base


def _claim(base: Path) -> tuple[Path, int]:
    """A folder and the lock that tells it is in use. One process at a time sweeps and makes, so
    that nobody sweeps what is just being made."""
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
    except OSError:  # died between the two steps of making it
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True
