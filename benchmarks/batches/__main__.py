"""`python -m benchmarks.batches [WORKDIR]`: trains one model per system, batch and seed, and prints
the force errors on held-out frames as a table. Finished trainings are kept in WORKDIR."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from scipy import stats

from benchmarks.exploration.committee import engine, labelled
from dpstream.services.trainer.training_input import TrainingRun, build_input
from dpstream.shared.atoms.dataset import Labelled, write_deepmd
from dpstream.shared.atoms.frames import canonical, from_ase
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.spec import Training

SEEDS = range(1, 6)
HELD_OUT = 50
NETS = {"neuron": [8, 16], "axis_neuron": 4}


@dataclass(frozen=True)
class System:
    """`make` returns one displaced structure; `frames` train, for `epochs` passes over them."""

    make: Callable[[np.random.Generator], Atoms]
    type_map: tuple[str, ...]
    atoms: int
    frames: int
    epochs: float
    descriptor: dict[str, Any]

    def items(self) -> list[Labelled]:
        """The frames to train on, and `HELD_OUT` more."""
        rng = np.random.default_rng(1)
        made = [self.make(rng) for _ in range(self.frames + HELD_OUT)]
        return [labelled(canonical(from_ase(atoms)).frame, atoms.calc) for atoms in made]


def methane(rng: np.random.Generator) -> Atoms:
    from tblite.ase import TBLite

    atoms = molecule("CH4")
    atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    return atoms


def alloy(rng: np.random.Generator) -> Atoms:
    atoms = bulk("Cu", "fcc", a=3.75, cubic=True) * (2, 2, 2)
    atoms.symbols[rng.permutation(32)[:8]] = "Au"
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.015, (3, 3))), scale_atoms=True)
    atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    atoms.calc = EMT()
    return atoms


SYSTEMS = {
    "methane": System(methane, ("C", "H"), 5, 200, 60, {"sel": [1, 4], "rcut": 5.0}),
    "alloy": System(alloy, ("Au", "Cu"), 32, 200, 6, {"rcut": 4.5, "rcut_smth": 1.0}),
}


@dataclass(frozen=True)
class Case:
    """Batches of `batch_atoms` atoms, with the learning rate and the number of steps of `auto` or,
    with `fixed`, with the rate of batches of 32 atoms at equal epochs."""

    batch_atoms: int
    fixed: bool

    def training(self, system: System) -> Training:
        model = {"descriptor": {**system.descriptor, **NETS}, "fitting_net": {"neuron": [32, 32]}}
        batch = self.batch_atoms if self.fixed else "auto"
        shared = {"epochs": system.epochs, "min_steps": 1, "input": {"model": model}}
        return Training.model_validate({**shared, "batch_atoms": batch})

    def kept(self, folder: Path) -> list[Path]:
        """The results of all seeds."""
        kind = "fixed" if self.fixed else "auto"
        return [folder / f"{self.batch_atoms}-{kind}-{seed}.json" for seed in SEEDS]


CASES = (Case(32, True), Case(256, True), Case(256, False), Case(1000, True), Case(1000, False))


@dataclass(frozen=True)
class Trained:
    """`force`: RMSE on the held-out frames, eV/Å; `seconds`: wall time of the steps and start."""

    steps: int
    rate: float
    force: float
    rms_force: float
    seconds: float


def trained(child: ChildProcess, folder: Path, system: System, case: Case, seed: int) -> Trained:
    """One training with its errors, as kept in `folder` or carried out now."""
    kept = case.kept(folder)[seed - 1]
    if kept.exists():
        return Trained(**json.loads(kept.read_text()))
    training = case.training(system)
    steps = training.steps(case.batch_atoms, system.atoms, system.frames)
    rate = training.pace(case.batch_atoms, system.atoms, system.frames)
    systems = tuple(map(str, (folder / "train").iterdir()))
    run = TrainingRun(
        system.type_map, systems, steps, seed, member=0, batch_atoms=case.batch_atoms, rate=rate
    )
    document = build_input(training, run)
    shutil.rmtree(folder / "run", ignore_errors=True)
    (folder / "run").mkdir()
    (folder / "run" / "input.json").write_text(json.dumps(document))
    where = {"folder": str(folder / "run")}
    began = time.monotonic()
    child.call("train", where)
    seconds = time.monotonic() - began
    child.call("freeze", {**where, "checkpoint": f"model.ckpt-{steps}", "model": "frozen.pb"})
    held_out = [str(path) for path in (folder / "test").iterdir()]
    model = str(folder / "run" / "frozen.pb")
    errors = child.call("evaluate", {"model": model, "systems": held_out})
    start_lr = document["learning_rate"]["start_lr"]
    found = Trained(steps, start_lr, errors["force"], errors["rms_force"], seconds)
    kept.write_text(json.dumps(vars(found)))
    return found


def prepare(folder: Path, system: System) -> None:
    """Writes the labelled frames, if they do not exist yet."""
    if (folder / "test").exists():
        return
    items = system.items()
    write_deepmd(items[: system.frames], folder / "train", system.type_map)
    write_deepmd(items[system.frames :], folder / "test", system.type_map)


def train_all(work: Path) -> None:
    with engine("dpstream.services.trainer.backends.tensorflow", work) as child:
        for name, system in SYSTEMS.items():
            prepare(work / name, system)
        for seed, (name, system), case in product(SEEDS, SYSTEMS.items(), CASES):
            found = trained(child, work / name, system, case, seed)
            print(f"{name} {case} seed {seed}: {found}", file=sys.stderr, flush=True)


def table(work: Path) -> Iterator[str]:
    yield "| system | atoms per batch | rate | steps | epochs | force RMSE, meV/Å | over 32 atoms |"
    yield "|---|---|---|---|---|---|---|"
    for name, system in SYSTEMS.items():
        usual = _runs(CASES[0], work / name)
        for case in CASES:
            runs = _runs(case, work / name)
            same_seed = [run.force / other.force for run, other in zip(runs, usual, strict=True)]
            errors = (
                f"{_interval([1000 * run.force for run in runs], 1)} | {_interval(same_seed, 2)}"
            )
            yield f"| {name} | {_settings(system, case, runs[0])} | {errors} |"


def _runs(case: Case, folder: Path) -> list[Trained]:
    return [Trained(**json.loads(path.read_text())) for path in case.kept(folder)]


def _settings(system: System, case: Case, run: Trained) -> str:
    batch = min(-(-case.batch_atoms // system.atoms), system.frames)
    epochs = run.steps * batch / system.frames
    atoms = f"{case.batch_atoms} ({batch} frame{'s' * (batch > 1)}){'' if case.fixed else ', auto'}"
    return f"{atoms} | {run.rate:.2g} | {run.steps} | {epochs:.0f}"


def _interval(values: Sequence[float], digits: int) -> str:
    """Mean with its 95 % interval (Student's t) over the seeds."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"


if __name__ == "__main__":
    work = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/batches").resolve()
    train_all(work)
    print("\n".join(table(work)))
