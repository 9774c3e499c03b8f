"""Packs a training's checkpoint into one object, and unpacks it.

A packed checkpoint is a zip archive of DeePMD-kit's files, the loss curve so far and the input with
all defaults filled in, so that another worker can resume the training or start from its weights.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpstream.services.trainer.training_input import CHECKPOINT, LCURVE, RESOLVED, Backend
from dpstream.shared.runtime.confinement.files import read_inside

STEP = re.compile(rf"{re.escape(CHECKPOINT)}-(\d+)")
MOST_EXPANSION = 100
"""Bytes unpacked for each byte of an archive; weights and moments have far fewer."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Timestamp of all entries: equal files give equal archives."""


def newest_step(folder: Path, backend: Backend) -> int | None:
    """Step of the newest complete checkpoint in `folder`."""
    link = folder / backend.newest
    if not link.exists():
        return None
    match = STEP.match(link.resolve().name)
    return None if match is None else int(match.group(1))


def pack(folder: Path, backend: Backend, step: int) -> bytes:
    """The checkpoint of `step` as one zip archive. Raises as `read_inside`."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in _files(folder, backend.checkpoint(step)):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), EPOCH)
            data = read_inside(path, folder)
            if path.name == LCURVE:
                data = _curve_until(data, step)
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED, 1)
    return out.getvalue()


def _curve_until(curve: bytes, step: int) -> bytes:
    """The loss curve up to `step`: the training may have continued since the checkpoint."""
    lines = curve.splitlines(keepends=True)
    return b"".join(line for line in lines if line[:1] == b"#" or int(line.split()[0]) <= step)


def _files(folder: Path, name: str) -> Iterator[Path]:
    found = [folder / name, *folder.glob(f"{name}.*"), *(folder / name).rglob("*")]
    yield from sorted(path for path in found if path.is_file())
    for extra in (LCURVE, RESOLVED):
        if (folder / extra).exists():
            yield folder / extra


def unpack(data: bytes, folder: Path) -> int:
    """Unpack a checkpoint into `folder` and return its step. Raises ValueError if it is invalid:
    it may come from anybody who may write results."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                if not (STEP.match(name) or name in (LCURVE, RESOLVED)):
                    raise ValueError(f"it contains {name!r}")
            if sum(entry.file_size for entry in archive.infolist()) > MOST_EXPANSION * len(data):
                raise ValueError(f"it unpacks to more than {MOST_EXPANSION} times its size")
            archive.extractall(folder)
    except OSError:
        raise
    except Exception as error:  # zipfile raises errors of many kinds for a damaged archive
        raise ValueError(f"not a packed checkpoint: {error}") from error
    return step_in(folder)


def step_in(folder: Path) -> int:
    """Step of the checkpoint unpacked in `folder`. Raises ValueError if there is none."""
    for path in sorted(folder.iterdir()):
        match = STEP.match(path.name)
        if match is not None:
            return int(match.group(1))
    raise ValueError("not a packed checkpoint: it contains no model")


def model_section(folder: Path) -> dict[str, Any] | None:
    """Model section of the unpacked checkpoint, with `sel` counted: its weights fit no other model.
    None if not recorded."""
    resolved = folder / RESOLVED
    if not resolved.exists():
        return None
    model: dict[str, Any] = json.loads(resolved.read_text())["model"]
    return model


def pack_given(prefix: Path, backend: Backend) -> bytes:
    """Pack a user's checkpoint as that of step 0. Raises ValueError if there is none."""
    name = backend.checkpoint(0)
    prefix = prefix.with_name(prefix.name.removesuffix(backend.ending))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in _own_files(prefix, backend):
            own = path.relative_to(prefix.parent).as_posix().removeprefix(prefix.name)
            entry = zipfile.ZipInfo(name + own.removeprefix(backend.ending), EPOCH)
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED, 1)
        if not archive.namelist():
            raise ValueError("no checkpoint has this name")
    return out.getvalue()


def _own_files(prefix: Path, backend: Backend) -> list[Path]:
    """Files of a checkpoint: for TensorFlow `prefix.index` and others, else one file or a
    folder."""
    if not backend.ending:
        return sorted(path for path in prefix.parent.glob(f"{prefix.name}.*") if path.is_file())
    whole = prefix.with_name(prefix.name + backend.ending)
    return sorted(path for path in (whole, *whole.rglob("*")) if path.is_file())
