"""Trains tiny committees for tests: `python tiny_committees.py FOLDER`, seconds instead of minutes.

Labels are computed here, TensorFlow is imported once, and every member is trained and frozen in a
fork. Writes `FOLDER/{methane,aluminium,copper-gold}/` (DeePMD systems) and
`FOLDER/{…}-{member}/frozen.pb`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

MEMBERS = {"methane": 4, "aluminium": 3, "copper-gold": 2}
FRAMES = 24
STEPS = 120


def methane(rng: np.random.Generator) -> Atoms:
    from tblite.ase import TBLite

    atoms = molecule("CH4")
    atoms.positions += rng.normal(0, 0.08, atoms.positions.shape)
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    return atoms


def aluminium(rng: np.random.Generator) -> Atoms:
    atoms = bulk("Al", cubic=True) * (2, 1, 1)
    strain = np.eye(3) + np.tril(rng.normal(0, 0.02, (3, 3)))
    atoms.set_cell(atoms.cell[:] @ strain, scale_atoms=True)
    atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    atoms.calc = EMT()
    return atoms


def copper_gold(rng: np.random.Generator) -> Atoms:
    atoms = bulk("Cu", cubic=True, a=3.85) * (2, 1, 1)
    atoms.symbols[rng.permutation(8)[:4]] = "Au"
    atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    atoms = atoms[np.argsort(atoms.get_chemical_symbols())]
    atoms.calc = EMT()
    return atoms


def write_system(
    folder: Path, make: Callable[[np.random.Generator], Atoms], count: int = FRAMES
) -> None:
    rng = np.random.default_rng(7)
    frames = [make(rng) for _ in range(count)]
    columns: dict[str, Any] = {
        "coord": [atoms.positions.ravel() for atoms in frames],
        "energy": [atoms.get_potential_energy() for atoms in frames],
        "force": [atoms.get_forces().ravel() for atoms in frames],
    }
    (folder / "set.000").mkdir(parents=True)
    if frames[0].pbc.all():
        columns["box"] = [atoms.cell[:].ravel() for atoms in frames]
        columns["virial"] = [
            (-atoms.get_stress(voigt=False) * atoms.get_volume()).ravel() for atoms in frames
        ]
    else:
        columns["box"] = [np.eye(3).ravel() * 30] * FRAMES
        (folder / "nopbc").touch()
    for name, values in columns.items():
        np.save(folder / "set.000" / f"{name}.npy", np.array(values))
    symbols = frames[0].get_chemical_symbols()
    type_map = sorted(set(symbols))
    (folder / "type.raw").write_text("".join(f"{type_map.index(s)}\n" for s in symbols))
    (folder / "type_map.raw").write_text("\n".join(type_map) + "\n")


def training_input(system: Path, seed: int) -> dict[str, Any]:
    type_map = (system / "type_map.raw").read_text().split()
    periodic = not (system / "nopbc").exists()
    descriptor = {
        "type": "se_e2_a",
        "sel": [60] * len(type_map) if periodic else [2, 6],
        "rcut": 5.0 if periodic else 4.0,
        "rcut_smth": 1.0,
        "neuron": [4, 8],
        "axis_neuron": 4,
        "seed": seed,
    }
    loss = {"start_pref_e": 0.02, "limit_pref_e": 1, "start_pref_f": 1000, "limit_pref_f": 1}
    virial = 0.1 if periodic else 0.0
    return {
        "model": {
            "type_map": type_map,
            "descriptor": descriptor,
            "fitting_net": {"neuron": [16, 16], "resnet_dt": True, "seed": seed},
        },
        "learning_rate": {"type": "exp", "decay_steps": 10, "start_lr": 0.01, "stop_lr": 1e-4},
        "loss": {**loss, "start_pref_v": virial, "limit_pref_v": virial},
        "training": {
            "training_data": {"systems": [str(system)], "batch_size": 5},
            "numb_steps": STEPS,
            "seed": seed,
            "disp_freq": STEPS,
            "save_freq": STEPS,
        },
    }


def train_member(folder: Path, system: Path, seed: int) -> None:
    from deepmd.tf.entrypoints.train import train

    folder.mkdir()
    os.chdir(folder)
    Path("input.json").write_text(json.dumps(training_input(system, seed)))
    train(
        INPUT="input.json",
        init_model=None,
        restart=None,
        output="out.json",
        init_frz_model=None,
        mpi_log="master",
        log_level=2,
        log_path=None,
        skip_neighbor_stat=True,
    )


def freeze_member(folder: Path) -> None:
    from deepmd.tf.entrypoints.freeze import freeze

    os.chdir(folder)
    freeze(checkpoint_folder=".", output="frozen.pb")


def in_fork(work: Callable[[], Any]) -> None:
    """Start `work` in a fork: there TensorFlow starts clean, unless it ran before the fork."""
    if os.fork() == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)


def one_ended() -> None:
    """Wait for a fork; exits if its work raised."""
    if os.wait()[1] != 0:
        sys.exit(1)


def in_turn(*works: Callable[[], Any]) -> None:
    for work in works:
        in_fork(work)
        one_ended()


def two_at_a_time(works: Iterable[Callable[[], Any]]) -> None:
    running = 0
    for work in works:
        if running == 2:
            one_ended()
            running -= 1
        in_fork(work)
        running += 1
    for _ in range(running):
        one_ended()


def member(folder: Path, system: Path, seed: int) -> None:
    in_turn(lambda: train_member(folder, system, seed), lambda: freeze_member(folder))


def main(root: Path) -> None:
    write_system(root / "methane", methane)
    write_system(root / "aluminium", aluminium)
    write_system(root / "copper-gold", copper_gold)
    import deepmd.tf.entrypoints.train

    assert deepmd.tf.entrypoints.train
    two_at_a_time(
        partial(member, root / f"{name}-{number}", root / name, number + 1)
        for name, members in MEMBERS.items()
        for number in range(members)
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
