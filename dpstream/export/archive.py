"""An export as one file."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from dpstream.export.checksums import digest_of
from dpstream.shared.files import arriving
from dpstream.shared.store.keys import digested

COMPRESSED = (".npz", ".png", ".zip")
"""Suffixes of files that do not become smaller."""


def archive_of(folder: Path) -> Path:
    """The zip file beside `folder`."""
    whole = folder.absolute()
    return whole.with_name(f"{whole.name}.zip")


def archived(folder: Path, name: str) -> bytes:
    """A file of `folder` as it is in its archive; empty if the archive has none, or is no zip
    file."""
    whole = folder.absolute()
    try:
        with zipfile.ZipFile(archive_of(folder)) as archive:
            return archive.read(f"{whole.name}/{name}")
    except (zipfile.BadZipFile, KeyError, OSError):
        return b""


def write_archive(folder: Path) -> Path:
    """Write all files of `folder` to a zip file beside it, under the folder's name. It is complete
    or absent."""
    whole, path = folder.absolute(), archive_of(folder)
    with arriving(path) as target, zipfile.ZipFile(target, "w") as archive:
        for file in _files(whole):
            packed = zipfile.ZIP_STORED if file.suffix in COMPRESSED else zipfile.ZIP_DEFLATED
            archive.write(file, file.relative_to(whole.parent).as_posix(), packed)
    return path


def differing_files(folder: Path) -> Iterator[str]:
    """A line for each file of `folder` that its archive lacks, or has with another content."""
    whole = folder.absolute()
    with zipfile.ZipFile(archive_of(folder)) as archive:
        for file in _files(whole):
            name = file.relative_to(whole.parent).as_posix()
            try:
                with archive.open(name) as packed:
                    digest = digested(cast(BinaryIO, packed), hashlib.sha256()).hexdigest()
            except (KeyError, zipfile.BadZipFile, zlib.error):
                digest = None
            if digest != digest_of(file):
                yield f"{archive_of(folder)}: {name} differs from what was written"


def _files(folder: Path) -> list[Path]:
    return sorted(each for each in folder.rglob("*") if each.is_file())
