"""A compressed PyTorch model of a few parameters, to check that a device evaluates such models.

DeePMD-kit's own GPU code needs other CUDA libraries than PyTorch, and is used by compressed models
alone: without this check a member is trained to the end before the first of them is missing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from deepmd.pt.entrypoints.compress import enable_compression
from deepmd.pt.model.model import get_model
from deepmd.pt.utils.env import DEVICE

from dpstream.shared.atoms.deep_pot import DeepPotential

MODEL = {
    "type_map": ["H"],
    "descriptor": {
        "type": "se_e2_a",
        "sel": [2],
        "rcut": 3.0,
        "rcut_smth": 1.0,
        "neuron": [2, 4],
        "axis_neuron": 2,
        "type_one_side": True,
        "seed": 1,
    },
    "fitting_net": {"neuron": [4], "seed": 1},
}
SHORTEST = 0.5
"""Å: the range of the table."""


def evaluate_tiny_model(folder: str) -> str:
    """Build the model in `folder`, compress it and evaluate one frame; returns the device. Raises
    what PyTorch or DeePMD-kit raises."""
    frozen, compressed = Path(folder) / "tiny.pth", Path(folder) / "tiny-compressed.pth"
    model = get_model(MODEL)
    model.min_nbor_dist = torch.tensor(SHORTEST, dtype=torch.float64, device=DEVICE)
    torch.jit.save(torch.jit.script(model), str(frozen))
    enable_compression(input_file=str(frozen), output=str(compressed))
    coordinates = np.array([[0.0, 0.0, 0.0, 0.0, 0.0, 0.8]])
    energy, forces, _ = DeepPotential(str(compressed)).eval(coordinates, None, [0, 0])
    if not (np.isfinite(energy).all() and np.isfinite(forces).all()):
        raise ArithmeticError(f"a compressed model gives energy {energy} and forces {forces}")
    return str(DEVICE)
