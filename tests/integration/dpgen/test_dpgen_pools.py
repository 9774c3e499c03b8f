"""Pools from a machine file of DP-GEN in a real Slurm: accepted, and with all their MPI ranks."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from dpstream.services.coordinator.fleet.engines.schedulers.batch import BatchFleet
from dpstream.services.coordinator.fleet.pools import read_fleet
from tests.support.command_line import run_command
from tests.support.dpgen import dpgen_methane
from tests.support.servers.slurm_server import SlurmServer

pytestmark = pytest.mark.server
RANKS = 4
PARTS = {
    "command": f"mpirun -np {RANKS} vasp_std",
    "machine": {"batch_type": "Slurm", "context_type": "LocalContext", "local_root": "./"},
    "resources": {
        "number_node": 1,
        "cpu_per_node": RANKS,
        "queue_name": "short",
        "group_size": 1,
        "custom_flags": ["#SBATCH --mem=500M", "#SBATCH -t 00:10:00"],
        "envs": {"OMPI_ALLOW_RUN_AS_ROOT": 1, "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": 1},
        "prepend_script": ["export RANK_FILE=$PWD/ranks"],
    },
}


def test_programs_of_an_imported_pool_start_all_their_ranks(
    slurm_server: SlurmServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One rank per core with `srun`, and with `mpirun`, which counts the tasks of the job."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_server.configuration))
    param = dpgen_methane.write_files(tmp_path, dpgen_methane.param())
    machine, fleet = tmp_path / "machine.json", tmp_path / "fleet.yaml"
    machine.write_text(json.dumps({"fp": PARTS}))
    words = ("import", param, machine, "--fleet", fleet, "-o", tmp_path / "campaign.yaml")
    assert run_command(monkeypatch, capsys, *words)[0] == 0
    status, printed, _ = run_command(monkeypatch, capsys, "fleet", "check", fleet)
    assert status == 0, printed
    assert "accepted" in printed

    launchers = ["srun", *(["mpirun"] if shutil.which("mpirun") else [])]
    script = "".join(f"{each} bash -c 'echo {each} >> $RANK_FILE'; " for each in launchers)
    pool = read_fleet(fleet).pools["labelers"]
    pool = pool.model_copy(update={"command": ("bash", "-c", script)})
    engine = BatchFleet("ranks", {"labelers": pool}, tmp_path)
    engine.launch("labelers", 1, "labelers-1")
    deadline = time.monotonic() + 60
    while not engine.running() or any(launch.alive for launch in engine.running()):
        assert time.monotonic() < deadline, engine.running()
        time.sleep(0.2)
    ranks = (tmp_path / "ranks").read_text().split()
    assert sorted(ranks) == sorted(launchers * RANKS), list(tmp_path.glob("*.log"))
