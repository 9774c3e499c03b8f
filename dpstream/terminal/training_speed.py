"""How fast a campaign's models train on this machine, as `dpstream bench train` measured it.

The figures are kept in the user's cache folder, under a hash of the machine and of all that
determines the speed, so that the plan of the same campaign finds them.
"""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import Field, ValidationError
from rich.table import Table

from dpstream.inputs.gather import Gathered
from dpstream.shared.runtime.device import gpus
from dpstream.shared.runtime.machine import cores
from dpstream.shared.spec import Spec, Stage, Training, expand_material
from dpstream.shared.values import Value, stable_id
from dpstream.terminal.tables import text_table

FOLDER = "dpstream/training-speed"
"""Below the user's cache folder."""


class Speed(Value):
    """One backend on one device with so many trainings at once."""

    backend: str
    device: str = Field(description="name of the GPU, or cpu")
    gpu: bool = False
    slots: int = Field(description="trainings at once")
    batch_atoms: int
    step: float = Field(description="seconds per step of one training")
    start: float = Field(description="seconds before the first step")
    finish: float = Field(description="seconds to freeze, compress and measure the model")

    @property
    def throughput(self) -> float:
        """Steps per second of all trainings together."""
        return self.slots / self.step

    def seconds(self, steps: int) -> float:
        """Of one training with its fixed costs."""
        return self.start + steps * self.step + self.finish


class TrainingBenchmark(Value):
    """What one `dpstream bench train` found."""

    date: str
    machine: str
    speeds: tuple[Speed, ...]

    def best(self, spec: Spec, gathered: Gathered, backend: str | None = None) -> Speed | None:
        """The fastest way to train a committee, of all or of one backend."""
        found = [each for each in self.speeds if backend in (None, each.backend)]
        return min(found, key=lambda each: committee_seconds(spec, gathered, each), default=None)


# ------------------------------------------------------------------------- what will be trained


def atoms_of(gathered: Gathered) -> int:
    """Atoms of the largest system."""
    frames = (frame for frames in gathered.systems.values() for frame in frames)
    return max((len(frame.species) for frame in frames), default=1)


def dataset_sizes(spec: Spec, gathered: Gathered) -> list[int]:
    """Frames that each committee version is trained on, if no round is the last before the limits
    of rounds and labels: an upper bound."""
    spec = expand_material(spec)
    rounds = [stage for stage in spec.stages for _ in range(rounds_of(spec, stage))]
    size = len(gathered.labelled) + len(gathered.initial)
    left = spec.budget.labels - gathered.least(spec)
    sizes = [size]
    for stage in rounds:
        new = min(new_labels(spec, stage), max(0, left))
        size, left = size + new, left - new - spec.audit.per_round
        sizes.append(size)
    return sizes


def rounds_of(spec: Spec, stage: Stage) -> int:
    """Largest number of rounds of a stage."""
    return spec.budget.rounds if stage.repeat else 1


def new_labels(spec: Spec, stage: Stage) -> int:
    """Largest number of labels for training in one round."""
    own = spec.selection.per_system
    limit = spec.selection.per_round
    return limit if own is None else min(limit, own * len(stage.systems))


def steps_of(training: Training, gathered: Gathered, frames: int, batch_atoms: int) -> int:
    return training.steps(batch_atoms, atoms_of(gathered), frames)


def committee_seconds(spec: Spec, gathered: Gathered, speed: Speed) -> float:
    """Wall time of the first committee: members wait where there are more than slots."""
    (first, *_) = dataset_sizes(spec, gathered)
    return _committee(spec, gathered, speed, first)


def campaign_seconds(spec: Spec, gathered: Gathered, speed: Speed) -> float:
    """Wall time of all cold trainings of `dataset_sizes` together."""
    sizes = dataset_sizes(spec, gathered)
    return sum(_committee(spec, gathered, speed, size) for size in sizes)


