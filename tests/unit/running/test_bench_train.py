"""What `dpstream bench train` measures on, and the step at which a training is."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpstream.running.bench_train import Slot, devices
from dpstream.services.trainer.training_input import LCURVE
from dpstream.shared.errors import SpecError
from tests.support.workers.nvml import A100, H200, has_gpus


@pytest.mark.parametrize(
    ("setting", "measured"),
    [
        ("", ["cpu", H200.name]),
        ("cuda:1", ["cpu", A100.name]),
        ("cpu", ["cpu"]),
    ],
)
def test_the_gpu_is_that_of_a_trainer(
    monkeypatch: pytest.MonkeyPatch, setting: str, measured: list[str]
) -> None:
    has_gpus(monkeypatch, H200, A100)
    monkeypatch.setenv("DPSTREAM_DEVICE", setting)
    assert ["cpu" if each.gpu is None else each.gpu.name for each in devices()] == measured


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    has_gpus(monkeypatch)
    monkeypatch.setenv("DPSTREAM_DEVICE", "cuda")
    with pytest.raises(SpecError, match="reports no GPU"):
        devices()


def test_the_step_of_a_training_is_that_of_its_last_line(tmp_path: Path) -> None:
    slot = object.__new__(Slot)  # without an engine
    slot.folder, slot.error = tmp_path, None
    assert slot.step == 0
    (tmp_path / LCURVE).write_text("# step  rmse_trn  lr\n  0  1.6  0.0e+00\n  20  1.2  1.0e-03\n")
    assert slot.step == 20
