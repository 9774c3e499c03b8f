"""A methane campaign that takes seconds, and the real command that runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from dpstream.services.coordinator.state import State
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns.archived import frames_of, whole_state
from tests.support.soak import SOAK

METHANE = """5
methane
C 0.000 0.000 0.000
H 0.629 0.629 0.629
H -0.629 -0.629 0.629
H -0.629 0.629 -0.629
H 0.629 -0.629 -0.629
"""

COLD = {"name": "cold", "systems": ["methane"], "temperatures": [50]}
WARM = {"name": "warm", "systems": ["methane"], "temperatures": [300]}
STAGES = [COLD, WARM] if SOAK else [COLD]
CREW = () if SOAK else ("--workers", "trainer=1,explorer=1,labeler=1")
"""Every engine needs seconds of both cores to start."""


def tiny_training(steps: int, neurons: list[int]) -> dict[str, Any]:
    """Training settings of two members for methane that take a second or two."""
    # Embedding nets per element instead of per pair: the graph is built in two thirds of the time.
    size = {"neuron": [4, 8], "axis_neuron": 2, "type_one_side": True}
    descriptor = {"rcut": 4.0, "sel": [1, 4], **size}
    return {
        "members": 2,
        "input": {
            "model": {"descriptor": descriptor, "fitting_net": {"neuron": neurons}},
            "training": {"disp_freq": steps},
        },
        "min_steps": steps,
        "max_steps": steps,
        "max_lengthen": 1.0,
        "compress": False,
        "final": {"steps_factor": 1},
    }


def write_spec(folder: Path, **changes: Any) -> Path:
    """A campaign of one short stage, in `make soak` two, that finds candidates in every round."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "methane.xyz").write_text(METHANE)
    data: dict[str, Any] = {
        "name": "small",
        "mode": "lockstep",
        "type_map": ["C", "H"],
        "systems": {"methane": {"structures": ["methane.xyz"]}},
        "initial": {"perturb": {"copies": 6, "displace": 0.1}},
        "training": tiny_training(150, [16, 16]),
        "md": {"timestep": 0.0005, "steps": 200, "every": 10, "trajectories": 3, "chunk": 5},
        "trust": {"low": 0.4, "high": 100.0},
        "stages": STAGES,
        "selection": {"per_round": 4, "per_trajectory": 2, "min_separation": 0.02},
        "labels": {"bundle": 2},
        "audit": {
            "per_round": 4,
            "min_frames": 4,
            "min_trajectories": 2,
            "force_rmse": 1000.0,
            "error_target": 100.0,
            "exceed": 1.0,
        },
        "convergence": {"accurate_ratio": 0.0, "max_failed": 1.0, "rounds": 1},
        "budget": {"rounds": 3},
        "streaming": {"retrain_after": 3},
        "verification": {"nve_ps": 0.2, "max_drift": 100.0},
    }
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump({**data, **changes}))
    return path


def start(spec: Path, root: Path, *options: str) -> subprocess.Popen[str]:
    """`dpstream run`, in a session of its own."""
    words = ["run", str(spec), "--root", str(root), *CREW, *options]
    return subprocess.Popen(
        [sys.executable, "-m", "dpstream", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "COLUMNS": "120"},
    )


def finish(spec: Path, root: Path, *options: str) -> str:
    """Run to the end; returns the output. Fails unless the campaign converges."""
    process = start(spec, root, *options)
    output, _ = process.communicate(timeout=3600 if SOAK else 400)
    assert process.returncode == 0, output
    return output


def kill_tree(process: subprocess.Popen[str]) -> None:
    """SIGKILL the command; its engines go with it."""
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def state_of(root: Path, campaign: str = "small") -> State:
    return whole_state(FolderStore(root), campaign)


def labelled(state: State) -> dict[str, str]:
    """Labelled frames by key, with what they are for."""
    frames = frames_of(state).items()
    return {key: frame.purpose for key, frame in frames if frame.status == "labelled"}


def children_of(pid: int) -> list[int]:
    """All descendants of a process."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    direct = [int(word) for word in found.stdout.split()]
    return direct + [grandchild for child in direct for grandchild in children_of(child)]


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def water_training(steps: int) -> dict[str, Any]:
    """Two small members for water, trained for so many steps."""
    descriptor = {"rcut": 4.0, "sel": [30, 15], "neuron": [4, 8], "axis_neuron": 2}
    model = {"descriptor": descriptor, "fitting_net": {"neuron": [16, 16]}}
    return {"members": 2, "min_steps": steps, "max_steps": steps, "input": {"model": model}}
