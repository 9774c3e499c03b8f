"""What is trained and explored: an alloy of 108 atoms with nets of a usual size, and methane."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ase.build import bulk, molecule
from ase.io import write

ALLOY = {
    "descriptor": {
        "type": "se_e2_a",
        "rcut": 6.0,
        "rcut_smth": 0.5,
        "sel": [90, 40],
        "neuron": [25, 50, 100],
        "axis_neuron": 16,
    },
    "fitting_net": {"neuron": [240, 240, 240]},
}
METHANE = {
    "descriptor": {"type": "se_e2_a", "rcut": 5.0, "sel": [1, 4], "neuron": [10, 20, 40]},
    "fitting_net": {"neuron": [64, 64, 64]},
}


def write_alloy(folder: Path, **training: Any) -> Path:
    """The spec of 108 atoms Cu81Au27."""
    folder.mkdir(parents=True, exist_ok=True)
    atoms = bulk("Cu", cubic=True, a=3.75) * (3, 3, 3)
    atoms.symbols[::4] = "Au"
    write(folder / "alloy.vasp", atoms, sort=True)
    return _write(folder, "alloy.vasp", ["Cu", "Au"], ALLOY, training)


def write_methane(folder: Path, **training: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "methane.xyz", molecule("CH4"))
    return _write(folder, "methane.xyz", ["C", "H"], METHANE, training)


def _write(
    folder: Path, structure: str, type_map: list[str], model: dict[str, Any], training: Any
) -> Path:
    spec = {
        "name": "measured",
        "mode": "streaming",
        "type_map": type_map,
        "systems": {"all": {"structures": [structure]}},
        "initial": {"perturb": {"copies": 4}},
        "training": {"backend": "pytorch", "input": {"model": model}, **training},
        "stages": [{"name": "one", "systems": ["all"], "temperatures": [300]}],
        "labels": {"code": "ase", "settings": {"calculator": "ase.calculators.emt.EMT"}},
    }
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path
