"""Typical mistakes in a fleet file: one line names the key, the value and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dpstream.services.coordinator.fleet.pools import PoolSettings, read_fleet, worker_variables
from dpstream.shared.errors import SpecError
from tests.support.command_line import run_command

SLURM = (
    "deployment: lab\npools:\n  campus:\n    engine: slurm\n    serves: [label.cp2k]\n    max: 4\n"
)
KUBERNETES = SLURM.replace("slurm", "kubernetes")
IMAGE = "    image: labeler:1\n"
MISTAKES = [
    ("", "the file is empty; `dpstream fleet init` writes a template"),
    (SLURM + "\tcpus: 4\n", "not valid YAML: line 7, column 1: a tab; indent with spaces"),
    (
        SLURM + "    partition: large\n",
        "pools.campus.partition: unknown key; did you mean 'slurm.partition'?",
    ),
    (
        SLURM + "    partiton: large\n",
        "pools.campus.partiton: unknown key; did you mean 'slurm.partition'?",
    ),
    (SLURM + "    cpu: 4\n", "pools.campus.cpu: unknown key; did you mean 'cpus'?"),
    (SLURM.replace("    max: 4\n", ""), "pools.campus.max: missing"),
    (SLURM.replace("4", "-4"), "pools.campus.max: -4: must be greater than or equal to 0"),
    (SLURM + "    min: 9\n", "pools.campus: min: 9: must be at most max (4)"),
    (
        SLURM + "    memory: 120GB\n",
        "pools.campus.memory: '120GB': must be a size such as 500M, 120G or 1T",
    ),
    (
        SLURM + "    memory: 120\n",
        "pools.campus.memory: 120: must be a size such as 500M, 120G or 1T",
    ),
    (
        SLURM + "    lifetime: 1 day\n",
        "pools.campus.lifetime: '1 day': must be a time such as 90s, 10m, 23h or 2d",
    ),
    (
        SLURM + "    slurm: {time_limit: 24:00:00}\n",
        "pools.campus.slurm.time_limit: 86400: must be a string; put it in quotes",
    ),
    (
        SLURM.replace("[label.cp2k]", "[label.cp2k, train]"),
        "pools.campus: serves: queues of labeler and trainer: a pool runs one service; "
        "give each its own pool",
    ),
    (
        SLURM.replace("[label.cp2k]", "[label.cp2k, label.cp2k-32-cores]"),
        "pools.campus: serves: queues of several classes of labelers; give each class its own pool",
    ),
    (
        SLURM + "    envs: {DPSTREAM_BROKER: 'amqp://labeler:x@broker'}\n",
        "pools.campus: envs: DPSTREAM_BROKER: a secret; it belongs in a file under source",
    ),
    (
        KUBERNETES + IMAGE + "    envs: {API_TOKEN: x}\n",
        "pools.campus: envs: API_TOKEN: a secret; it belongs in the Secret that "
        "kubernetes.secret names",
    ),
    (
        SLURM + "    envs: {DPSTREAM_LABELER_SLOTS: auto}\n",
        "pools.campus: envs: DPSTREAM_LABELER_SLOTS: set slots instead, by which workers are "
        "counted",
    ),
    (KUBERNETES, "pools.campus: image: missing; the engine kubernetes needs it"),
    (SLURM + IMAGE, "pools.campus: image: the engine slurm does not use it; remove it"),
    (
        KUBERNETES.replace("lab\n", "my_lab\n", 1) + IMAGE,
        "pools.campus: 'my_lab-campus': in names of Kubernetes Jobs use at most 51 lower-case "
        "letters, digits and -",
    ),
]


@pytest.mark.parametrize(("text", "line"), MISTAKES)
def test_a_mistake_gives_one_line(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as refusal:
        read_fleet(path)
    assert str(refusal.value) == f"{path}: {line}"


@pytest.mark.parametrize(
    ("serves", "gpus", "device"),
    [("train", 1, "cuda"), ("judge", 1, "cuda"), ("train", 0, None), ("label.gpaw", 1, None)],
)
def test_trainers_and_explorers_of_a_pool_with_gpus_demand_one(
    serves: str, gpus: int, device: str | None
) -> None:
    pool = PoolSettings(engine="slurm", serves=(serves,), gpus=gpus, max=1)
    assert worker_variables("gpu", pool).get("DPSTREAM_DEVICE") == device


def test_check_names_a_code_that_does_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(SLURM.replace("slurm", "process").replace("cp2k", "cp2"))
    status, printed, _ = run_command(monkeypatch, capsys, "fleet", "check", path)
    assert status == 0, "another installation may have it"
    expected = "label.cp2: no labeling code of this installation; did you mean 'cp2k'?"
    assert expected in printed.splitlines()


@pytest.mark.parametrize("command", ["status", "stop"])
def test_an_engine_that_does_not_answer_is_an_exit_status(
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """A script must not take its silence for an empty pool."""
    path = tmp_path / "fleet.yaml"
    pools = {
        "here": {"engine": "process", "serves": ["train"], "max": 1},
        "there": {
            "engine": "slurm",
            "serves": ["train"],
            "max": 1,
            "slurm": {"submit_prefix": ["/nowhere/ssh"]},
        },
    }
    path.write_text(yaml.safe_dump({"deployment": "lab", "pools": pools}))
    status, printed, _ = run_command(monkeypatch, capsys, "fleet", command, path)
    assert status == 1
    assert "there: squeue: " in printed


@pytest.mark.parametrize(
    ("serves", "slots", "given", "threads"),
    [
        (["train"], 1, {"DPSTREAM_TRAINER_SLOTS": "1"}, "16"),
        (["train"], 4, {"DPSTREAM_TRAINER_SLOTS": "4"}, "4"),
        (["label.cp2k", "label.vasp"], 3, {"DPSTREAM_LABELER_SLOTS": "3"}, "5"),
        (["label.cp2k"], 20, {"DPSTREAM_LABELER_SLOTS": "20"}, "1"),
        (["explore", "judge"], 1, {"DPSTREAM_EXPLORER_SLOTS": "1"}, "16"),
        (["explore", "judge"], 2, {"DPSTREAM_EXPLORER_SLOTS": "1"}, "16"),
        (["explore", "judge"], 5, {"DPSTREAM_EXPLORER_SLOTS": "4"}, "4"),
        (["explore"], 4, {"DPSTREAM_EXPLORER_SLOTS": "4"}, "4"),
        (["explore", "judge", "screen"], 2, {"DPSTREAM_EXPLORER_SLOTS": "1"}, "16"),
        (["explore", "judge", "screen"], 5, {"DPSTREAM_EXPLORER_SLOTS": "3"}, "5"),
        (["judge"], 2, {"DPSTREAM_EXPLORER_SLOTS": "2"}, "8"),
    ],
)
def test_workers_have_the_slots_of_their_pool_and_share_its_cores(
    serves: list[str], slots: int, given: dict[str, str], threads: str
) -> None:
    """In an explorer of several queues, `judge` and `screen` have one each."""
    pool = {"engine": "process", "serves": serves, "max": 1, "cpus": 16, "slots": slots}
    found = worker_variables("p", PoolSettings.model_validate(pool))
    assert {name: found[name] for name in found if name.endswith("_SLOTS")} == given
    assert found["DPSTREAM_THREADS"] == threads
