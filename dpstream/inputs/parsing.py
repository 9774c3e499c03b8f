"""Reads labelled sets. Runs in the parser of a command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import ase.io
import dpdata

from dpstream.inputs.read_labelled import read_here, record_of
from dpstream.shared.atoms.records import Record
from dpstream.shared.runtime.parser import write_records

FORK = True
assert ase.io, dpdata  # imported here, not in every fork


def labelled(
    paths: Mapping[str, str],
    inside: str,
    type_map: Sequence[str],
    key: str,
    result: str,
) -> None:
    """Write the labelled frames of `paths`, absolute and by name, as records, after one with the
    warnings of their readers. Raises SpecError."""
    places = {name: Path(path) for name, path in paths.items()}
    with catch_warnings(record=True) as caught:
        simplefilter("always")
        items = list(read_here(places, inside, type_map, key))
    texts = [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
    write_records(result, [Record({"warnings": texts}), *map(record_of, items)])


OPERATIONS: dict[str, Callable[..., Any]] = {"labelled": labelled}
