"""Trains small committees and runs trajectories with them, without a campaign."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dpstream.services.explorer.lammps import script as md_script
from dpstream.services.trainer.training_input import TrainingRun, build_input
from dpstream.shared.atoms.dataset import Labelled, write_deepmd
from dpstream.shared.atoms.frames import Frame, FrameLabel, to_ase
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.spec import Md, Training
from dpstream.shared.values import Condition, Trust

OPEN = Trust(low=1e-9, high=1e9)
"""Trust levels that never stop a trajectory."""
SMALL = {
    "model": {
        "descriptor": {"rcut": 5.0, "rcut_smth": 1.0, "neuron": [8, 16], "axis_neuron": 4},
        "fitting_net": {"neuron": [32, 32]},
    }
}
Arrays = Mapping[str, Any]


@contextmanager
def engine(module: str, folder: Path) -> Iterator[ChildProcess]:
    """A child process that works in `folder`, the only place where it may write."""
    folder.mkdir(parents=True, exist_ok=True)
    child = ChildProcess(module, folder, links=True)  # DeePMD-kit links its newest checkpoint
    try:
        yield child
    finally:
        child.kill()


def labelled(frame: Frame, calculator: Any) -> Labelled:
    """A canonical frame with energy, forces and virial by an ASE calculator."""
    atoms = to_ase(frame)
    atoms.calc = calculator
    virial = None
    if frame.cell is not None:
        virial = -atoms.get_stress(voigt=False) * atoms.get_volume()
    label = FrameLabel(float(atoms.get_potential_energy()), atoms.get_forces(), virial)
    return Labelled(frame, label, {})


def train(
    data: Sequence[Labelled], type_map: Sequence[str], folder: Path, members: int, steps: int
) -> list[Path]:
    """Frozen models in `folder`, trained if they do not exist yet."""
    models = [folder / f"{member}" / "frozen.pb" for member in range(members)]
    if all(model.exists() for model in models):
        return models
    systems = tuple(map(str, write_deepmd(data, folder / "data", type_map)))
    with engine("dpstream.services.trainer.backends.tensorflow", folder) as child:
        for member, model in enumerate(models):
            model.parent.mkdir(parents=True, exist_ok=True)
            run = TrainingRun(tuple(type_map), systems, steps, seed=member + 1, member=member)
            document = build_input(Training(input=SMALL), run)
            (model.parent / "input.json").write_text(json.dumps(document))
            where = {"folder": str(model.parent)}
            child.call("train", where)
            child.call("freeze", {**where, "checkpoint": ".", "model": "frozen.pb"})
    return models


def trajectory(
    child: ChildProcess,
    folder: Path,
    frame: Frame,
    models: Sequence[Path],
    temperature: float,
    md: Md,
    added: Callable[[Sequence[str]], Sequence[str]],
) -> Arrays:
    """Runs dynamics from `frame`; returns arrays positions, types, devi_f and steps of every check.
    `added`: returns LAMMPS commands in addition to plain dynamics, for a type map."""
    folder.mkdir(parents=True, exist_ok=True)
    type_map = sorted(set(frame.species))
    data = folder / "start.data"
    data.write_text(md_script.data_file(frame, type_map, {}))
    pair = md_script.pair_commands(models, 0, type_map, md.every, OPEN)
    condition = Condition(system="s", temperature=temperature)
    script = md_script.start_script(frame, data, md, condition, 7, pair)
    commands = [*script.dynamics, *added(type_map)]
    child.call("begin", {"script": {**vars(script), "dynamics": commands, "single_use": True}})
    arguments = {
        "checks": md.steps // md.every,
        "every": md.every,
        "overlap": md.overlap,
        "reach": 5.0 if frame.cell is None else None,
        "trust": OPEN.model_dump(),
        "streak": 0,
        "stop_after": md.steps,
        "frames": str(folder / "frames.npz"),
    }
    outcome = child.call("advance", arguments)
    print(f"  {outcome['made']} checks; stopped: {outcome['stopped']}")
    with np.load(folder / "frames.npz", allow_pickle=False) as found:
        return dict(found)
