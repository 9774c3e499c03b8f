"""Records of facts and arrays as plain bytes, in which a parser returns what it has read.

One line of JSON states the facts and the names and shapes of the arrays; their numbers follow as
64-bit floats. Reading needs no pickle and allocates no more than the bytes are long.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dpstream.shared.atoms.frames import PARAMETERS, Floats, Frame

MOST_AXES = 3


@dataclass(frozen=True, eq=False)
class Record:
    """Facts as JSON values, and arrays by name."""

    facts: Mapping[str, Any]
    arrays: Mapping[str, Floats] = field(default_factory=dict)

    @staticmethod
    def of_frame(frame: Frame, **facts: Any) -> Record:
        arrays = {"positions": frame.positions, **frame.parameters}
        if frame.cell is not None:
            arrays["cell"] = frame.cell
        return Record({**facts, "species": list(frame.species)}, arrays)

    def frame(self) -> Frame:
        """The inverse of `of_frame`. Raises ValueError if the record is not a frame."""
        species, arrays = self.facts.get("species"), self.arrays
        if not isinstance(species, list) or not all(isinstance(s, str) for s in species):
            raise ValueError("the species are not a list of symbols")
        if "positions" not in arrays:
            raise ValueError("no positions")
        own = {name: arrays[name] for name in PARAMETERS if name in arrays}
        return Frame(tuple(species), arrays["positions"], arrays.get("cell"), **own)


def pack(records: Iterable[Record]) -> bytes:
    head, numbers = [], []
    for record in records:
        arrays = {name: np.asarray(values, dtype="<f8") for name, values in record.arrays.items()}
        shapes = {name: values.shape for name, values in arrays.items()}
        head.append({"facts": dict(record.facts), "shapes": shapes})
        numbers += [values.tobytes() for values in arrays.values()]
    return b"".join([json.dumps(head).encode(), b"\n", *numbers])


def unpack(data: bytes) -> list[Record]:
    """The inverse of `pack`. Raises ValueError for anything else."""
    head, _, numbers = data.partition(b"\n")
    try:
        listed = json.loads(head)
        if not isinstance(listed, list):
            raise TypeError("no list")
        rows = [(dict(row["facts"]), dict(row["shapes"])) for row in listed]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"not a list of records: {error}") from error
    at, records = 0, []
    for facts, shapes in rows:
        arrays = {}
        for name, shape in shapes.items():
            count = _count(shape)
            if at + 8 * count > len(numbers):
                raise ValueError("fewer numbers than the shapes state")
            flat = np.frombuffer(numbers, dtype="<f8", count=count, offset=at)
            arrays[name] = flat.reshape(shape).astype(np.float64)
            at += 8 * count
        records.append(Record(facts, arrays))
    if at != len(numbers):
        raise ValueError("more numbers than the shapes state")
    return records


def _count(shape: Any) -> int:
    is_shape = isinstance(shape, list) and len(shape) <= MOST_AXES
    if not is_shape or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{shape!r:.100} is not the shape of an array")
    return math.prod(shape)
