"""Pseudopotentials, orbitals and models: files on the worker, identified by their digests.

Many are licensed and therefore never enter the object store. Their digests are part of the recipe,
so that labels computed with other files have another recipe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field

from dpstream.services.labeler.codes.base import CodeSettings
from dpstream.services.labeler.machine_settings import machine_settings
from dpstream.shared.errors import Permanent, SpecError

POTENTIALS = "labels.settings.potentials"
DIGITS = 16
"""Hexadecimal digits of a digest in the recipe."""


def _relative(name: str) -> str:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError("must be the name of a file inside the worker's folder of potentials")
    return name


PotentialName = Annotated[str, AfterValidator(_relative)]


class WithPotentials(CodeSettings):
    """Settings of a code that reads one potential per element."""

    potentials: dict[str, PotentialName] = Field(
        min_length=1,
        description="file by element, in the worker's folder (DPSTREAM_LABELER_POTENTIALS)",
    )
    sha256: dict[str, str] = Field(
        default={},
        description="first digits of the files' sha256, by element; needed to submit from a "
        "machine without the files",
    )


def lacking(symbols: Iterable[str], names: Mapping[str, str]) -> str | None:
    """Message that names elements without a potential; None if all have one."""
    missing = sorted(set(symbols) - names.keys())
    return f"{POTENTIALS}: none for {', '.join(missing)}" if missing else None


def potential(code: str, names: Mapping[str, str], symbol: str) -> Path:
    """The file of an element on this worker. Raises Permanent if there is none."""
    folder = machine_settings().folder(code)
    path = None if folder is None or symbol not in names else _file(folder, names[symbol])
    if path is None:
        raise Permanent(
            f"{code}: no potential for {symbol} in this worker's DPSTREAM_LABELER_POTENTIALS"
        )
    return path


def digests(
    code: str, names: Mapping[str, str], stated: Mapping[str, str], where: str = POTENTIALS
) -> str:
    """`Al 0123456789abcdef, C …`: digests of the files on this machine or, without the files, as
    stated in the spec.

    Raises SpecError if there is neither, or if they differ.
    """
    folder = machine_settings().folder(code)
    found = {
        key: _digest(code, folder, f"{where}.{key}", names[key], stated.get(key, ""))
        for key in sorted(names)
    }
    return ", ".join(f"{key} {digest}" for key, digest in found.items())


def _digest(code: str, folder: Path | None, key: str, name: str, stated: str) -> str:
    expected = stated.lower()
    path = None if folder is None else _file(folder, name)
    if path is None and len(expected) >= DIGITS:
        return expected[:DIGITS]
    where = f"{key}: {name!r}"
    if folder is None:
        raise SpecError(
            f"{where}: this machine has no folder for it; set DPSTREAM_LABELER_POTENTIALS="
            f"'{code}=FOLDER', or set its labels.settings.sha256 ({DIGITS} digits or more)"
        )
    if path is None:
        raise SpecError(f"{where}: no such file in {folder}")
    actual = _sha256(path, path.stat().st_mtime_ns)
    if not actual.startswith(expected):
        raise SpecError(f"{where}: its sha256 is {actual[:DIGITS]}…, not {expected} as stated")
    return actual[:DIGITS]


def _file(folder: Path, name: str) -> Path | None:
    """The file `name`, or the POTCAR in the folder `name`, as in VASP's library."""
    path = folder / name
    return next((file for file in (path, path / "POTCAR") if file.is_file()), None)


@lru_cache(maxsize=256)
def _sha256(path: Path, modified: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
