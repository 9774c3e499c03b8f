"""Reads the frames of a dataset, with their labels if those are to be used."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ase.data import chemical_symbols

from dpstream.inputs.read_labelled import SourceReport, read_labelled
from dpstream.inputs.read_structures import read_structures
from dpstream.inputs.reading.ase_files import read_dpdata
from dpstream.inputs.reading.deepmd_systems import is_mixed, systems_in
from dpstream.inputs.reading.patterns import find_grouped
from dpstream.inputs.reading.recognise import HDF5, format_of
from dpstream.shared.atoms.frames import (
    Frame,
    FrameLabel,
    as_frame,
    canonical,
    encode_labelled,
    frame_key,
)
from dpstream.shared.errors import SpecError, errors_at
from dpstream.shared.ports import Store
from dpstream.shared.spec import LabelledSet
from dpstream.shared.values import Recipe, label_uri

KEY = "DATASET"
ALL = tuple(chemical_symbols[1:])


@dataclass(frozen=True)
class SimplifyPool:
    """Canonical frames by key without duplicates, their numbers (from 0) in the dataset, their
    labels if those are used, and what became of each source of labels."""

    frames: Mapping[str, Frame]
    numbers: Mapping[str, list[int]]
    labels: Mapping[str, FrameLabel]
    reports: Sequence[SourceReport] = ()

    @property
    def elements(self) -> list[str]:
        return sorted({symbol for frame in self.frames.values() for symbol in frame.species})

    @property
    def digest(self) -> str:
        """SHA-256 of all frames and labels, independent of their order."""
        digest = hashlib.sha256()
        for key in sorted(self.labels):
            digest.update(encode_labelled(self.frames[key], self.labels[key], {}))
        return digest.hexdigest()

    def keep_labels(self, store: Store, recipe: Recipe, sources: Sequence[str]) -> None:
        """Add the labels to the store's cache for `recipe`."""
        about = {"code": recipe.code, "version": recipe.version, "recipe": recipe.digest}
        for key, label in self.labels.items():
            provenance = {**about, "frame": key, "sources": list(sources)}
            data = encode_labelled(self.frames[key], label, provenance)
            store.create(label_uri(recipe.digest, key), data)


def read_pool(
    sources: Sequence[str],
    folder: Path,
    type_map: Sequence[str],
    labelled: bool,
    columns: Mapping[str, str] = MappingProxyType({}),
) -> SimplifyPool:
    """Read all frames of files and folders, by name or glob relative to `folder`. `labelled`:
    require labels, in `columns` of those names. Raises `SpecError` naming what cannot be read or
    has no labels."""
    if not type_map:
        _check_named(sources, folder)
    symbols = type_map or ALL
    reports: list[SourceReport] = []
    items: Iterable[tuple[int, Frame, FrameLabel | None]]
    if labelled:
        sets = [LabelledSet.model_validate({"file": source, **columns}) for source in sources]
        items, reports = _labelled(sets, folder, symbols)
    else:
        items = _plain(sources, folder, symbols)
    frames: dict[str, Frame] = {}
    numbers: dict[str, list[int]] = {}
    labels: dict[str, FrameLabel] = {}
    for number, frame, label in items:
        key = frame_key(frame)
        numbers.setdefault(key, []).append(number)
        if frames.setdefault(key, frame) is frame and label is not None:
            labels[key] = label
    return SimplifyPool(frames, numbers, labels, reports)


def _check_named(sources: Sequence[str], folder: Path) -> None:
    """Raises `SpecError` for a DeePMD-kit system without chemical symbols."""
    for system in (s for path in _paths(sources, folder) for s in _systems(path)):
        if not (system / "type_map.raw").exists():
            raise SpecError(f"{KEY}: {system}: type_map.raw is missing; set type_map in --spec")


def _paths(sources: Sequence[str], folder: Path) -> Iterator[Path]:
    for source in sources:
        yield from find_grouped(source, folder, KEY)[0]


def _systems(path: Path) -> list[Path]:
    """DeePMD-kit's systems in a folder, at any depth."""
    return systems_in(path) if path.is_dir() else []


def _labelled(
    sources: Sequence[LabelledSet], folder: Path, symbols: Sequence[str]
) -> tuple[list[tuple[int, Frame, FrameLabel | None]], list[SourceReport]]:
    try:
        sets = read_labelled(sources, folder, symbols, KEY)
        return [(item.number, item.frame, item.label) for item in sets.items], sets.reports
    except SpecError as error:
        raise SpecError(
            f"{error} (--columns names numbers; if the dataset has no labels, give a --spec with "
            "labels.code)"
        ) from error


def _plain(
    sources: Sequence[str], folder: Path, symbols: Sequence[str]
) -> Iterator[tuple[int, Frame, None]]:
    total = itertools.count()
    for path in _paths(sources, folder):
        for number, atoms in enumerate(_structures(path, symbols)):
            where = f"{KEY}: {path}: frame {number}"
            with errors_at(where, ValueError):
                yield next(total), canonical(as_frame(atoms, where)).frame, None


def _structures(path: Path, symbols: Sequence[str]) -> Iterable[Any]:
    if path.is_file() and format_of(path) == HDF5:
        raise SpecError(
            f"{KEY}: {path}: HDF5 files are supported only if their own labels are used"
        )
    systems = _systems(path)
    if not systems:
        return read_structures(path)
    return [atoms for system in systems for atoms in read_dpdata(system, _form(system), symbols)]


def _form(system: Path) -> str:
    if is_mixed(system):
        raise SpecError(
            f"{KEY}: {system}: mixed-type systems are not supported here; give one system per "
            "composition"
        )
    return "deepmd/npy" if list(system.glob("set.*")) else "deepmd/raw"
