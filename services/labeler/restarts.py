"""Restart files of a single point that the stop of the worker interrupted.

They are stored as one zip archive with the results of the attempt. The next attempt, on any
machine, starts its program from them if they belong to the same frame and recipe.
"""

from __future__ import annotations

import io
import json
import os
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dpstream.services.labeler.codes.base import Restartable

MAX_BYTES = 256 * 2**20
"""Size of the restart files of one single point together; larger ones are not kept."""
MAX_ARCHIVE = MAX_BYTES + 2**16
"""Size of their archive."""
PROGRAM_SHARE, STORE_SHARE = 0.4, 0.4
"""Parts of the grace period: for the program to end by itself, and for the store to take its files.
The rest is for the release of the task."""
OWNER = "restart.json"
"""Entry of the archive that names frame and recipe."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Timestamp of all entries: equal files give equal archives."""


@dataclass(frozen=True)
class Restart:
    """Restart files of the frame with this key by the recipe with this digest; `files` by their
    names relative to the program's folder."""

    frame: str
    recipe: str
    files: Mapping[str, bytes]


def accepted_by(code: Restartable, restart: Restart) -> bool:
    """Whether `code` can start from the files, by their names and structure."""
    named = all(map(code.restart_name.fullmatch, restart.files))
    return named and bool(restart.files) and code.complete(restart.files) == restart.files


def collected(code: Restartable, folder: Path) -> dict[str, bytes]:
    """The restart files that a program has left in `folder`; none if they are larger than
    `MAX_BYTES`. Links are ignored: they may lead out of the folder."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    files = {
        name: path.read_bytes()
        for name, path in paths.items()
        if code.restart_name.fullmatch(name) and _is_kept(path.lstat())
    }
    complete = code.complete(files)
    return complete if sum(map(len, complete.values())) <= MAX_BYTES else {}


def _is_kept(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_size <= MAX_BYTES


def pack(restart: Restart) -> bytes:
    """The restart as a zip archive."""
    owner = json.dumps({"frame": restart.frame, "recipe": restart.recipe}).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted({OWNER: owner, **restart.files}.items()):
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data)
    return out.getvalue()


def unpack(data: bytes) -> Restart:
    """The inverse of `pack`. Raises ValueError for anything else."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > MAX_ARCHIVE:
                raise ValueError("too large")
            files = {entry.filename: archive.read(entry) for entry in entries}
        owner = json.loads(files.pop(OWNER))
        return Restart(str(owner["frame"]), str(owner["recipe"]), files)
    except Exception as error:  # zipfile raises errors of many kinds for a damaged archive
        raise ValueError(f"not an archive of restart files: {error}") from error
