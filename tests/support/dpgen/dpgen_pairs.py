"""Pairs of param.json and machine.json from DP-GEN's own examples, made small.

The files are DP-GEN's, of the recorded data. Changed are numbers (steps, numbers of models, tasks
and jobs, cutoffs of the labels, and trust levels, because models after few steps disagree) and
paths. Structures and the initial set, which DP-GEN does not include, are made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write

RUN = "dpgen/examples/run"
MACHINES = "dpgen/examples/machine/DeePMD-kit-1.x"
PSEUDO = Path("/usr/share/espresso/pseudo")
FRAMES = 3
"""Of the initial set."""


def methane(rng: np.random.Generator) -> Atoms:
    """CH4 in DP-GEN's box of 10 Å."""
    atoms = molecule("CH4")
    atoms.set_cell([10.0] * 3)
    atoms.center()
    atoms.pbc = True
    atoms.positions += rng.normal(0, 0.03, atoms.positions.shape)
    return atoms


def aluminium(rng: np.random.Generator) -> Atoms:
    """8 atoms of fcc Al, in place of 32: a cell that converges at the Γ point without smearing."""
    atoms = bulk("Al", a=4.04) * (2, 2, 2)
    atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
    return atoms


@dataclass(frozen=True)
class Pair:
    """`param`, `machine`: DP-GEN's files in the recorded data; `structure`: makes a starting one;
    `jobs`: changes of the first two jobs; `changes`: of other keys; `code`: labels in place of a
    licensed program; `elsewhere`: names of further files; `potentials`: files of Quantum ESPRESSO
    in place of those that DP-GEN leaves to the user; `options`: of `dpstream run`."""

    param: str
    machine: str
    structure: Callable[[np.random.Generator], Atoms]
    jobs: Mapping[str, Any]
    changes: Mapping[str, Any] = field(default_factory=dict)
    code: str | None = None
    elsewhere: tuple[str, ...] = ()
    potentials: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()


PAIRS = {
    "cp2k": Pair(
        f"{RUN}/dp2.x-lammps-cp2k/methane/param-ch4.json",
        f"{MACHINES}/machine-lsf-slurm-cp2k.json",
        methane,
        {"nsteps": 40},
        {"external_input_path": "template.inp"},
        elsewhere=("template.inp",),
    ),
    "pwscf": Pair(
        f"{RUN}/dp2.x-lammps-pwscf/Al/param_al_all_gpu-deepmd-kit-2.x.json",
        f"{MACHINES}/machine-local.json",
        aluminium,
        {"nsteps": 40, "temps": [50], "press": [1.0]},
        potentials={"Al_ONCV_PBE_sr.upf": "Al.pz-vbc.UPF"},
    ),
    "vasp": Pair(
        f"{RUN}/ch4/param.json",
        f"{RUN}/ch4/machine.json",
        methane,
        {"nsteps": 40},
        code="tblite",
        options=("--force",),  # a barostat on a molecule in a box
    ),
}


def prepared(pair: Pair, data: Path, folder: Path) -> tuple[Path, Path]:
    """Writes the pair's files and structures to `folder`; param.json and machine.json."""
    folder.mkdir(parents=True)
    source = data / pair.param
    document = json.loads(source.read_text())
    for name in pair.elsewhere:
        text = (source.parent / name).read_text()
        (folder / name).write_text(text.replace("@SET CUTOFF 400", "@SET CUTOFF 200"))
    for name, ours in pair.potentials.items():
        (folder / name).write_bytes((PSEUDO / ours).read_bytes())
    rng = np.random.default_rng(4)
    for number in range(2):
        (folder / "start" / str(number)).mkdir(parents=True)
        write(folder / "start" / str(number) / "POSCAR", pair.structure(rng), sort=True)
    frames = [pair.structure(rng) for _ in range(FRAMES)]
    write(folder / "init.extxyz", frames, format="extxyz")
    param, machine = folder / "param.json", folder / "machine.json"
    param.write_text(json.dumps(_small(document, pair), indent=2))
    machine.write_bytes((data / pair.machine).read_bytes())
    return param, machine


def _small(document: dict[str, Any], pair: Pair) -> dict[str, Any]:
    jobs = [
        {**job, **pair.jobs, "sys_idx": [number]}
        for number, job in enumerate(document["model_devi_jobs"][:2])
    ]
    training = document["default_training_param"]["training"] | {"stop_batch": 100}
    namelists = document.get("user_fp_params", {})
    if "system" in namelists:
        namelists["system"]["ecutwfc"] = 30
        namelists["electrons"]["electron_maxstep"] = 100
    return {
        **document,
        "init_data_prefix": ".",
        "init_data_sys": ["labelled/deepmd"],
        "sys_configs": [["start/0/POSCAR"], ["start/1/POSCAR"]],
        "sys_batch_size": [1, 1],
        "init_batch_size": [1],
        "numb_models": 2,
        "default_training_param": document["default_training_param"] | {"training": training},
        "model_devi_jobs": jobs,
        "model_devi_f_trust_lo": 0.0,
        "model_devi_f_trust_hi": 1000.0,
        "fp_task_max": 2,
        "fp_task_min": 1,
        **pair.changes,
    }
