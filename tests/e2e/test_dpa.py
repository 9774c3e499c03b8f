"""Whole campaigns with the smallest DPA-2 and DPA-3 models, whose layers pass messages between
neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from dpstream.services.coordinator.ledger.ledger import read_messages
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.shared.atoms.deviation import max_force_deviation
from dpstream.shared.atoms.frames import canonical, from_ase
from dpstream.shared.messages import MemberTrained
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns.small_campaign import finish, state_of, write_spec
from tests.support.workers.explorer import evaluated, run

ALLOY = bulk("Cu", cubic=True, a=3.85)
ALLOY.symbols[0] = "Au"
DESCRIPTORS: dict[str, dict[str, Any]] = {
    "dpa2": {
        "repinit": {
            "rcut": 3.8,
            "rcut_smth": 3.0,
            "nsel": 24,
            "neuron": [4, 8],
            "axis_neuron": 2,
            "tebd_dim": 4,
        },
        "repformer": {
            "rcut": 3.2,
            "rcut_smth": 2.5,
            "nsel": 14,
            "nlayers": 1,
            "g1_dim": 8,
            "g2_dim": 4,
            "axis_neuron": 2,
            "attn1_hidden": 8,
            "attn1_nhead": 1,
            "attn2_hidden": 4,
            "attn2_nhead": 1,
        },
    },
    "dpa3": {
        "repflow": {
            "n_dim": 8,
            "e_dim": 8,
            "a_dim": 4,
            "nlayers": 1,
            "e_rcut": 3.8,
            "e_rcut_smth": 3.0,
            "e_sel": 24,
            "a_rcut": 3.2,
            "a_rcut_smth": 2.5,
            "a_sel": 14,
            "axis_neuron": 2,
        },
    },
}


def spec(folder: Path, kind: str) -> Path:
    """One stage, one round, two members of 60 steps."""
    write(folder / "CuAu.vasp", ALLOY, sort=True)
    descriptor = {"type": kind, **DESCRIPTORS[kind]}
    changes: dict[str, Any] = {
        "type_map": ["Au", "Cu"],
        "systems": {"alloy": {"structures": ["CuAu.vasp"]}},
        "training": {
            "members": 2,
            "backend": "pytorch",
            "input": {"model": {"descriptor": descriptor, "fitting_net": {"neuron": [8, 8]}}},
            "min_steps": 60,
            "max_steps": 60,
            "max_lengthen": 1.0,
            "final": {"steps_factor": 1},
        },
        "md": {"timestep": 0.001, "every": 10, "steps": 40, "trajectories": 2},
        "trust": {"low": 1e-6, "high": 1e6},
        "stages": [{"name": "one", "systems": ["alloy"], "temperatures": [300]}],
        "selection": {"per_round": 2, "per_trajectory": 1},
        "labels": {"code": "ase", "settings": {"calculator": "ase.calculators.emt.EMT"}},
        "audit": {"per_round": 0},
        "verification": {"nve_ps": 0.02, "max_drift": 100.0},
    }
    return write_spec(folder, **changes)


@pytest.mark.pytorch
@pytest.mark.soak
@pytest.mark.parametrize("kind", DESCRIPTORS)
def test_a_campaign_converges(tmp_path: Path, kind: str) -> None:
    output = finish(spec(tmp_path, kind), tmp_path / "root")
    assert "less than the model's cutoff" not in output
    assert state_of(tmp_path / "root").labels.computed == 8
    store = FolderStore(tmp_path / "root")
    trained = [m for m in read_messages(store, "small") if isinstance(m, MemberTrained)]
    assert len(trained) == 3
    assert not any(member.compressed for member in trained)
    assert all(np.isfinite(member.train.force) for member in trained)
    models = [tmp_path / f"{number}.pth" for number in range(2)]
    for path, member in zip(models, trained, strict=False):
        path.write_bytes(store.get(member.model.uri))
    _lammps_and_deep_pot_agree(tmp_path, models)


def _lammps_and_deep_pot_agree(folder: Path, models: list[Path]) -> None:
    """On the deviation of two members in a few steps of dynamics."""
    frame = canonical(from_ase(ALLOY)).frame
    resources = ExplorerResources(folder / "engine")
    try:
        found = run(resources.engine, folder / "md", frame, models, checks=4)
        judged = evaluated(resources.engine, folder, models, found.batch(frame))
    finally:
        resources.close()
    deviation = max_force_deviation(judged["forces"])
    np.testing.assert_allclose(found.arrays["devi_f"], deviation, rtol=2e-4, atol=2e-5)
