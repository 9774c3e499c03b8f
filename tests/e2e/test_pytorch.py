"""A whole campaign where TensorFlow cannot be imported: every child process, PyTorch models,
trajectories of LAMMPS and in batches."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.gpu.campaign import write_campaign
from dpstream.services.coordinator.ledger.ledger import read_messages
from dpstream.shared.messages import MemberTrained
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns.small_campaign import finish, labelled, state_of
from tests.support.soak import SOAK

WARM = {"name": "warm", "systems": ["cuau"], "temperatures": [300]}
HOT = {"name": "hot", "systems": ["cuau"], "temperatures": [600], "engine": "batched"}
BRIEF = {
    "training": {"min_steps": 40, "max_steps": 40, "max_lengthen": 1, "final": {"steps_factor": 1}},
    "stages": [{**HOT, "temperatures": [300]}],
    "initial": {"perturb": {"copies": 6, "displace": 0.12}},
    "md": {"timestep": 0.002, "every": 10, "steps": 40, "trajectories": 2},
    "trust": {"low": 1e-6, "high": 1e6},
    "selection": {"policy": "random", "per_round": 2, "per_trajectory": 1},
    "audit": {"per_round": 0},
    "convergence": {"accurate_ratio": 0.0, "max_failed": 1.0, "rounds": 1},
    "verification": {"nve_ps": 0.02, "max_drift": 100.0},
}
"""Changes with which the campaign takes a minute instead of several."""


@pytest.mark.pytorch
@pytest.mark.timeout(3600 if SOAK else 600)
def test_a_campaign_converges_without_tensorflow(tmp_path: Path) -> None:
    assert find_spec("tensorflow") is None
    root = tmp_path / "root"
    output = finish(write_campaign(tmp_path, **({"stages": [WARM, HOT]} if SOAK else BRIEF)), root)
    assert "converged" in output
    assert labelled(state_of(root, "alloy"))
    assert "pytorch" in output
    trained = [m for m in read_messages(FolderStore(root), "alloy") if isinstance(m, MemberTrained)]
    assert all(member.model.uri.endswith(".pth") for member in trained)
