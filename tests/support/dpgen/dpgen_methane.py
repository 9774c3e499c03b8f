"""DP-GEN's methane, small: its files as a user has them, and a labelled set to begin with."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import molecule
from ase.io import write

from dpstream.shared.atoms.dataset import Labelled, write_deepmd
from dpstream.shared.atoms.frames import FrameLabel, canonical, from_ase

PARAM: dict[str, Any] = {
    "type_map": ["H", "C"],
    "mass_map": [1, 12],
    "init_data_prefix": "data",
    "init_data_sys": ["init"],
    "init_batch_size": [8],
    "sys_configs_prefix": "data",
    "sys_configs": [["00000*/POSCAR"], ["00001*/POSCAR"]],
    "sys_batch_size": [8, 8],
    "_comment1": "that's all",
    "numb_models": 2,
    "default_training_param": {
        "model": {
            "type_map": ["H", "C"],
            "descriptor": {
                "type": "se_a",
                "sel": [4, 1],
                "rcut": 4.0,
                "rcut_smth": 0.5,
                "neuron": [4, 8],
                "axis_neuron": 2,
                "seed": 1,
            },
            "fitting_net": {"neuron": [16, 16], "seed": 1},
        },
        "learning_rate": {"type": "exp", "start_lr": 0.001, "decay_steps": 100},
        "loss": {"start_pref_e": 0.02, "limit_pref_e": 2, "start_pref_v": 0, "limit_pref_v": 0},
        "training": {
            "stop_batch": 100,
            "disp_freq": 50,
            "_comment2": "that's all",
            "training_data": {"systems": [], "batch_size": 1},
        },
    },
    "model_devi_dt": 0.0005,
    "model_devi_skip": 0,
    "model_devi_f_trust_lo": 0.05,
    "model_devi_f_trust_hi": 100.0,
    "model_devi_clean_traj": True,
    "model_devi_jobs": [
        {
            "sys_idx": [index],
            "temps": [100],
            "press": [1.0],
            "trj_freq": 10,
            "nsteps": 100,
            "ensemble": "nvt",
            "_idx": f"0{index}",
        }
        for index in (0, 1)
    ],
    "fp_style": "vasp",
    "shuffle_poscar": False,
    "fp_task_max": 3,
    "fp_task_min": 1,
    "fp_pp_path": "./",
    "fp_pp_files": ["POTCAR_H", "POTCAR_C"],
    "fp_incar": "INCAR",
}
PART: dict[str, Any] = {
    "command": "dp",
    "machine": {"batch_type": "Shell", "context_type": "LocalContext", "local_root": "./"},
    "resources": {"number_node": 1, "cpu_per_node": 4, "queue_name": "", "group_size": 1},
}
MACHINE: dict[str, Any] = {
    "api_version": "1.0",
    "train": PART,
    "model_devi": {**PART, "command": "lmp"},
    "fp": [{**PART, "command": "mpirun -n 4 vasp_std"}],
}
BOX = 8.0
"""Å"""


def param(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy({**PARAM, **changes})


def write_files(folder: Path, document: dict[str, Any]) -> Path:
    """param.json and machine.json in `folder`; the first of the two."""
    (folder / "machine.json").write_text(json.dumps(MACHINE))
    path = folder / "param.json"
    path.write_text(json.dumps(document))
    return path


def write_structures(folder: Path) -> None:
    """Two POSCARs for each of two systems."""
    rng = np.random.default_rng(3)
    for number in (0, 1, 10, 11):
        atoms = in_box(rng)
        (folder / f"{number:06d}").mkdir(parents=True)
        write(folder / f"{number:06d}" / "POSCAR", atoms, format="vasp", sort=True)


def in_box(rng: np.random.Generator) -> Any:
    atoms = molecule("CH4")
    atoms.positions += rng.normal(0, 0.03, atoms.positions.shape) + BOX / 2
    atoms.set_cell(np.eye(3) * BOX)
    atoms.pbc = True
    return atoms


def write_labels(folder: Path, frames: int, seed: int = 5) -> None:
    """Frames labelled by GFN2-xTB, as DeePMD-kit's npy."""
    from tblite.ase import TBLite

    rng, items = np.random.default_rng(seed), []
    for _ in range(frames):
        atoms = in_box(rng)
        form = canonical(from_ase(atoms))
        atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
        virial = -atoms.get_stress(voigt=False) * atoms.get_volume()
        label = FrameLabel(atoms.get_potential_energy(), atoms.get_forces()[form.order], virial)
        items.append(Labelled(form.frame, label, {}))
    write_deepmd(items, folder, PARAM["type_map"])
