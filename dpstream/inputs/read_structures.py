"""Reads structures from files, folders and streams, in any format of ASE or dpdata."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from dpstream.inputs.reading.ase_files import one_line, read_ase
from dpstream.inputs.structure_faults import WrongLine
from dpstream.shared.errors import SpecError


def read_structures(path: Path) -> list[Any]:
    """Every frame of a file or folder as `ase.Atoms`. Raises `SpecError` if neither ASE nor dpdata
    can read it."""
    if not path.exists():
        raise SpecError(f"{path}: no such file")
    if path.name == "gatheredPOSCARS":
        return list(_gathered(path))
    try:
        return read_ase(path)
    except WrongLine:
        raise
    except SpecError as error:
        frames = _by_dpdata(path)
        if not frames:
            raise error
        return frames


def _by_dpdata(path: Path) -> list[Any]:
    """The frames that dpdata reads, empty if it cannot read the file."""
    import dpdata  # deferred: slow to import

    try:
        system = dpdata.System(str(path), fmt="deepmd/npy" if path.is_dir() else "auto")
        return list(system.to("ase/structure"))
    except (Exception, SystemExit):  # its readers raise many kinds
        return []


def _gathered(path: Path) -> Iterator[Any]:
    """Concatenated POSCARs, as USPEX writes them."""
    lines = path.read_text(errors="replace").splitlines()
    start = 0
    while start < len(lines) and any(line.strip() for line in lines[start:]):
        try:
            atoms = sum(int(word) for word in lines[start + 6].split())
        except (IndexError, ValueError) as error:
            raise SpecError(f"{path}: line {start + 7}: must be numbers of atoms") from error
        end = start + 8 + atoms
        yield _parsed("\n".join(lines[start:end]) + "\n", "vasp", f"{path}: line {start + 1}")
        start = end


def _parsed(text: str, form: str, where: str) -> Any:
    from ase.io import read

    try:
        return read(io.StringIO(text), format=form)
    except Exception as error:  # as above
        raise SpecError(f"{where}: cannot be read as a structure: {one_line(error)}") from error


def streamed(stream: TextIO) -> Iterator[Any]:
    """Yield frames of an extended xyz stream, each as soon as it is complete."""
    for number in itertools.count(1):
        head = stream.readline()
        if not head.strip():
            return
        try:
            wanted = int(head) + 1
        except ValueError as error:
            raise SpecError(
                f"-: frame {number}: {head.strip()[:40]!r} is not a number of atoms"
            ) from error
        lines = list(itertools.islice(stream, wanted))
        if len(lines) < wanted:
            raise SpecError(f"-: frame {number}: incomplete when the stream ended")
        yield _parsed(head + "".join(lines), "extxyz", f"-: frame {number}")
