"""The lines of docs/first-mistakes.md are those that are printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpstream.new_campaign.folder import create
from dpstream.new_campaign.short import given, short_spec
from tests.support.command_line import run_command

PAGE = Path(__file__).parents[3] / "docs" / "first-mistakes.md"
CHANGES: dict[str, dict[str, Any]] = {
    "a misspelt key": {"turst": {"low": 0.1, "high": 0.3}},
    "a misspelt value": {"md": {"ensemble": "ntp"}},
    "trust levels in meV/Å": {"trust": {"low": 100, "high": 300}},
    "a time step in fs": {"md": {"ensemble": "npt", "timestep": 2}},
    "trust levels swapped": {"trust": {"low": 0.3, "high": 0.1}},
    "a symbol in capitals": {"type_map": ["CU"]},
    "a code that does not exist": {"labels": {"code": "vaps"}},
    "a calculator that does not exist": {
        "labels": {"code": "ase", "settings": {"calculator": "ase.calculators.emt.ETM"}}
    },
}
"""By the first column of the page."""
STRUCTURES: dict[str, dict[int, str]] = {
    "a lattice ten times too large": {2: "36.1 0 0", 3: "0 36.1 0", 4: "0 0 36.1"},
    "the same in a POSCAR": {5: "CU"},
    "a damaged line of a POSCAR": {8: "0.0 0.5"},
}
"""Lines of a POSCAR and what stands there instead."""


def printed(name: str) -> str:
    (line,) = re.findall(rf"(?m)^\| {re.escape(name)} \| `([^`]*)`", PAGE.read_text())
    return str(line)


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copper = given([], ["Cu"])
    path = create("cu", tmp_path, short_spec("cu", copper, "ase", [], None), copper.files)
    monkeypatch.chdir(path.parent)
    return path.rename(path.with_name("SPEC"))


def line_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    status, out, err = run_command(monkeypatch, capsys, "validate", "SPEC")
    assert (status, out) == (2, "")
    return err.removeprefix("dpstream: ").rstrip("\n")


@pytest.mark.parametrize("name", CHANGES)
def test_of_a_spec(
    spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    spec.write_text(yaml.safe_dump({**yaml.safe_load(spec.read_text()), **CHANGES[name]}))
    assert line_of(monkeypatch, capsys) == printed(name)


@pytest.mark.parametrize("name", STRUCTURES)
def test_of_a_structure(
    spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file = spec.parent / "structures" / "Cu.vasp"
    lines = dict(enumerate(file.read_text().splitlines())) | STRUCTURES[name]
    file.write_text("\n".join(lines.values()) + "\n")
    assert line_of(monkeypatch, capsys) == printed(name)
