"""Committees small enough to train while the tests wait, shared by the whole session."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.engine import PINNED


@pytest.fixture(scope="session")
def tiny_training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `tiny_training.py` filled."""
    folder = tmp_path_factory.mktemp("committees")
    script = Path(__file__).with_name("tiny_training.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env=os.environ | dict.fromkeys(PINNED, "1") | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def _models(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"{name}-*/frozen.pb"))


@pytest.fixture(scope="session")
def methane_committee(tiny_training: Path) -> list[Path]:
    """Four frozen models of CH4 in vacuum, type map C H, cutoff 4 Å."""
    return _models(tiny_training, "methane")


@pytest.fixture(scope="session")
def periodic_committee(tiny_training: Path) -> list[Path]:
    """Three frozen models of Al8, periodic, cutoff 5 Å."""
    return _models(tiny_training, "aluminium")


@pytest.fixture(scope="session")
def methane_system(tiny_training: Path) -> Path:
    """The labelled frames behind `methane_committee` (GFN2-xTB), as a DeePMD system."""
    return tiny_training / "methane"


@pytest.fixture(scope="session")
def periodic_system(tiny_training: Path) -> Path:
    """The labelled frames behind `periodic_committee` (EMT), as a DeePMD system."""
    return tiny_training / "aluminium"
