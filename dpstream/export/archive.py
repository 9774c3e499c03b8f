"""An export as one file."""

from __future__ import annotations

import zipfile
from pathlib import Path

from dpstream.shared.files import arriving

COMPRESSED = (".npz", ".png", ".zip")
"""Suffixes of files that do not become smaller."""


def write_archive(folder: Path) -> Path:
    """Write all files of `folder` to a zip file beside it, under the folder's name. It is complete
    or absent."""
    whole = folder.absolute()
    path = whole.with_name(f"{whole.name}.zip")
    with arriving(path) as target, zipfile.ZipFile(target, "w") as archive:
        for file in sorted(each for each in whole.rglob("*") if each.is_file()):
            packed = zipfile.ZIP_STORED if file.suffix in COMPRESSED else zipfile.ZIP_DEFLATED
            archive.write(file, file.relative_to(whole.parent).as_posix(), packed)
    return path
