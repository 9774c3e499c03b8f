"""Endings of processes that a batch system lists without them, with a program in the place of its
commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpstream.services.coordinator.fleet.engines.schedulers import batch
from dpstream.services.coordinator.fleet.engines.schedulers.batch import BatchFleet
from dpstream.services.coordinator.fleet.engines.schedulers.scheduler import UNKNOWN
from dpstream.services.coordinator.fleet.pools import PoolSettings
from dpstream.shared.errors import FleetError
from dpstream.shared.ports import Launch

JOB = (
    "<job_list><JB_job_number>7</JB_job_number><full_job_name>dps.d.cpu.cpu-1</full_job_name>"
    "<state>{}</state><tasks>{}</tasks></job_list>"
)


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(batch, "time", found)
    return found


def fleet(folder: Path, engine: str = "sge") -> BatchFleet:
    """Each command runs the file of its name."""
    program = folder / "run"
    program.write_text(f'#!/bin/sh\ncd {folder}\nname=$1; shift; exec sh "./$name" "$@"\n')
    program.chmod(0o755)
    section = {"submit_prefix": [str(program)]}
    pool = PoolSettings.model_validate(
        {"engine": engine, "serves": ["train"], "max": 9, engine: section}
    )
    return BatchFleet("d", {"cpu": pool}, folder)


def list_jobs(folder: Path, *states: str) -> None:
    rows = "".join(JOB.format(state, number) for number, state in enumerate(states, 1))
    (folder / "qstat").write_text(f"echo '<job_info>{rows}</job_info>'\n")


def endings(found: BatchFleet) -> dict[str, int]:
    return {how: count for each in found.running() for how, count in each.ended.items()}


def test_what_grid_engine_goes_on_listing_has_ended_once(tmp_path: Path, clock: Clock) -> None:
    """`qstat -s z` keeps the last jobs for as long as no others end."""
    list_jobs(tmp_path, "z")
    (tmp_path / "qacct").write_text("printf 'taskid 1\\nexit_status 3\\n'\n")
    found = fleet(tmp_path)
    for _ in range(8):
        assert endings(found) == {"3": 1}
        clock.now += batch.REMEMBERED / 3
    list_jobs(tmp_path)
    assert endings(found) == {}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["echo no accounting >&2; exit 3", "exec sleep 9"])
def test_the_list_does_not_wait_for_the_records(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(batch, "SECONDS", 2.0)
    list_jobs(tmp_path, "r", "z")
    (tmp_path / "qacct").write_text(f"{command}\n")
    found = fleet(tmp_path)
    (launch,) = found.running()
    assert (launch.running, launch.ended) == (1, {})
    clock.now += batch.RECORDED + 1
    (launch,) = found.running()
    assert (launch.running, launch.ended) == (1, {UNKNOWN: 1})


@pytest.mark.parametrize(
    ("words", "is_over"),
    [
        ("Job <7[1]>: No matching job found", True),
        ("Job <7[1]>: Job has already finished", True),
        ("Job <7[1]> is not found", True),
        ("Job <7[1]>: Operation permission denied", False),
        ("sh: bkill: command not found", False),
        ("sh: 1: bkill: not found", False),
    ],
)
def test_a_command_of_lsf_that_is_missing_has_ended_nothing(
    tmp_path: Path, words: str, is_over: bool
) -> None:
    found = fleet(tmp_path, "lsf")
    (tmp_path / "bjobs").write_text("echo '7|1|dps.d.cpu.cpu-1[1]|RUN|-|-|-'\n")
    (tmp_path / "bkill").write_text(f"echo '{words}' >&2; exit 127\n")
    if is_over:
        found.end(Launch("cpu-1", "cpu"))
    else:
        with pytest.raises(FleetError, match="bkill"):
            found.end(Launch("cpu-1", "cpu"))
