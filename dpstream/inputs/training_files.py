"""Reads the files that a spec names for training: models to start from, a repulsion table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from dpstream.inputs.reading.ase_files import one_line
from dpstream.inputs.reading.patterns import find_one
from dpstream.inputs.reading.recognise import unpacked
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
    path = find_one(model, folder, key)
    data = _bytes(path, key)
    if init.branch is not None:
        _check_branch(init.branch, path)
    return TrainingFile(path.suffix.lstrip("."), data)


def _check_branch(branch: str, path: Path) -> None:
    """Raises `SpecError` with the branches of the model in `path` if `branch` is none of them.
    Without PyTorch nothing is checked; the trainer will check."""
    try:
        import torch  # deferred: not needed to submit
    except ImportError:
        return
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model = state.get("model", state)["_extra_state"]["model_params"]
    except Exception as error:  # torch raises several kinds
        raise SpecError(
            f"training.init.model: {path}: not a checkpoint of DeePMD-kit: {one_line(error)}"
        ) from error
    heads = model.get("model_dict", {})
    names = {*heads, *chain.from_iterable(h.get("model_branch_alias", ()) for h in heads.values())}
    if branch not in names:
        has = f"it has {', '.join(sorted(names))}" if names else "it is not a multitask model"
        raise SpecError(f"training.init.branch: {branch}: not in {path}: {has}")


def _table(spec: Spec, folder: Path) -> Iterator[tuple[str, TrainingFile]]:
    repulsion = spec.training.repulsion
    if repulsion is None or repulsion.table == ZBL:
        return
    key = "training.repulsion.table"
    path = find_one(repulsion.table, folder, key)
    with unpacked(path) as plain:
        data = _bytes(plain, key)
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
