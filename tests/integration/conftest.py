"""Committees small enough to train while the tests wait, shared by the whole session."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from dpstream.shared.runtime.child_process import PINNED

SCRIPT = Path(__file__).parents[1] / "support" / "tiny_committees.py"


@pytest.fixture(scope="session")
def tiny_training(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `tiny_training.py` filled; kept in pytest's cache (`--cache-clear` empties
    it) under the digest of the script and the version of DeePMD-kit. Of two sessions, or workers of
    one, that miss it at the same time one trains, and the other waits for it."""
    recipe = SCRIPT.read_bytes() + version("deepmd-kit").encode()
    name = f"committees-{hashlib.sha256(recipe).hexdigest()[:12]}"
    kept = request.config.cache.mkdir(name) / "trained"
    with kept.with_name("lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            fresh = tmp_path_factory.mktemp("committees")
            _train(fresh)
            Path(shutil.copytree(fresh, kept.with_name(fresh.name))).replace(kept)
    return kept


def _train(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        env=os.environ | dict.fromkeys(PINNED, "1") | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


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
def alloy_committee(tiny_training: Path) -> list[Path]:
    """Two frozen models of Au4Cu4, periodic, cutoff 5 Å."""
    return _models(tiny_training, "copper-gold")


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
    from tests.support.trainer import TrainerHarness

    trainer = TrainerHarness(tmp_path_factory.mktemp("trainer"))
    trainer.resources.start()
    yield trainer
    trainer.resources.close()


@pytest.fixture(scope="session")
def by_fparam(trainer: Any) -> Any:
    """Frames of opposite labels, which a model tells apart by their fparam."""
    from tests.support.tiny_fits import fit_by_parameter

    return fit_by_parameter(trainer, "fparam")
