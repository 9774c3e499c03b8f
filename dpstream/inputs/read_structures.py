"""Reads structures from files, folders and streams, in any format of ASE or dpdata."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from dpstream.inputs.reading.ase_files import parsed, read_ase
from dpstream.inputs.reading.patterns import inside
from dpstream.inputs.reading.recognise import ase_format, unpacked
from dpstream.inputs.structure_faults import WrongLine
from dpstream.shared.errors import SpecError


def read_structures(path: Path) -> list[Any]:
    """Every frame of a file or folder as `ase.Atoms`. Raises `SpecError` if neither ASE nor dpdata
    can read it."""
    if not path.exists():
        raise SpecError(f"{path}: no such file")
    try:
        return read_ase(path)
    except WrongLine:
        raise
    except SpecError as error:
        # What is wrong in a format of ASE's is no reason to read a part of it by another reader.
        frames = [] if path.is_file() and _is_ases(path) else _by_dpdata(path)
        if not frames:
            raise error
        return frames


def _is_ases(path: Path) -> bool:
    with unpacked(path) as plain:
        return bool(ase_format(plain))


def _by_dpdata(path: Path) -> list[Any]:
    """The frames that dpdata reads, empty if it cannot read the file."""
    import dpdata  # deferred: slow to import

    try:
        if path.is_dir():
            with inside(path):
                return list(dpdata.System(".", fmt="deepmd/npy").to("ase/structure"))
        return list(dpdata.System(str(path), fmt="auto").to("ase/structure"))
    except (Exception, SystemExit):  # its readers raise many kinds
        return []


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
        yield parsed(head + "".join(lines), "extxyz", f"-: frame {number}")
