"""How the lists of `squeue` are read, with a program in its place."""

from __future__ import annotations

from pathlib import Path

from dpstream.services.coordinator.fleet.pools import PoolSettings
from dpstream.services.coordinator.fleet.slurm import SlurmFleet
from dpstream.shared.ports import Launch


def fleet(folder: Path, *states: str) -> SlurmFleet:
    """An array with one job in each of these states; `scancel` writes its arguments to a file."""
    rows = [f"7|{number}|dps.d.cpu.cpu-1|{state}|None|0|" for number, state in enumerate(states)]
    (folder / "rows").write_text("".join(f"{row}\n" for row in rows))
    program = folder / "slurm"
    program.write_text(
        f'#!/bin/sh\ncd {folder}\n[ "$1" = squeue ] && cat rows || echo "$@" >>cancelled\n'
    )
    program.chmod(0o755)
    pool = PoolSettings(
        engine="slurm",
        serves=("train",),
        max=9,
        slurm={"submit_prefix": [str(program)]},
    )
    return SlurmFleet("d", {"cpu": pool}, folder)


def test_a_job_in_an_unknown_state_has_not_ended(tmp_path: Path) -> None:
    """Else its worker would be launched again, and the lease of its task would end."""
    (launch,) = fleet(tmp_path, "RUNNING", "POWER_UP_NODE", "OUT_OF_MEMORY", "PENDING").running()
    assert (launch.waiting, launch.running, dict(launch.ended)) == (1, 2, {"OUT_OF_MEMORY": 1})
    assert launch.gone == {"cpu-1-2"}


def test_at_most_as_many_are_taken_back_as_asked_for(tmp_path: Path) -> None:
    found = fleet(tmp_path, "PENDING", "PENDING", "PENDING")
    assert found.retire(Launch("cpu-1", "cpu"), 0) == 0
    assert found.retire(Launch("cpu-1", "cpu"), 2) == 2
    assert (tmp_path / "cancelled").read_text() == "scancel 7_2 7_1\n"
