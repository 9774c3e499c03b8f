"""`dpstream simplify` on a set that says the same thing many times over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from tblite.ase import TBLite

from dpstream.services.coordinator.ledger.ledger import read_messages
from dpstream.shared.atoms.deviation import max_force_deviation
from dpstream.shared.messages import LabelsDone, RoundJudged
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns.small_campaign import tiny_training

SHAKEN, COPIES = (0.05,) * 10 + (0.12,) * 2, 5
"""Å"""
SETTINGS: dict[str, Any] = {
    "name": "small",
    "type_map": ["C", "H"],
    "trust": {"low": 2.5, "high": 50.0},
    "initial": {"pick": 4},
    "selection": {"per_round": 10},
    "training": tiny_training(200, [16, 16]),
}


def repetitive() -> list[Any]:
    """Methane shaken a dozen times, twice hard, each time with copies that differ by a few mÅ."""
    rng, frames = np.random.default_rng(7), []
    for stdev in SHAKEN:
        shaken = molecule("CH4")
        shaken.rattle(stdev, rng=rng)
        for _ in range(COPIES):
            atoms = shaken.copy()
            atoms.rattle(0.002, rng=rng)
            atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
            label = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
            atoms.calc = SinglePointCalculator(atoms, **label)
            frames.append(atoms)
    return frames


def simplified(dataset: Path, spec: Path, root: Path) -> str:
    words = (str(dataset), "--spec", str(spec), "--root", str(root))
    done = subprocess.run(
        [sys.executable, "-m", "dpstream", "simplify", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def deviations(models: list[Path], frames: list[Any]) -> Any:
    """The committee's, by DeePMD-kit's Python interface, eV/Å."""
    from deepmd.infer import DeepPot

    forces = []
    for model in models:
        potential = DeepPot(str(model))
        kinds = [potential.get_type_map().index(s) for s in frames[0].get_chemical_symbols()]
        positions = np.stack([atoms.positions for atoms in frames])
        forces.append(potential.eval(positions.reshape(len(frames), -1), None, kinds)[1])
    return max_force_deviation(np.stack(forces))


@pytest.mark.soak
def test_what_is_left_out_lies_below_the_trust_level(tmp_path: Path) -> None:
    frames = repetitive()
    write(tmp_path / "all.extxyz", frames)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SETTINGS))
    said = simplified(tmp_path / "all.extxyz", tmp_path / "small.yaml", tmp_path / "root")
    folder = tmp_path / "root" / "small"
    told = json.loads((folder / "simplified.json").read_text())
    kept = told["kept_frames"]
    assert 4 < len(kept) == told["kept"] < len(frames) / 2
    last = (
        f"kept {len(kept)} of 60 frames; the remaining {60 - len(kept)} are below the trust level"
    )
    assert said.splitlines()[-1].startswith(last)

    rest = [atoms for number, atoms in enumerate(frames) if number not in kept]
    found = deviations(sorted(folder.glob("models/committee-?.pb")), rest)
    assert max(found) == pytest.approx(told["deviation"], rel=1e-3)
    assert max(found) < SETTINGS["trust"]["low"]
    dataset = read(folder / "dataset" / "dataset.extxyz", ":")
    energies = sorted(frames[number].get_potential_energy() for number in kept)
    assert sorted(a.get_potential_energy() for a in dataset) == pytest.approx(energies, abs=1e-6)

    heard = list(read_messages(FolderStore(tmp_path / "root"), "small"))
    labels = [event for event in heard if isinstance(event, LabelsDone)]
    assert all(accepted.reused for event in labels for accepted in event.accepted)
    counts = [event.counts["pool 1 K"] for event in heard if isinstance(event, RoundJudged)]
    assert counts[0].candidate > 0, "the first committee has something to ask for"
    assert (counts[-1].candidate, counts[-1].total) == (0, 60 - len(kept))
