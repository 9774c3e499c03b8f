"""A campaign whose labels are clusters, cut from the periodic frames that it explores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import yaml
from ase.build import molecule

from dpstream.services.coordinator.ledger.ledger import read_messages
from dpstream.services.explorer.selection.clusters import cluster
from dpstream.shared.atoms.frames import Batch, Frame, canonical, from_ase, to_ase
from dpstream.shared.messages import CandidatesSelected, LabelsDone
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns.small_campaign import water_training
from tests.support.command_line import dpstream

RADIUS = 3.2
SPEC: dict[str, Any] = {
    "name": "clusters",
    "mode": "lockstep",
    "type_map": ["H", "O"],
    "systems": {"water": {"structures": ["box.extxyz"]}},
    "initial": {"data": ["init.extxyz"]},
    "training": water_training(200),
    "trust": {"low": 0.001, "high": 1000},
    "stages": [
        {
            "name": "liquid",
            "systems": ["water"],
            "temperatures": [50],
            "md": {"timestep": 0.0005, "steps": 8, "every": 2},
            "repeat": False,
        }
    ],
    "selection": {
        "policy": "uniform",
        "per_round": 4,
        "per_trajectory": 2,
        "min_separation": 0.0,
        "clusters": {"radius": RADIUS, "per_frame": 2, "separation": 2.0},
    },
    "labels": {"code": "tblite"},
    "audit": {"per_round": 0},
    "verification": {"nve_ps": 0.0},
}


def box(rng: np.random.Generator) -> Frame:
    """27 water molecules in a cubic box of 9.3 Å."""
    water = molecule("H2O")
    whole = water[:0]
    for site in np.ndindex(3, 3, 3):
        one = water.copy()
        one.rotate(float(rng.uniform(0, 360)), rng.normal(size=3))
        one.positions += 3.1 * np.array(site) + rng.normal(0, 0.05, (3, 3))
        whole += one
    whole.set_cell([9.3] * 3)
    whole.pbc = True
    return canonical(from_ase(whole)).frame


def write_inputs(folder: Path) -> Path:
    from tblite.ase import TBLite

    rng, labelled = np.random.default_rng(2), []
    ase.io.write(folder / "box.extxyz", to_ase(box(rng)))
    for atom in range(12):
        atoms = to_ase(cluster(box(rng), atom, RADIUS))
        atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
        atoms.get_forces()
        labelled.append(atoms)
    ase.io.write(folder / "init.extxyz", labelled)
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return path


@pytest.mark.soak
def test_clusters_of_periodic_frames_are_labelled_and_trained_on(tmp_path: Path) -> None:
    spec, root = write_inputs(tmp_path), tmp_path / "root"
    words = ("run", spec, "--root", root, "--workers", "trainer=1,explorer=1,labeler=1")
    said = " ".join(dpstream(*words, status=1).split())
    assert "was explored once" in said
    store = FolderStore(root)
    heard = list(read_messages(store, "clusters"))
    (chosen,) = (m for m in heard if isinstance(m, CandidatesSelected))
    assert len(chosen.labels) == 4
    frames = [Batch.loads(store.get(chosen.batches[c.batch].uri))[c.index] for c in chosen.labels]
    assert all(frame.cell is None for frame in frames)
    assert all(2 * f.species.count("O") == f.species.count("H") for f in frames)
    accepted = {a.key for m in heard if isinstance(m, LabelsDone) for a in m.accepted}
    assert accepted == {c.key for c in chosen.labels}
