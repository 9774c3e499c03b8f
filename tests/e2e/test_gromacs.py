"""A campaign whose frames come from GROMACS: judged by a real committee, labelled by GFN1-xTB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import yaml

from dpstream.services.coordinator.ledger.ledger import read_messages
from dpstream.shared.atoms.frames import Batch, min_distance, to_ase
from dpstream.shared.messages import CandidatesSelected, ChunkExplored, LabelsDone, TaskFailed
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns.small_campaign import water_training
from tests.support.command_line import dpstream
from tests.support.programs.gromacs import MDP, SPCE, needs_gromacs, water_box

EDGE = 3
PME = MDP.replace("reaction-field", "PME").replace("0.45", "0.43")
SPEC: dict[str, Any] = {
    "name": "water",
    "mode": "lockstep",
    "type_map": ["H", "O"],
    "systems": {"water": {"structures": ["box.extxyz"]}},
    "initial": {"perturb": {"copies": 3, "displace": 0.03}},
    "training": water_training(100),
    "trust": {"low": 0.001, "high": 1000},
    "stages": [
        {
            "name": "liquid",
            "systems": ["water"],
            "temperatures": [100, 200],
            "engine": {"kind": "gromacs", "mdp": "md.mdp", "topologies": {"water": "water.top"}},
            "md": {"timestep": 0.0005, "steps": 80, "every": 20, "chunk": 2},
            "repeat": False,
        }
    ],
    "selection": {"policy": "uniform", "per_round": 2, "min_separation": 0.0},
    "labels": {"code": "tblite", "settings": {"method": "GFN1-xTB"}},
    "audit": {"per_round": 0},
    "verification": {"nve_ps": 0.0},
}


def write_inputs(folder: Path) -> Path:
    ase.io.write(folder / "box.extxyz", to_ase(water_box(EDGE)))
    (folder / "md.mdp").write_text(PME)
    (folder / "water.top").write_text(SPCE.format(count=EDGE**3))
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return path


@needs_gromacs
@pytest.mark.soak
def test_frames_of_gromacs_are_judged_labelled_and_trained_on(tmp_path: Path) -> None:
    spec, root = write_inputs(tmp_path), tmp_path / "root"
    words = ("run", spec, "--root", root, "--workers", "trainer=1,explorer=1,labeler=1")
    said = " ".join(dpstream(*words, status=1).split())
    assert "GROMACS with the force field of the topology; the committee only judges" in said
    assert "was explored once" in said
    store = FolderStore(root)
    heard = list(read_messages(store, "water"))
    assert not any(isinstance(m, TaskFailed) for m in heard)
    counts = [m.counts for m in heard if isinstance(m, ChunkExplored)]
    assert [each.candidate for each in counts] == [4, 4], "every check of both temperatures"
    (chosen,) = (m for m in heard if isinstance(m, CandidatesSelected))
    frames = [Batch.loads(store.get(chosen.batches[c.batch].uri))[c.index] for c in chosen.labels]
    for frame in frames:
        assert frame.formula == "H54O27"
        assert 0.7 < min_distance(frame) < 1.1, "Å: an O-H bond"
        np.testing.assert_allclose(frame.cell, 9.3 * np.eye(3), atol=1e-5)
    accepted = {a.key for m in heard if isinstance(m, LabelsDone) for a in m.accepted}
    assert {c.key for c in chosen.labels} <= accepted
