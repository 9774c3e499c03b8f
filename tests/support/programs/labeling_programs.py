"""Runs real labeling programs as the labeler does; tests are skipped if a program is not installed,
except in CI, where they fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpstream.services.labeler.acceptance import AcceptanceLimits, Outcome, check_after
from dpstream.services.labeler.attachments import attached
from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.codes.base import FileCode
from dpstream.services.labeler.recipes import make_recipe, read_files
from dpstream.services.labeler.runner import run_files
from dpstream.shared.atoms.frames import Floats, Frame
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import LabelSettings
from dpstream.shared.values import Recipe

CUSTOM: dict[str, Any] = {
    "code": "custom",
    "version": "1",
    "max_force": 100,
    "settings": {
        "program": "xtb-script",
        "method": "GFN2-xTB",
        "semi_empirical": True,
        "input": {"format": "ase:extxyz", "file": "in/frame.xyz"},
        "output": {"format": "ase:extxyz", "file": "label.xyz"},
        "end_marker": "done",
        "converged": "converged",
    },
}
"""Labels by `tblite_program.py`."""


def require(code: str) -> None:
    """Skip the test where `code` is not installed."""
    try:
        CODES[code].version({})
    except SpecError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def point(
    code: str, settings: dict[str, Any], frame: Frame, folder: Path, **labels: Any
) -> Outcome:
    """One single point in `folder`, which must not exist yet."""
    read, files = read_files(LabelSettings(code=code, settings=settings, **labels), Path())
    return point_of(make_recipe(read), files, frame, folder)


def point_of(recipe: Recipe, files: Mapping[str, bytes], frame: Frame, folder: Path) -> Outcome:
    """One single point in `folder`, which must not exist yet; `files` by their digests."""
    program = CODES[recipe.code]
    assert isinstance(program, FileCode)
    return run_files(
        program,
        recipe,
        frame,
        folder,
        files={each.file: files[each.sha256] for each in attached(recipe.settings)},
        cores=1,
        seconds=120,
        tick=lambda: None,
        read=read_here,
    )


def read_here(code: FileCode, folder: Path, frame: Frame, exit_status: int) -> Outcome:
    """As a labeler's parser, in this process."""
    return code.read_outputs(folder, frame, exit_status)


def rule(frame: Frame, outcome: Outcome) -> str | None:
    """The rule that an outcome breaks by the default caps."""
    broken = check_after(frame, outcome, AcceptanceLimits())
    return None if broken is None else broken.rule


def force_along(energy: Callable[[Frame], float], frame: Frame, way: Floats, h: float) -> float:
    """−dE along a displacement `way` `(n_atoms, 3)`, by central difference: Σ F·way."""
    ends = [energy(replace(frame, positions=frame.positions + step * way)) for step in (h, -h)]
    return -(ends[0] - ends[1]) / (2 * h)


def virial_along(energy: Callable[[Frame], float], frame: Frame, strain: Floats, h: float) -> float:
    """−dE along a strain `(3, 3)` of cell and atoms, by central difference: Σ W·strain."""
    assert frame.cell is not None
    ends = []
    for step in (h, -h):
        deformation = np.eye(3) + step * strain
        ends.append(
            energy(Frame(frame.species, frame.positions @ deformation, frame.cell @ deformation))
        )
    return -(ends[0] - ends[1]) / (2 * h)


def direction(shape: tuple[int, ...], seed: int) -> Floats:
    """Random numbers of unit norm."""
    values = np.random.default_rng(seed).normal(size=shape)
    return np.asarray(values / np.linalg.norm(values))


def recorded(*parts: str) -> Path:
    """Recorded outputs of programs; the test is skipped if their folder is not configured."""
    place = os.environ.get("DPSTREAM_TEST_DATA")
    if place is None:
        pytest.skip("DPSTREAM_TEST_DATA, the place of recorded outputs, is not set")
    return Path(place, *parts)
