"""How the lists of `squeue` are read, with a program in its place."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import typer

from dpstream.commands.fleet import status, stop
from dpstream.services.coordinator.fleet.engines.schedulers.batch import BatchFleet
from dpstream.services.coordinator.fleet.plan import name_of
from dpstream.services.coordinator.fleet.pools import PoolSettings
from dpstream.shared.ports import Launch


def fleet(folder: Path, *states: str) -> BatchFleet:
    """An array with one job in each of these states; `scancel` writes its arguments to a file."""
    rows = [f"7|{number}|dps.d.cpu.cpu-1|{state}|None|0|" for number, state in enumerate(states)]
    (folder / "rows").write_text("".join(f"{row}\n" for row in rows))
    program = folder / "slurm"
    program.write_text(
        f'#!/bin/sh\ncd {folder}\n[ "$1" = squeue ] && exec cat rows\n'
        'echo "$@" >>cancelled\n'
        'case "$*" in *cpu-1) [ -e refused ] && echo refused >&2 && exit 1;; esac; true\n'
    )
    program.chmod(0o755)
    pool = PoolSettings(
        engine="slurm",
        serves=("train",),
        max=9,
        slurm={"submit_prefix": [str(program)]},
    )
    return BatchFleet("d", {"cpu": pool}, folder)


def test_a_job_in_an_unknown_state_has_not_ended(tmp_path: Path) -> None:
    """Else its worker would be launched again, and the lease of its task would end."""
    (launch,) = fleet(tmp_path, "RUNNING", "POWER_UP_NODE", "OUT_OF_MEMORY", "PENDING").running()
    assert (launch.waiting, launch.running, dict(launch.ended)) == (1, 2, {"OUT_OF_MEMORY": 1})
    assert launch.gone == {"cpu-1-2"}


def fleet_file(folder: Path) -> Path:
    path = folder / "fleet.yaml"
    pool = {"engine": "slurm", "serves": ["train"], "max": 9}
    slurm = {"submit_prefix": [str(folder / "slurm")]}
    path.write_text(json.dumps({"deployment": "d", "pools": {"cpu": {**pool, "slurm": slurm}}}))
    return path


def test_a_launch_that_runs_too_long_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpstream.commands.fleet.console.width", 200)
    fleet(tmp_path, "RUNNING", "PENDING")
    file, mark = fleet_file(tmp_path), "older than lifetime and longest_task"
    status(file)
    assert mark in capsys.readouterr().out
    now = name_of("cpu", time.time())
    rows = (tmp_path / "rows").read_text()
    (tmp_path / "rows").write_text(rows.replace("cpu-1", now).replace("PENDING", "RUNNING"))
    status(file)
    said = capsys.readouterr().out
    assert now in said
    assert mark not in said


def test_an_engine_that_does_not_end_one_launch_ends_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet(tmp_path, "RUNNING")
    with (tmp_path / "rows").open("a") as rows:
        rows.write("8|0|dps.d.cpu.cpu-2|RUNNING|None|0|\n")
    (tmp_path / "refused").touch()
    file = fleet_file(tmp_path)
    with pytest.raises(typer.Exit) as ended:
        stop(file, now=True)
    assert ended.value.exit_code == 1
    said = capsys.readouterr().out
    assert "cpu cpu-1: scancel: refused" in said
    assert "--state=RUNNING --name=dps.d.cpu.cpu-1\n" in (tmp_path / "cancelled").read_text()
    assert "cpu cpu-2: 1 stopping" in said


def test_at_most_as_many_are_taken_back_as_asked_for(tmp_path: Path) -> None:
    found = fleet(tmp_path, "PENDING", "PENDING", "PENDING")
    assert found.retire(Launch("cpu-1", "cpu"), 0) == 0
    assert found.retire(Launch("cpu-1", "cpu"), 2) == 2
    assert (tmp_path / "cancelled").read_text() == "scancel 7_2 7_1\n"
