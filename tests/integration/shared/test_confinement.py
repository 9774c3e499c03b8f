"""Real programs and engines where the kernel lets them reach nothing but their folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk, molecule

from dpstream.shared.atoms.frames import Batch, Frame, canonical, from_ase
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.runtime.confinement import landlock
from dpstream.shared.runtime.scratch import private_folder
from tests.support.programs.labeling_programs import point, require, rule

pytestmark = pytest.mark.skipif(
    landlock.abi() < landlock.SCOPE_ABI, reason="needs Landlock ABI 6 (Linux 6.12)"
)
RANKS = "mpirun --allow-run-as-root --oversubscribe -np 2"
CP2K: dict[str, Any] = {"cutoff": 120, "basis": {"H": "SZV-MOLOPT-SR-GTH"}}
QE: dict[str, Any] = {
    "pseudopotentials": {"Al": "Al.pz-vbc.UPF"},
    "ecutwfc": 12,
    "kpoints": [2, 2, 2],
    "smearing": "gaussian",
    "degauss": 0.03,
}


@pytest.fixture(autouse=True)
def confined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DPSTREAM_CONFINE_READ")
    monkeypatch.delenv("DPSTREAM_CONFINE_WRITE")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """That of a task, in the private folder of a worker."""
    with private_folder(tmp_path / "scratch") as private:
        yield private / "tasks" / "task-1" / "run"


def hydrogen() -> Frame:
    atoms = molecule("H2", cell=[4.0, 4.0, 4.0], pbc=True)
    atoms.positions += 1.0
    return canonical(from_ase(atoms)).frame


def aluminium() -> Frame:
    return canonical(from_ase(bulk("Al", cubic=True))).frame


ALONE_AND_TWO_RANKS = pytest.mark.parametrize("launcher", ["", RANKS], ids=["alone", "mpirun"])


@ALONE_AND_TWO_RANKS
def test_cp2k(folder: Path, monkeypatch: pytest.MonkeyPatch, launcher: str) -> None:
    require("cp2k")
    use(monkeypatch, launcher, "cp2k", "cp2k.psmp")
    frame = hydrogen()
    outcome = point("cp2k", CP2K, frame, folder)
    assert rule(frame, outcome) is None, outcome.messages


@ALONE_AND_TWO_RANKS
def test_quantum_espresso(folder: Path, monkeypatch: pytest.MonkeyPatch, launcher: str) -> None:
    require("qe")
    use(monkeypatch, launcher, "qe", "pw.x")
    frame = aluminium()
    outcome = point("qe", QE, frame, folder)
    assert rule(frame, outcome) is None, outcome.messages


def use(monkeypatch: pytest.MonkeyPatch, launcher: str, code: str, program: str) -> None:
    if launcher and shutil.which("mpirun") is None:
        pytest.skip("no mpirun here")
    monkeypatch.setenv("DPSTREAM_LABELER_COMMANDS", f"{code}={launcher} {program}")


@pytest.mark.parametrize("mode", ["strict", pytest.param("site", marks=pytest.mark.soak)])
def test_models_are_evaluated_by_lammps_child(
    tmp_path: Path,
    methane_committee: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    monkeypatch.setenv("DPSTREAM_CONFINE", mode)
    with private_folder(tmp_path / "scratch") as private:
        child = ChildProcess("dpstream.services.explorer.lammps.child", private / "engine")
        models = [
            shutil.copy(model, private / f"{n}.pb") for n, model in enumerate(methane_committee)
        ]
        atoms = molecule("CH4")
        batch, result = private / "batch.npz", private / "result.npz"
        batch.write_bytes(Batch.of([from_ase(atoms)]).dumps())
        try:
            arguments = {"models": [str(model) for model in models]}
            files = {"batch": str(batch), "result": str(result)}
            child.call("evaluate", {**arguments, **files}, seconds=120)
        finally:
            child.kill()
        with np.load(result, allow_pickle=False) as found:
            assert np.isfinite(found["forces"]).all()
