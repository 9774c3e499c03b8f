"""`dpstream bench train` trains for real on this machine, and the plan shows what it found."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from dpstream.services.trainer.training_input import BACKENDS
from tests.support.campaigns.small_campaign import write_spec
from tests.support.command_line import run_command


@pytest.mark.soak
def test_every_installed_backend_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DPSTREAM_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("COLUMNS", "400")
    spec, figures = write_spec(tmp_path), tmp_path / "figures.json"
    line = ("bench", "train", str(spec), "--seconds", "1", "--json", str(figures))
    status, out, err = run_command(monkeypatch, capsys, *line)
    assert status == 0, err
    installed = {name for name, backend in BACKENDS.items() if find_spec(backend.package)}
    speeds = json.loads(figures.read_text())["speeds"]
    assert {speed["backend"] for speed in speeds if speed["device"] == "cpu"} == installed
    for speed in speeds:
        assert speed["slots"] == 1, "the time does not suffice for more"
        assert 1e-4 < speed["step"] < 5.0
        assert speed["start"] > 0
        assert speed["finish"] > 0
    assert out.count("*") == 1, "the fastest is marked"
    assert not psutil.Process().children(recursive=True)
    status, out, err = run_command(monkeypatch, capsys, "validate", str(spec))
    assert status == 0, err
    assert "a training takes about " in out
