"""Reads the frames that generators offer. Runs in the parser of an explorer."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from ase.io import extxyz, iread

from dpstream.shared.atoms.frames import Batch, Frame, from_ase
from dpstream.shared.atoms.records import Record
from dpstream.shared.runtime.parser import write_records
from dpstream.shared.spec import Proposals
from dpstream.shared.values import LONGEST_REASON, Offered, OfferedFrame

FORK = True
assert extxyz  # imported here, not in every fork

Read = Frame | str
"""A frame, or the reason why it is invalid."""


def frames(source: str, result: str, kind: str, count: int, limits: Mapping[str, Any]) -> None:
    """Write the frames of the file `source` as records, or why they are invalid; at most one more
    than `count`. `kind`: a key of `READERS`; `limits`: the fields of `Proposals`. Raises an
    exception of any kind for an invalid file."""
    allowed = Proposals.model_validate(limits)
    reader = READERS[kind](Path(source).read_bytes(), allowed.max_bytes)
    write_records(result, [_record(read, allowed) for read in islice(reader, count + 1)])


def _record(read: Read, allowed: Proposals) -> Record:
    refused = read if isinstance(read, str) else allowed.wrong_size(len(read.species))
    if refused is not None:
        return Record({"refused": refused[:LONGEST_REASON]})
    assert isinstance(read, Frame)
    return Record.of_frame(read)


def _written_out(data: bytes, max_bytes: int) -> Iterator[Read]:
    for offered in Offered.model_validate_json(data).frames:
        yield _frame(offered)


def _frame(offered: OfferedFrame) -> Read:
    if offered.malformed:
        return offered.malformed
    try:
        positions = np.array(offered.positions, dtype=np.float64).reshape(-1, 3)
        cell = None if offered.cell is None else np.array(offered.cell, dtype=np.float64)
        if len(positions) != len(offered.positions):
            raise ValueError("positions must be three numbers per atom")
        return Frame(offered.species, positions, cell)
    except ValueError as error:
        return f"malformed: {error}"


def _archived(data: bytes, max_bytes: int) -> Iterator[Read]:
    """Frames of an `.npz` batch, whose unpacked size is checked first."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > max_bytes:
        raise ValueError(f"{size} bytes unpacked; at most {max_bytes} allowed")
    batch = Batch.loads(data)
    if batch.positions.ndim != 3 or not np.issubdtype(batch.positions.dtype, np.floating):
        raise ValueError("positions must be numbers of shape (n_frames, n_atoms, 3)")
    if batch.cells is not None and len(batch.cells) != len(batch):
        raise ValueError("the number of cells must equal the number of frames")
    for row in range(len(batch)):
        try:
            yield batch[row]
        except ValueError as error:
            yield f"malformed: {error}"


def _extended(data: bytes, max_bytes: int) -> Iterator[Read]:
    """Frames of an extended xyz file."""
    for atoms in iread(io.StringIO(data.decode()), index=":", format="extxyz"):
        try:
            yield from_ase(atoms)
        except ValueError as error:
            yield str(error)


READERS: dict[str, Callable[[bytes, int], Iterator[Read]]] = {
    "json": _written_out,
    "npz": _archived,
    "extxyz": _extended,
}
OPERATIONS: dict[str, Callable[..., Any]] = {"frames": frames}
