"""Resolves the names and patterns of a spec to files, as the shell does.

`*`, `?` and `[…]` do not match hidden files and folders. `**` stands for any number of folders,
including none. Links to folders are followed, each folder once; files are in natural order
(`frame.2` before `frame.10`).
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dpstream.shared.errors import SpecError

ANY_DEPTH = "**"
Skipped = Callable[[Path], None]
"""Called with each folder that may not be read."""
MOST_ENTRIES = 1_000_000
"""Files and folders below one folder that are looked at; a run of DP-GEN may have many."""


def _unsaid(folder: Path) -> None:
    pass


def find_files(pattern: str, folder: Path, key: str, skipped: Skipped = _unsaid) -> list[Path]:
    """Files and folders that `pattern` names, relative to `folder`, in natural order. The name of
    an existing file is no pattern, whatever its characters. `skipped` is called with folders that
    may not be read. Raises `SpecError` naming `key` if there are none."""
    base = Path(pattern).expanduser()
    if base.is_absolute():
        folder, pattern = Path(base.anchor), str(base.relative_to(base.anchor))
    if not pattern:
        raise SpecError(f"{key}: '' is not a file name")
    exact = folder / pattern
    try:
        if exact.exists():
            return [exact]
        matches = sorted(set(_matches(folder, Path(pattern).parts, skipped)), key=natural)
    except (ValueError, OSError, SpecError) as error:
        reason = " ".join(str(error).split())
        raise SpecError(f"{key}: {pattern!r}: {reason}") from error
    if not matches:
        raise SpecError(f"{key}: no file matches {pattern!r} in {folder.absolute()}")
    return matches


def find_one(pattern: str, folder: Path, key: str) -> Path:
    """The only file that `pattern` names. Raises `SpecError` also if there are several."""
    path, *more = find_files(pattern, folder, key)
    if more:
        raise SpecError(f"{key}: {len(more) + 1} files match {pattern!r}; name one of them")
    return path


def find_grouped(
    name: str, folder: Path, key: str, skipped: Skipped = _unsaid
) -> tuple[list[Path], str]:
    """As `find_files`, with the group inside the files: `data.hdf5#/group`. A file whose name
    contains # is taken by its name."""
    if "#" not in name or (folder / Path(name).expanduser()).exists():
        return find_files(name, folder, key, skipped), ""
    file, _, inside = name.partition("#")
    return find_files(file, folder, key, skipped), inside


def natural(path: Path) -> tuple[tuple[tuple[int, int | str], ...], str]:
    """Sort key with which numbers in names are compared as numbers."""
    words = re.split(r"(\d+)", str(path))
    return tuple((0, int(w)) if w.isdecimal() else (1, w) for w in words), str(path)


def _matches(folder: Path, parts: Sequence[str], skipped: Skipped) -> Iterator[Path]:
    if ANY_DEPTH not in parts:
        names = glob.glob(os.path.join(*parts), root_dir=folder)
        yield from (folder / name for name in names)
        return
    at = parts.index(ANY_DEPTH)
    rest = parts[at + 1 :] or ("*",)
    for start in _matches(folder, parts[:at], skipped) if at else [folder]:
        for inside in folders(start, skipped):
            yield from _matches(inside, rest, skipped)


def is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def folders(start: Path, skipped: Skipped = _unsaid) -> Iterator[Path]:
    """`start` and all folders below it that are not hidden, behind links too; each once, in natural
    order. Those that may not be read are passed over. Raises `SpecError` if there are
    more than `MOST_ENTRIES` files and folders."""
    seen: set[str] = set()
    waiting, entries = [start], 0
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen or not os.path.isdir(folder):
            continue
        seen.add(real)
        inside = _listed(folder)
        if inside is None:
            skipped(folder)
            continue
        entries += len(inside)
        if entries > MOST_ENTRIES:
            raise SpecError(f"more than {MOST_ENTRIES} files below {start}; name a smaller folder")
        yield folder
        below = (Path(each.path) for each in inside if _is_folder(each))
        waiting += sorted(
            (each for each in below if not is_hidden(each)), key=natural, reverse=True
        )


def passed_over(locked: Sequence[Path]) -> dict[str, int]:
    """The remark on folders that may not be read, as a table of remarks with their numbers; empty
    without such folders."""
    distinct = list(dict.fromkeys(locked))
    others = f" (and {len(distinct) - 1} more)" if distinct[1:] else ""
    return {f"skipped, because it may not be read: {each}{others}": 1 for each in distinct[:1]}


def _listed(folder: Path) -> list[os.DirEntry[str]] | None:
    """What is in a folder; None if it may not be listed or its files may not be reached."""
    try:
        return list(os.scandir(folder)) if os.access(folder, os.X_OK, effective_ids=True) else None
    except PermissionError:
        return None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A link may lead to where nothing may be read."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder, for libraries that expand patterns in the names that they are given."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
