"""Trainings of a few seconds: three copper atoms in vacuum (EMT), all frames in one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.emt import EMT

from dpstream.services.trainer.training import TrainingJob
from dpstream.services.trainer.training_input import LCURVE
from dpstream.shared.atoms.dataset import Labelled, write_deepmd
from dpstream.shared.atoms.frames import Frame, FrameLabel, canonical, from_ase
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.values import Ref
from tests.support.workers.trainer import TrainerHarness

STEPS = 200
FAR_BELOW = -1e4
"""eV; below every energy, so that a model's error on such a label yields its energy."""
SMALL = {"sel": [6], "rcut": 4.5, "rcut_smth": 1.0, "neuron": [4, 8], "axis_neuron": 4}
RATE = {"start_lr": 0.02, "stop_lr": 0.001, "warmup_ratio": 0.0}


@dataclass(frozen=True)
class Fit:
    """A finished training: the last line of its loss curve, and its folder."""

    errors: Mapping[str, float]
    folder: Path
    trainer: TrainerHarness

    @property
    def _engine(self) -> ChildProcess:
        return self.trainer.resources.engine("tensorflow")

    @property
    def frozen(self) -> Path:
        """The frozen model."""
        return self.frozen_at(STEPS)

    def frozen_at(self, step: int) -> Path:
        """The model after half or all of the steps, frozen at the first call."""
        path = self.folder / f"frozen-{step}.pb"
        if not path.exists():
            ask = {"checkpoint": f"model.ckpt-{step}", "model": path.name}
            self._engine.call("freeze", {"folder": str(self.folder), **ask})
        return path

    def measured(self, items: Sequence[Labelled]) -> Mapping[str, Any]:
        """Errors on other frames."""
        folder = self.folder / f"other-{len(list(self.folder.iterdir()))}"
        systems = [str(system) for system in write_deepmd(items, folder, ["Cu"])]
        result: Mapping[str, Any] = self._engine.call(
            "evaluate", {"model": str(self.frozen), "systems": systems}
        )
        return result

    def energy(self, frame: Frame) -> float:
        """The model's energy of one frame, eV."""
        size = len(frame.species)
        label = FrameLabel(FAR_BELOW, np.zeros((size, 3)))
        return float(self.measured([Labelled(frame, label, {})])["energy"]) * size + FAR_BELOW


def trimers() -> list[Labelled]:
    """Twelve frames, the second six displaced five times as far; energies about their mean."""
    rng = np.random.default_rng(5)
    found = []
    for number in range(12):
        atoms = Atoms("Cu3", [[0, 0, 0], [2.3, 0, 0], [1.15, 2.0, 0]])
        atoms.positions += rng.normal(0, 0.05 if number < 6 else 0.25, (3, 3))
        frame = canonical(from_ase(atoms)).frame
        atoms.positions, atoms.calc = frame.positions, EMT()
        found.append((frame, float(atoms.get_potential_energy()), atoms.get_forces()))
    mean = float(np.mean([energy for _, energy, _ in found]))
    return [Labelled(frame, FrameLabel(e - mean, forces), {}) for frame, e, forces in found]


def relabelled(
    item: Labelled,
    energy: float = 1.0,
    forces: Any = 1.0,
    parameters: Mapping[str, Any] | None = None,
    **weights: Any,
) -> Labelled:
    """The frame with these parameters, its label multiplied by these factors, with weights."""
    label = FrameLabel(energy * item.label.energy, forces * item.label.forces, **weights)
    return Labelled(item.frame.with_parameters(parameters or {}), label, {})


def fit(
    trainer: TrainerHarness,
    items: Sequence[Labelled],
    loss: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    steps: int = STEPS,
    files: Mapping[str, Ref] | None = None,
    **spec: Any,
) -> Fit:
    """A training on these frames, to its end; `model` instead of the small one, `spec`: further
    keys of the training section, or as `spec_of` takes them."""
    small = {"descriptor": SMALL, "fitting_net": {"neuron": [12, 12]}}
    training = {"training_data": {"batch_size": len(items)}, "disp_freq": steps // 2}
    document = {
        "model": small if model is None else model,
        "learning_rate": RATE,
        "loss": dict(loss or {}),
        "training": training,
    }
    refs = [trainer.label(item.frame, item.label) for item in items]
    manifest = trainer.manifest(100 + trainer.serial, labels=refs)
    settings = {"input": document, "type_map": ["Cu"], **spec}
    command = trainer.command(settings, dataset=manifest, steps=steps, files=dict(files or {}))
    job = TrainingJob(trainer.resources, command, trainer.context(command))
    job.prepare()
    assert job.train() == steps
    return Fit(_last_line(job.folder / LCURVE), job.folder, trainer)


Apart = tuple[list[Labelled], Fit]


def fit_by_parameter(trainer: TrainerHarness, name: str) -> Apart:
    """Frames at parameter 0 and, with opposite labels, at 1; and a model fitted to them."""
    shape = (1,) if name == "fparam" else (3, 1)
    both = [
        relabelled(item, sign, sign, {name: np.full(shape, value)})
        for value, sign in ((0.0, 1.0), (1.0, -1.0))
        for item in trimers()
    ]
    model = {"descriptor": SMALL, "fitting_net": {"neuron": [12, 12], f"numb_{name}": 1}}
    half = {"mode": "streaming", "checkpoint_steps": STEPS // 2}
    return both, fit(trainer, both, model=model, system={name: [0.0]}, **half)


def _last_line(lcurve: Path) -> Mapping[str, float]:
    lines = lcurve.read_text().splitlines()
    names = lines[0].removeprefix("#").split()
    return dict(zip(names, map(float, lines[-1].split()), strict=True))
