"""The digests of an export's files, in the format of `sha256sum`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from dpstream.shared.errors import SpecError, errors_at
from dpstream.shared.store.keys import digested

CHECKSUMS = "SHA256SUMS"


def write_checksums(folder: Path, parts: Sequence[str]) -> None:
    """Lists all files of the export that are in these subfolders or have these names."""
    files = (path for part in parts for path in _files(folder / part))
    lines = [f"{digest_of(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / CHECKSUMS).write_text("".join(lines))


def damaged_files(folder: Path) -> Iterator[str]:
    """A line for each file of an export that is missing or differs from what was written. Raises
    SpecError if the folder has no list of digests."""
    with errors_at(str(folder / CHECKSUMS), OSError):
        lines = (folder / CHECKSUMS).read_text().splitlines()
    for line in lines:
        digest, _, name = line.partition("  ")
        path = folder / name
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise SpecError(f"{folder / CHECKSUMS}: not a list of digests: {line[:80]!r}")
        if not path.is_file():
            yield f"{path}: missing"
        elif digest_of(path) != digest:
            yield f"{path}: the content differs from what was written"


def _files(part: Path) -> list[Path]:
    return sorted(path for path in (part, *part.rglob("*")) if path.is_file())


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        digest: str = digested(file, hashlib.sha256()).hexdigest()
        return digest
