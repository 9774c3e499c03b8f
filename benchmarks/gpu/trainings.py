"""Trainings: several at once, batches of several sizes, and what a training costs beside its
steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.systems import write_alloy, write_methane
from benchmarks.gpu.table import Row
from dpstream.dpgen.load import load_campaign
from dpstream.inputs.gather import gather
from dpstream.running.bench_train import Bench
from dpstream.shared.spec import expand_material
from dpstream.terminal.training_speed import Speed

BATCHES = (108, 864, 3456)
"""Atoms of a batch of the alloy: 1, 8 and 32 frames."""


def slots(folder: Path, seconds: float) -> Iterator[Row]:
    """1, 2, 4, … trainings at once, on every device and with every backend of this machine."""
    for name, write in (("alloy, 108 atoms", write_alloy), ("methane", write_methane)):
        for speed in _speeds(write(folder / name.partition(",")[0]), folder, seconds):
            about = f"{name}: {speed.backend}, {speed.slots} at once, {speed.batch_atoms} atoms"
            yield Row(about, speed.device, speed.throughput, "steps/s")
            if speed.slots == 1:
                yield Row(f"{name}: {speed.backend}, start", speed.device, speed.start, "s")
                what = f"{name}: {speed.backend}, freeze, compress, measure"
                yield Row(what, speed.device, speed.finish, "s")


def batches(folder: Path, seconds: float) -> Iterator[Row]:
    """One training of the alloy, with batches of several sizes."""
    for atoms in BATCHES:
        path = write_alloy(folder / f"batch-{atoms}", batch_atoms=atoms)
        for speed in _speeds(path, folder, seconds, most=1):
            frames = speed.throughput * speed.batch_atoms / 108
            yield Row(f"alloy: {speed.backend}, {atoms} atoms", speed.device, frames, "frames/s")


def _speeds(path: Path, folder: Path, seconds: float, most: int = 8) -> list[Speed]:
    spec = expand_material(load_campaign(path, None))
    scratch = folder / f"{path.parent.name}-scratch"
    scratch.mkdir()
    bench = Bench(spec, gather(spec, path.parent, trusting=True), scratch, seconds, most=most)
    return bench.run()
