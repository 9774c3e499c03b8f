"""A campaign whose stages explore in two ways, neither of them the default: from `dpstream run` to
labels of what each one found."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ase.build import bulk
from ase.io import write

from dpstream.services.coordinator.ledger.ledger import read_messages
from dpstream.shared.messages import CandidatesSelected, Explore, StageEnded
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns.archived import frames_of
from tests.support.campaigns.small_campaign import finish, state_of, write_spec

MORSE = ["pair_style morse 6.0", "pair_coeff 1 1 0.2703 1.1646 3.253"]
SMALL = {"rcut": 4.0, "rcut_smth": 1.0, "sel": [60], "neuron": [2, 4], "axis_neuron": 2}
STAGES = [
    {
        "name": "sampled",
        "temperatures": [300],
        "engine": {"kind": "potential", "pair": MORSE},
        "md": {"steps": 40, "every": 5},
    },
    {
        "name": "searched",
        "temperatures": [300],
        "engine": {"kind": "search", "relax_steps": 2},
        "md": {"steps": 6, "every": 1, "stop_after": 100},
    },
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    write(folder / "Al.vasp", bulk("Al", cubic=True))
    changes: dict[str, Any] = {
        "type_map": ["Al"],
        "systems": {"al": {"structures": ["Al.vasp"]}},
        "initial": {"perturb": {"copies": 4, "displace": 0.1}},
        "training": {
            "members": 2,
            "input": {"model": {"descriptor": SMALL, "fitting_net": {"neuron": [8]}}},
            "min_steps": 40,
            "max_steps": 40,
            "max_lengthen": 1.0,
            "compress": False,
            "final": {"steps_factor": 1},
        },
        "md": {"timestep": 0.001, "trajectories": 2},
        "trust": {"low": 1e-6, "high": 1e6},
        "stages": [{**stage, "systems": ["al"]} for stage in STAGES],
        "selection": {"per_round": 4, "per_trajectory": 2, "min_separation": 0},
        "labels": {
            "code": "ase",
            "settings": {"calculator": "ase.calculators.emt.EMT"},
            "max_force": 1000,
        },
        "audit": {"per_round": 0},
    }
    finish(write_spec(folder, **changes), folder / "root")
    return folder / "root"


@pytest.mark.soak
def test_what_each_engine_found_is_labelled_and_trained_on(root: Path) -> None:
    heard = list(read_messages(FolderStore(root), "small"))
    assert [m.stage for m in heard if isinstance(m, StageEnded)] == [0, 1]
    assert Counter(m.stage for m in heard if isinstance(m, Explore)) == {0: 2, 1: 2}
    chosen = [m for m in heard if isinstance(m, CandidatesSelected)]
    assert [(m.stage, len(m.labels)) for m in chosen] == [(0, 4), (1, 4)]
    state = state_of(root)
    found = [f for f in frames_of(state).values() if f.purpose == "train"]
    assert Counter((f.stage, f.status) for f in found) == {(0, "labelled"): 4, (1, "labelled"): 4}
