"""Models through `DeepPotential` and through the `DeepPot` of any installed DeePMD-kit backend."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.gpu import checks
from tests.support.workers.nvml import has_gpus

PROGRAM = """
import json, sys
import numpy as np
from deepmd.infer import DeepPot
from dpstream.shared.atoms.deep_pot import DeepPotential

model, system = sys.argv[1:]
if model.endswith(".pth"):
    from dpstream.shared.atoms.tiny_model import evaluate_tiny_model
    evaluate_tiny_model(system)
    rng = np.random.default_rng(1)
    coordinates = rng.uniform(0, 3.5, (1100, 6)).reshape(1100, 2, 3)
    cells, types, batch = np.tile(7 * np.eye(3).ravel(), (1100, 1)), [0, 0], 1024
else:
    coordinates = np.tile(np.load(f"{system}/set.000/coord.npy"), (25, 1))[:300]
    cells = np.tile(np.load(f"{system}/set.000/box.npy"), (25, 1))[:300]
    types, batch = np.loadtxt(f"{system}/type.raw", dtype=int).tolist(), 256
own, plain = DeepPotential(model), DeepPot(model, auto_batch_size=False)
ours = own.eval(coordinates, cells, types)
shape = coordinates.reshape(len(cells), -1)
parts = [plain.eval(shape[row:row + batch], cells[row:row + batch], types)
         for row in range(0, len(cells), batch)]
theirs = [np.concatenate(part) for part in zip(*parts)]
largest = max(float(np.abs(a - b.reshape(a.shape)).max()) for a, b in zip(ours, theirs))
print(json.dumps({
    "frames": len(ours[0]),
    "largest": largest,
    "type_map": own.type_map == list(plain.get_type_map()),
    "cutoff": own.cutoff == float(plain.get_rcut()),
}))
"""


def compared(model: Path, folder: Path) -> dict[str, float]:
    line = [sys.executable, "-c", PROGRAM, str(model), str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.soak
@pytest.mark.skipif(find_spec("tensorflow") is None, reason="TensorFlow is not installed")
def test_tensorflow_gives_the_same_bits(
    periodic_committee: list[Path], periodic_system: Path
) -> None:
    """Eight atoms a frame: batches of 256 frames."""
    found = compared(periodic_committee[0], periodic_system)
    assert found == {"frames": 300, "largest": 0.0, "type_map": True, "cutoff": True}


@pytest.mark.soak
@pytest.mark.pytorch
@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
def test_pytorchs_native_list_gives_the_same_numbers(tmp_path: Path) -> None:
    """Two atoms a frame: batches of 1024 frames; DeepPot's own choice is vesin's list."""
    found = compared(tmp_path / "tiny-compressed.pth", tmp_path)
    assert found["largest"] < 1e-12
    assert (found["frames"], found["type_map"], found["cutoff"]) == (1100, True, True)


@pytest.mark.pytorch
@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
def test_the_checks_for_a_gpu_pass_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of `python -m benchmarks.gpu --check`."""
    has_gpus(monkeypatch)
    assert checks.run(tmp_path) == 0
    out = capsys.readouterr().out
    assert out.count("evaluated on cpu") == 2
    assert "FAILED" not in out
