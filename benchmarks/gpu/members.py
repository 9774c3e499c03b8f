"""A committee of PyTorch models, and the judging and batched exploring with it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase.calculators.emt import EMT

from benchmarks.exploration import batched
from benchmarks.exploration.committee import labelled
from benchmarks.gpu.systems import ALLOY
from benchmarks.gpu.table import Row
from dpstream.services.explorer.resources import ENGINE as LAMMPS
from dpstream.services.trainer.resources import TrainerResources
from dpstream.services.trainer.training_input import BACKENDS, INPUT, TrainingRun, build_input
from dpstream.shared.atoms.dataset import write_deepmd
from dpstream.shared.atoms.frames import Batch
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.runtime.device import Device
from dpstream.shared.spec import Training

TYPES = ("Au", "Cu")
STEPS = 20
JUDGED = (1, 18, 64, 256, 1000)
"""Frames in one call."""
REPLICAS = (1, 8, 64, 256)
SECONDS = 5.0


def train(folder: Path, count: int, device: Device) -> list[Path]:
    """Frozen members, hardly trained: their speed does not depend on it."""
    rng = np.random.default_rng(1)
    start = batched.crystal(TYPES, 108)
    frames = [replace(start, positions=start.positions + rng.normal(0, 0.05, (108, 3)))] * 8
    systems = write_deepmd([labelled(frame, EMT()) for frame in frames], folder / "data", TYPES)
    training = Training(backend="pytorch", input={"model": ALLOY})
    resources, backend = TrainerResources(folder / "engine", device=device), BACKENDS["pytorch"]
    models = []
    for member in range(count):
        place = folder / str(member)
        place.mkdir()
        run = TrainingRun(TYPES, tuple(map(str, systems)), STEPS, member + 1, member)
        (place / INPUT).write_text(json.dumps(build_input(training, run)))
        engine, where = resources.engine("pytorch"), {"folder": str(place)}
        engine.call("train", where)
        model = f"frozen{backend.suffix}"
        engine.call("freeze", {**where, "checkpoint": backend.checkpoint(STEPS), "model": model})
        models.append(place / model)
    resources.close()
    return models


def judge(folder: Path, models: Sequence[Path], device: Device, name: str) -> Iterator[Row]:
    """Frames per second that all members evaluate, by the size of a call."""
    child = ChildProcess(LAMMPS, folder / f"judge-{device.kind}", device=device)
    start = batched.crystal(TYPES, 108)
    try:
        for count in JUDGED:
            batch, result = folder / "batch.npz", folder / "result.npz"
            batch.write_bytes(Batch.of([start] * count).dumps())
            arguments = {
                "models": list(map(str, models)),
                "batch": str(batch),
                "result": str(result),
            }
            child.call("evaluate", arguments)
            began, calls = time.monotonic(), 0
            while time.monotonic() - began < SECONDS:
                child.call("evaluate", arguments)
                calls += 1
            rate = calls * count / (time.monotonic() - began)
            yield Row(f"{len(models)} members judge {count} frames at once", name, rate, "frames/s")
            if count / rate > SECONDS:
                return
    finally:
        child.kill()


def explore(models: Sequence[Path], device: Device, name: str) -> Iterator[Row]:
    """Atom-steps per second of many replicas in one batch, beside one trajectory of LAMMPS."""
    frame = batched.crystal(TYPES, 108)
    unit = "atom-steps/s"
    yield Row("LAMMPS, 1 trajectory", name, batched.lammps(models, TYPES, frame, device), unit)
    for replicas in REPLICAS if device.gpu else REPLICAS[:3]:
        rate = batched.batched(models, frame, replicas, device)
        yield Row(f"batched, {replicas} replicas", name, rate, unit)
