"""The folder store: objects as files in a folder, created atomically and synced to disk.

Used by `dpstream run`, and by deployments on a shared file system.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dpstream.shared.errors import NotFound, StoreError
from dpstream.shared.files import arriving
from dpstream.shared.store.keys import bounded, checked, checked_prefix, file_errors
from dpstream.shared.values import is_key

_STAGING = ".staging"
"""Folder in which objects are written before they get their name; no key begins with a dot."""

_STALE_SECONDS = 3600.0
_CHUNK = 1 << 20

Fill = Callable[[BinaryIO], object]
"""Writes an object's bytes to an open file."""


class FolderStore:
    """Objects as files below one folder (`ports.Store`).

    An object is written to a staging file, synced, and then given its name: by rename (`put`,
    `upload`) or by hard link (`create`), which the kernel refuses if the name exists. Readers
    therefore never see an incomplete object, even if the writer is killed. Staging files of killed
    writers are deleted an hour later. As on any file system, `a` and `a/b` cannot both be objects.
    Every method raises StoreError for an invalid key and for errors of the file system, naming the
    path.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._made: set[Path] = set()

    def get(self, key: str, most: int | None = None) -> bytes:
        path = self._path(key)
        with _reading(key), path.open("rb") as file:
            bounded(key, os.fstat(file.fileno()).st_size, most)
            return file.read()

    def put(self, key: str, data: bytes) -> None:
        self._write(self._path(key), lambda file: file.write(data), _replace)

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with _reading(key):
            if path.is_file():  # saves writing the object when a claim is already lost
                return False
        return self._write(path, lambda file: file.write(data), _link)

    def exists(self, key: str) -> bool:
        path = self._path(key)
        with _reading(key):
            return path.is_file()

    def list(self, prefix: str, after: str = "") -> Iterable[str]:
        """Keys that start with `prefix` and come after `after`, sorted. Raises StoreError for an
        invalid prefix."""
        folder, slash, start = checked_prefix(prefix).rpartition("/")
        with _reading(prefix):
            found = (key for key in self._walk(folder + slash, start) if key > after)
            return sorted(filter(is_key, found))

    def entries(self, folder: str) -> Iterable[str]:
        """Keys and folders directly in `folder`, sorted (`ports.Store`)."""
        with _reading(folder):
            found = [
                f"{name}/" if entry.is_dir(follow_symlinks=False) else name
                for name, entry in self._scan(checked_prefix(folder))
            ]
        return sorted(each for each in found if is_key(each.removesuffix("/")))

    def delete(self, key: str) -> None:
        path = self._path(key)
        try:
            with _reading(key):
                path.unlink()
                _sync_folder(path.parent)
        except NotFound:
            return

    def upload(self, key: str, path: Path) -> None:
        target = self._path(key)
        with file_errors(path), path.open("rb") as source:
            self._write(target, lambda file: _copy(source, file), _replace)

    def download(self, key: str, path: Path) -> None:
        source = self._path(key)
        with _reading(key), source.open("rb") as reader, file_errors(path), arriving(path) as file:
            _copy(reader, file)

    def _path(self, key: str) -> Path:
        return self.root / checked(key)

    def _walk(self, folder: str, start: str = "") -> Iterator[str]:
        for name, entry in self._scan(folder, start):
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(f"{name}/")
            else:
                yield name

    def _scan(self, folder: str, start: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Names below the root of the files and folders in a folder that begin with `start`."""
        try:
            entries = list(os.scandir(self.root / folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            if entry.name.startswith(".") or not entry.name.startswith(start):
                continue
            if entry.is_dir(follow_symlinks=False) or entry.is_file():
                yield folder + entry.name, entry

    def _write(self, path: Path, fill: Fill, give_name: Callable[[Path, Path], bool]) -> bool:
        with file_errors(self.root):
            try:
                return self._place(path, fill, give_name)
            except FileNotFoundError:  # another process removed folders that exist in `_made`
                self._made.clear()
                return self._place(path, fill, give_name)

    def _place(self, path: Path, fill: Fill, give_name: Callable[[Path, Path], bool]) -> bool:
        staged = self._staging() / uuid.uuid4().hex
        try:
            with staged.open("xb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            self._make(path.parent)
            placed = give_name(staged, path)
            _sync_folder(path.parent)
        finally:
            staged.unlink(missing_ok=True)
        return placed

    def _staging(self) -> Path:
        folder = self.root / _STAGING
        if folder not in self._made:
            self._make(folder)
            _sweep(folder)
        return folder

    def _make(self, folder: Path) -> None:
        """Create the folder and its parents, each synced before it is used."""
        if folder in self._made:
            return
        if folder == self.root:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            self._make(folder.parent)
            folder.mkdir(exist_ok=True)
            _sync_folder(folder.parent)
        self._made.add(folder)


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    source.seek(0)
    shutil.copyfileobj(source, target, _CHUNK)


def _replace(staged: Path, path: Path) -> bool:
    staged.replace(path)
    return True


def _link(staged: Path, path: Path) -> bool:
    try:
        os.link(staged, path)
    except FileExistsError:
        if path.is_dir():
            raise
        return False
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Delete staging files of killed writers; a live writer never takes an hour."""
    for left in folder.iterdir():
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                left.unlink()


@contextmanager
def _reading(key: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise NotFound(f"no object {key!r}") from error
    except OSError as error:
        raise StoreError(f"{key}: {error.strerror} ({error.filename})") from error