def _committee(spec: Spec, gathered: Gathered, speed: Speed, frames: int) -> float:
    turns = -(-spec.training.members // speed.slots)
    steps = steps_of(spec.training, gathered, frames, speed.batch_atoms)
    return turns * speed.seconds(steps)


# ------------------------------------------------------------------------------ kept figures


def machine() -> str:
    """This machine: its processors and GPUs."""
    found = [f"{platform.node()}, {cores():g} cores", *(gpu.name for gpu in gpus())]
    return ", ".join(found)


def keep(spec: Spec, gathered: Gathered, measured: TrainingBenchmark) -> Path:
    path = _path(spec, gathered)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(measured.model_dump_json(indent=1))
    return path


def kept(spec: Spec, gathered: Gathered) -> TrainingBenchmark | None:
    """The figures of an earlier `dpstream bench train`, if there are any."""
    try:
        return TrainingBenchmark.model_validate_json(_path(spec, gathered).read_text())
    except (OSError, ValidationError):
        return None


def _path(spec: Spec, gathered: Gathered) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / FOLDER / f"{_key(spec, gathered)}.json"


def _key(spec: Spec, gathered: Gathered) -> str:
    """Hash of the machine and of what determines the speed."""
    training = spec.training
    sizes = sorted({len(frame.species) for each in gathered.systems.values() for frame in each})
    return stable_id(
        machine(),
        _version("deepmd-kit"),
        json.dumps(training.input, sort_keys=True),
        training.batch_atoms,
        training.compress,
        spec.type_map,
        sizes,
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


# ------------------------------------------------------------------------------ in words


def duration(seconds: float) -> str:
    """A time to two digits: `50 s`, `3.2 min`, `1.4 h`."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"


def speed_words(spec: Spec, gathered: Gathered) -> str:
    """How long the trainings take, or how to find out."""
    measured = kept(spec, gathered)
    speed = measured.best(spec, gathered, spec.training.backend) if measured else None
    if measured is None or speed is None:
        return "not measured on this machine; dpstream bench train SPEC does it in a minute"
    return f"{estimate(spec, gathered, speed)} (measured on {measured.date})"


def estimate(spec: Spec, gathered: Gathered, speed: Speed) -> str:
    sizes = dataset_sizes(spec, gathered)
    first, last = (
        speed.seconds(steps_of(spec.training, gathered, size, speed.batch_atoms))
        for size in (sizes[0], sizes[-1])
    )
    members = spec.training.members
    at_once = f"{min(members, speed.slots)} of {members} members at once"
    return (
        f"a training takes about {duration(first)} on {speed.backend}, {speed.device}, "
        f"{duration(last)} with {sizes[-1]} labels; {at_once}, {len(sizes)} versions take at most "
        f"{duration(campaign_seconds(spec, gathered, speed))}"
    )


def speed_table(spec: Spec, gathered: Gathered, measured: TrainingBenchmark) -> Table:
    """All speeds, the fastest one marked."""
    columns = ("backend", "device", "at once", "batch", "ms/step", "steps/s", "start", "finish")
    table = text_table("", *columns, "committee")
    best = measured.best(spec, gathered)
    for speed in measured.speeds:
        table.add_row(
            "*" if speed is best else "",
            speed.backend,
            speed.device,
            str(speed.slots),
            str(speed.batch_atoms),
            f"{1000 * speed.step:.3g}",
            f"{speed.throughput:.3g}",
            duration(speed.start),
            duration(speed.finish),
            duration(committee_seconds(spec, gathered, speed)),
        )
    return table


def settings_of(best: Speed) -> str:
    """What makes a trainer work in this way."""
    device = "cuda" if best.gpu else "cpu"
    return (
        f"training.backend: {best.backend} in the spec, and DPSTREAM_DEVICE={device} and "
        f"DPSTREAM_TRAINER_SLOTS={best.slots} for the trainer"
    )
