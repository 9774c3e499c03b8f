"""Tells the format of a file by its content: names lie, and programs do not choose them alike."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dpstream.shared.errors import SpecError

HEAD = 64 * 1024
"""Bytes of a file that are looked at."""
PACKED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
"""Openers of compressed files by their first bytes."""
UNPACKED = 12
"""Bytes that a byte of a compressed text may stand for."""
SMALL = 256 * 1024**2
"""Bytes that any compressed file may unpack to."""
CHUNK = 1024**2
SPECIAL = "[]*?#"
COMPRESSED = (".gz", ".bz2", ".xz")
"""Suffixes of compressed files."""
HDF5 = "DeePMD-kit HDF5"
EXTXYZ = "extxyz"
POSCAR = "POSCAR"
LAMMPS = "LAMMPS data"

NUMBERS = r"[ \t]*[-+]?[\d.]+(?:[eEdD][-+]?\d+)?(?:[ \t]+[-+]?[\d.]+(?:[eEdD][-+]?\d+)?){2}"
PATTERNS: dict[str, re.Pattern[str]] = {
    "VASP vasprun.xml": re.compile(r"\s*<\?xml[^>]*>\s*<modeling>"),
    "QE XML": re.compile(r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?<qes:espresso", re.DOTALL),
    "VASP OUTCAR": re.compile(r"\s*vasp\.\d"),
    "QE": re.compile(r"(?s:.*?)^ *Program PWSCF", re.MULTILINE),
    "CP2K": re.compile(r"(?s:.*?)^ *(?:CP2K\||DBCSR\|.*|\*\*\*\* .*PROGRAM STARTED AT)", re.M),
    "ABACUS": re.compile(r"(?s:.*?)WELCOME TO ABACUS|(?s:.*?)^ *ABACUS v\d", re.MULTILINE),
    "SIESTA": re.compile(r"(?s:.*?)(?:^Siesta Version|WELCOME TO SIESTA)", re.MULTILINE),
    "Gaussian": re.compile(r"(?s:.*?)^ *Entering Gaussian System", re.MULTILINE),
    "PWmat": re.compile(r"\s*\d+\s+atoms,\s*Iteration"),
    "FHI-aims": re.compile(r"(?s:.*?)Invoking FHI-aims", re.MULTILINE),
    "ABINIT": re.compile(r"\s*\.Version\s+\S+\s+of ABINIT"),
    EXTXYZ: re.compile(r"[ \t]*\d+[ \t]*\r?\n[^\n]*\b(?:Lattice|Properties)[ \t]*="),
    POSCAR: re.compile(
        rf"[^\n]*\n[ \t]*-?[\d.]+[^\n]*\n(?:{NUMBERS}[^\n]*\n){{3}}[ \t]*(?:[\w/]+[ \t]*)+\r?\n"
    ),
    LAMMPS: re.compile(
        r"(?:[^\n]*\n){1,30}?[ \t]*\d+[ \t]+atoms[ \t]*\r?\n(?s:.*?)^[ \t]*Atoms\b", re.MULTILINE
    ),
}
"""Formats by the beginning of their files."""


def format_of(path: Path) -> str | None:
    """The format of an uncompressed file; None if its content does not tell."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return HDF5
    text = head.decode(errors="replace")
    return next((name for name, pattern in PATTERNS.items() if pattern.match(text)), None)


def is_packed(path: Path) -> bool:
    return _opener(path) is not None


def _opener(path: Path) -> Callable[..., Any] | None:
    with path.open("rb") as file:
        start = file.read(8)
    return next((each for mark, each in PACKED.items() if start.startswith(mark)), None)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The file itself, or a temporary copy of what is compressed in it, whose name is that of the
    file without the suffix. Raises `SpecError` if it is cut off or unpacks to far more than text
    does."""
    opener = _opener(path)
    if opener is None:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / _without_suffix(path.name)
        try:
            with opener(path, "rb") as source, plain.open("wb") as copy:
                _copy(source, copy, path)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise SpecError(f"{path}: cannot be unpacked: {error}") from error
        yield plain


def _copy(source: IO[bytes], copy: IO[bytes], path: Path) -> None:
    left = UNPACKED * path.stat().st_size + SMALL
    while chunk := source.read(CHUNK):
        left -= len(chunk)
        if left < 0:
            raise SpecError(
                f"{path}: unpacks to more than {UNPACKED} times its size; unpack it yourself"
            )
        copy.write(chunk)


@contextmanager
def plainly_named(path: Path) -> Iterator[Path]:
    """The file, or a link to it if its path holds characters that dpdata takes for a pattern or for
    the group of an HDF5 file."""
    if not set(str(path)) & set(SPECIAL):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"file{path.suffix}"
        link.symlink_to(path.absolute())
        yield link


def _without_suffix(name: str) -> str:
    return next((name.removesuffix(s) for s in COMPRESSED if name.endswith(s)), name)


def ase_format(path: Path) -> dict[str, Any]:
    """Keyword arguments of `ase.io.read` for formats that ASE would tell by the name alone."""
    known = {
        "VASP vasprun.xml": "vasp-xml",
        "VASP OUTCAR": "vasp-out",
        EXTXYZ: "extxyz",
        POSCAR: "vasp",
        LAMMPS: "lammps-data",
    }
    name = known.get(format_of(path) or "")
    return {} if name is None else {"format": name}
