"""Reads labelled sets. Runs in the parser of a command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import ase.io
import dpdata

from dpstream.inputs.read_labelled import read_here, record_of
from dpstream.inputs.reading.sets import SetOptions
from dpstream.shared.atoms.records import Record
from dpstream.shared.runtime.parser import write_records

FORK = True
assert ase.io, dpdata  # imported here, not in every fork


def labelled(
    paths: Mapping[str, str],
    inside: str,
    columns: Mapping[str, str],
    type_map: Sequence[str],
    own_types: bool,
    key: str,
    name: str,
    result: str,
) -> None:
    """Write the labelled frames of `paths`, absolute and by name, as records, after one with the
    report on them, which includes the warnings of the readers. Raises SpecError."""
    places = {file: Path(path) for file, path in paths.items()}
    options = SetOptions(inside, columns, type_map, own_types)
    with catch_warnings(record=True) as caught:
        simplefilter("always")
        report, items = read_here(places, options, key, name)
    texts = [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
    told = {**report.told, **{text: texts.count(text) for text in texts}}
    facts = {"report": report.model_copy(update={"told": told}).model_dump(mode="json")}
    write_records(result, [Record(facts), *map(record_of, items)])


OPERATIONS: dict[str, Callable[..., Any]] = {"labelled": labelled}
