"""Reads the files that a spec names for training: models to start from, a repulsion table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dpstream.inputs.read_labelled import find_files, one_line
from dpstream.services.trainer.checkpoints import pack_given
from dpstream.services.trainer.repulsion import check_table
from dpstream.services.trainer.training_input import BACKENDS, TABLE
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import ZBL, Init, Spec
from dpstream.shared.values import given_model

PACKED = ".zip"
"""Suffix of checkpoints as dpstream stores them."""


@dataclass(frozen=True)
class TrainingFile:
    """The content of a file, and the suffix that identifies its format, without the dot."""

    suffix: str
    data: bytes


def given_files(spec: Spec, folder: Path) -> dict[str, TrainingFile]:
    """Training files by name, read relative to `folder`. Raises `SpecError` naming key and file
    of an invalid one."""
    return {**dict(_models(spec, folder)), **dict(_table(spec, folder))}


def _models(spec: Spec, folder: Path) -> Iterator[tuple[str, TrainingFile]]:
    init = spec.training.init
    if init is None:
        return
    for number, model in enumerate(init.model):
        yield given_model(number), _model(init, model, spec, folder)


def _model(init: Init, model: str, spec: Spec, folder: Path) -> TrainingFile:
    key, backend = "training.init.model", BACKENDS[spec.training.backend]
    path = folder / Path(model).expanduser()
    if init.how == "init-model" and path.suffix != PACKED:
        try:
            return TrainingFile(PACKED.lstrip("."), pack_given(path, backend))
        except (ValueError, OSError) as error:
            raise SpecError(f"{key}: {path}: {one_line(error)}") from error
    suffixes = (PACKED,) if init.how == "init-model" else backend.given.get(init.how, ())
    if not suffixes:
        raise SpecError(
            f"training.init.how: {init.how}: not supported with {spec.training.backend}; "
            f"allowed: {', '.join(['init-model', *backend.given])}"
        )
    if path.suffix not in suffixes:
        raise SpecError(
            f"{key}: {path}: {init.how} with {spec.training.backend} requires a "
            f"{' or '.join(suffixes)} file"
        )
    return TrainingFile(path.suffix.lstrip("."), _bytes(path, key))


def _table(spec: Spec, folder: Path) -> Iterator[tuple[str, TrainingFile]]:
    repulsion = spec.training.repulsion
    if repulsion is None or repulsion.table == ZBL:
        return
    key = "training.repulsion.table"
    (path,) = find_files(repulsion.table, folder, key)[:1]
    data = _bytes(path, key)
    try:
        check_table(data.decode(), spec.type_map)
    except ValueError as error:  # not text, not numbers, or not a table for these elements
        raise SpecError(f"{key}: {path}: {one_line(error)}") from error
    yield TABLE, TrainingFile("table", data)


def _bytes(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SpecError(f"{key}: {path}: {error.strerror}") from error
