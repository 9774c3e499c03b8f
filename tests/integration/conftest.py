"""Tiny committees, and trainers that stay warm, shared by the whole session."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpstream.shared.runtime.child_process import PINNED
from tests.support.soak import SOAK

TESTS = Path(__file__).parents[1]
SCRIPT = TESTS / "support" / "models" / "tiny_committees.py"
ARCHIVE = TESTS / "data" / "committees" / "committees.tar.xz"
TORCH_SCRIPT = TESTS / "support" / "models" / "tiny_torch_committees.py"
TORCH_ARCHIVE = ARCHIVE.with_name("torch.tar.xz")


@pytest.fixture(scope="session")
def tiny_training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tiny_committees.py` writes: unpacked, in `make soak` made anew."""
    folder = tmp_path_factory.mktemp("tiny")
    if SOAK:
        _train(SCRIPT, folder)
        return folder
    return _unpacked(ARCHIVE, folder) / "committees"


@pytest.fixture(scope="session")
def tiny_torch_training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tiny_torch_committees.py` writes: unpacked, in `make soak` made anew."""
    folder = tmp_path_factory.mktemp("torch")
    if SOAK:
        systems = _unpacked(ARCHIVE, folder) / "committees"
        _train(TORCH_SCRIPT, systems)
        return systems
    return _unpacked(TORCH_ARCHIVE, folder) / "torch"


def _unpacked(path: Path, folder: Path) -> Path:
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    return folder


def _train(script: Path, folder: Path) -> None:
    paths = {"PYTHONPATH": str(TESTS.parent), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env=os.environ | dict.fromkeys(PINNED, "1") | paths,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _models(folder: Path, name: str, suffix: str = ".pb") -> list[Path]:
    return sorted(folder.glob(f"{name}-*/frozen{suffix}"))


@pytest.fixture(scope="session")
def methane_committee(tiny_training: Path) -> list[Path]:
    """Four frozen models of CH4 in vacuum, type map C H, cutoff 4 Å."""
    return _models(tiny_training, "methane")


@pytest.fixture(scope="session")
def periodic_committee(tiny_training: Path) -> list[Path]:
    """Three frozen models of Al8, periodic, cutoff 5 Å."""
    return _models(tiny_training, "aluminium")


@pytest.fixture(scope="session")
def alloy_committee(tiny_training: Path) -> list[Path]:
    """Two frozen models of Au4Cu4, periodic, cutoff 5 Å."""
    return _models(tiny_training, "copper-gold")


@pytest.fixture(scope="session")
def alloy_torch_committee(tiny_torch_training: Path) -> list[Path]:
    """Two PyTorch models of Au4Cu4, periodic, cutoff 5 Å."""
    return _models(tiny_torch_training, "copper-gold", ".pth")


@pytest.fixture(scope="session")
def methane_torch_committee(tiny_torch_training: Path) -> list[Path]:
    """Two PyTorch models of CH4 in vacuum, cutoff 4 Å."""
    return _models(tiny_torch_training, "methane", ".pth")


@pytest.fixture(scope="session")
def methane_system(tiny_training: Path) -> Path:
    """The labelled frames behind `methane_committee` (GFN2-xTB), as a DeePMD system."""
    return tiny_training / "methane"


@pytest.fixture(scope="session")
def periodic_system(tiny_training: Path) -> Path:
    """The labelled frames behind `periodic_committee` (EMT), as a DeePMD system."""
    return tiny_training / "aluminium"


@pytest.fixture(scope="session")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A `TrainerHarness` for trainings, its engine warm."""
    from tests.support.workers.trainer import TrainerHarness

    trainer = TrainerHarness(tmp_path_factory.mktemp("trainer"))
    trainer.resources.start()
    yield trainer
    trainer.resources.close()


@pytest.fixture(scope="session")
def by_fparam(trainer: Any) -> Any:
    """Frames of opposite labels, which a model tells apart by their fparam."""
    from tests.support.models.tiny_fits import fit_by_parameter

    return fit_by_parameter(trainer, "fparam")
