"""A whole campaign for a CuAu alloy with EMT labels, small enough for a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from ase.build import bulk
from ase.io import write

DESCRIPTOR = {
    "type": "se_e2_a",
    "rcut": 5.0,
    "rcut_smth": 1.0,
    "sel": [48, 48],
    "neuron": [8, 16],
    "axis_neuron": 4,
    "type_one_side": True,
}


def write_campaign(
    folder: Path,
    backend: str = "pytorch",
    training: Mapping[str, Any] = MappingProxyType({}),
    **changes: Any,
) -> Path:
    """Write the spec and its structure into `folder`; returns the spec's path. `training`: further
    keys of this section; `changes`: other sections."""
    folder.mkdir(parents=True, exist_ok=True)
    alloy = bulk("Cu", cubic=True, a=3.85) * (2, 1, 1)
    alloy.symbols[[0, 1, 4, 5]] = "Au"
    write(folder / "CuAu.vasp", alloy, sort=True)
    path = folder / "campaign.yaml"
    spec = {**_spec(backend), **changes}
    spec["training"] = {**spec["training"], **training}
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


def _spec(backend: str) -> dict[str, Any]:
    model = {"descriptor": DESCRIPTOR, "fitting_net": {"neuron": [32, 32]}}
    return {
        "name": "alloy",
        "seed": 1,
        "mode": "streaming",
        "type_map": ["Cu", "Au"],
        "systems": {"cuau": {"structures": ["CuAu.vasp"]}},
        "initial": {"perturb": {"copies": 24, "displace": 0.12, "strain": 0.03}},
        "training": {
            "backend": backend,
            "members": 2,
            "input": {"model": model},
            "epochs": 40,
            "min_steps": 600,
            "max_steps": 2000,
            "final": {"steps_factor": 2},
        },
        "md": {"timestep": 0.002, "every": 10, "steps": 400, "trajectories": 4},
        "trust": {"low": 0.08, "high": 0.6},
        "stages": [
            {"name": "warm", "systems": ["cuau"], "temperatures": [300]},
            {"name": "hot", "systems": ["cuau"], "temperatures": [600]},
        ],
        "selection": {"policy": "random", "per_round": 16, "per_trajectory": 6},
        "labels": {"code": "ase", "settings": {"calculator": "ase.calculators.emt.EMT"}},
        "audit": {
            "per_round": 8,
            "min_frames": 8,
            "min_trajectories": 2,
            "force_rmse": 0.3,
            "error_target": 0.5,
            "exceed": 0.4,
        },
        "convergence": {"accurate_ratio": 0.9, "max_failed": 0.05, "rounds": 1},
        "budget": {"rounds": 6, "labels": 300},
        "verification": {"nve_ps": 2, "max_drift": 0.05},
    }
