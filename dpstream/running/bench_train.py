"""Measures how fast this machine trains the models of a spec, on every backend and device it has.

Trainings run as in a trainer, with the same child processes and input files, on frames of the
spec's systems whose labels are random numbers: the time of a step does not depend on them.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dpstream.inputs.check_training import check_training
from dpstream.inputs.gather import Gathered
from dpstream.services.trainer.resources import TrainerResources
from dpstream.services.trainer.training import last_step
from dpstream.services.trainer.training_input import (
    BACKENDS,
    INPUT,
    LCURVE,
    TrainingRun,
    build_input,
    merge,
)
from dpstream.shared.atoms.dataset import Labelled, write_deepmd
from dpstream.shared.atoms.frames import Frame, FrameLabel
from dpstream.shared.errors import DpstreamError, SpecError, Stopped
from dpstream.shared.runtime.device import Device, chosen, device_of_environment
from dpstream.shared.runtime.machine import cores, memory
from dpstream.shared.spec import Spec
from dpstream.shared.spec.training import CPU_BATCH, GPU_BATCH
from dpstream.terminal.training_speed import Speed

FRAMES = 48
"""Frames that are trained on, of each structure."""
SHORT, ENDLESS = 20, 10_000_000
"""Steps of the training that is frozen, and of those whose steps are timed."""
DISPLAY = 10
"""Steps between two lines of the loss curve, whose times are taken."""
LONGEST, SHORTEST = 8.0, 2.0
"""Seconds for which steps are timed."""
POLL = 0.02
GAIN = 1.1
"""More trainings at once are tried as long as twice as many are faster by this factor."""
SLOT_MIB = 1500
"""Memory of one training with its libraries, MiB."""


@dataclass
class Bench:
    """`scratch`: a private folder; `seconds`: about how long all of it may take; `report` is called
    with what is being measured."""

    spec: Spec
    gathered: Gathered
    scratch: Path
    seconds: float
    report: Callable[[str], object] = lambda what: None
    most: int = 16
    """Trainings at once, at most."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why a backend, or a backend on a device, was not measured."""

    def run(self) -> list[Speed]:
        """All speeds, in the order of measuring. Raises SpecError if no backend can train the
        models."""
        self._data = self._write_frames()
        choices, speeds = list(self._choices()), list[Speed]()
        deadline = time.monotonic() + self.seconds
        for number, (backend, device) in enumerate(choices):
            share = (deadline - time.monotonic()) / (len(choices) - number)
            try:
                speeds += self._measure(backend, device, time.monotonic() + share)
            except DpstreamError as error:
                self.failures[f"{backend} on {_name(device)}"] = " ".join(str(error).split())
        if not speeds:
            reasons = "; ".join(f"{what}: {why}" for what, why in self.failures.items())
            raise SpecError(f"nothing could be measured: {reasons}")
        return speeds

    def _choices(self) -> Iterator[tuple[str, Device]]:
        """Installed backends that support the models, on every kind of device."""
        for name, backend in BACKENDS.items():
            if find_spec(backend.package) is None:
                self.failures[name] = f"not installed; pip install '{backend.install}'"
                continue
            try:
                check_training(self._spec_for(name))
            except SpecError as error:
                self.failures[name] = str(error)
                continue
            yield from ((name, device) for device in devices())

    def _spec_for(self, backend: str) -> Spec:
        """The spec with another backend; nets as stated, from scratch."""
        changes = {"backend": backend, "init": None, "repulsion": None}
        training = self.spec.training.model_copy(update=changes)
        return self.spec.model_copy(update={"training": training})

    def _measure(self, backend: str, device: Device, deadline: float) -> Iterator[Speed]:
        """The speeds of 1, 2, 4, … trainings at once, until `deadline` or until more bring
        nothing. One training at a time is always measured."""
        slots = [self._slot(backend, device, 0)]
        try:
            self.report(f"{backend} on {_name(device)}: start, freeze, compress, measure")
            slots[0].check_device(device)
            short, finish = slots[0].costs(self.spec.training.compress)
            most = min(max(1, int(cores())), self.most, _that_fit_in_memory())
            best, count = 0.0, 1
            while True:
                self.report(f"{backend} on {_name(device)}: {count} at once")
                slots += [self._slot(backend, device, n) for n in range(len(slots), count)]
                step = _seconds_per_step(slots, deadline)
                speed = Speed(
                    backend=backend,
                    device=_name(device),
                    gpu=device.gpu is not None,
                    slots=count,
                    batch_atoms=self._batch(device),
                    step=step,
                    start=max(0.0, short - SHORT * step),
                    finish=finish,
                )
                yield speed
                if speed.throughput < GAIN * best or time.monotonic() > deadline or count >= most:
                    return
                best, count = speed.throughput, min(2 * count, most)
        finally:
            for slot in slots:
                slot.stop()
            for slot in slots:
                slot.close()

    def _batch(self, device: Device) -> int:
        on_gpu = device.gpu is not None and self.spec.mode != "lockstep"
        return self.spec.training.batch(GPU_BATCH if on_gpu else CPU_BATCH)

    def _slot(self, backend: str, device: Device, number: int) -> Slot:
        folder = self.scratch / f"{backend}-{device.kind}-{number}"
        training = self._spec_for(backend).training
        display = {"training": {"disp_freq": DISPLAY}}
        training = training.model_copy(update={"input": merge(training.input, display)})

        def document(steps: int) -> Mapping[str, Any]:
            run = TrainingRun(
                self.spec.type_map,
                self._data,
                steps,
                number + 1,
                0,
                batch_atoms=self._batch(device),
            )
            return build_input(training, run)

        resources = TrainerResources(folder / "engine", device=device)
        return Slot(backend, resources, folder, document, self._data)

    def _write_frames(self) -> tuple[str, ...]:
        """Imported frames, or displaced starting structures with random labels, as DeePMD-kit
        systems."""
        rng = np.random.default_rng(self.spec.seed)
        items = [Labelled(frame, label, {}) for frame, label in self.gathered.labelled]
        if not items:
            starts = [frames[0] for frames in self.gathered.systems.values()]
            items = [_displaced(frame, rng) for frame in starts for _ in range(self._frames(frame))]
        written = write_deepmd(items, self.scratch / "data", self.spec.type_map)
        return tuple(map(str, written))

    def _frames(self, frame: Frame) -> int:
        """As many as fill a batch on a GPU."""
        return max(FRAMES, -(-self.spec.training.batch(GPU_BATCH) // len(frame.species)))


def _displaced(frame: Frame, rng: np.random.Generator) -> Labelled:
    """Atoms moved by 0.05 Å, with random energy, forces and virial."""
    moved = frame.positions + rng.normal(0, 0.05, frame.positions.shape)
    virial = None if frame.cell is None else rng.normal(0, 1, (3, 3))
    label = FrameLabel(float(rng.normal()), rng.normal(0, 1, moved.shape), virial)
    changed = Frame(frame.species, moved, frame.cell, frame.fparam, frame.aparam)
    return Labelled(changed, label, {})


def devices() -> list[Device]:
    """The CPU, and the GPU on which a trainer here would compute, if any. Raises SpecError as
    `chosen`."""
    mine = device_of_environment()
    return [chosen("cpu"), *([mine] if mine.gpu is not None else [])]


def _that_fit_in_memory() -> int:
    """Trainings for which there is memory, in addition to the first."""
    return 1 + int(memory() / SLOT_MIB)


def _name(device: Device) -> str:
    return "cpu" if device.gpu is None else device.gpu.name


class Slot:
    """One of several trainings at once, with an engine of its own."""

    def __init__(
        self,
        backend: str,
        resources: TrainerResources,
        folder: Path,
        document: Callable[[int], Mapping[str, Any]],
        systems: tuple[str, ...],
    ) -> None:
        """`document` returns the input of a training of so many steps."""
        folder.mkdir(parents=True)
        self.backend, self.folder, self.systems = backend, folder, systems
        self._resources, self._document = resources, document
        self._engine = resources.engine(backend)
        self._engine.start()  # by the thread that ends it
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self.error: DpstreamError | None = None

    def check_device(self, device: Device) -> None:
        """Waits until the libraries are imported. Raises SpecError if they cannot use a GPU."""
        described = self._call("describe", {})
        if device.gpu is not None and described["device"] == "cpu":
            raise SpecError(f"{described['backend']} cannot use this GPU")

    def costs(self, compressing: bool) -> tuple[float, float]:
        """Seconds of a training of `SHORT` steps, and to freeze, compress and measure its model."""
        chosen, where = BACKENDS[self.backend], {"folder": str(self.folder)}
        began = time.monotonic()
        self._write_input(SHORT)
        self._call("train", where)
        trained = time.monotonic()
        frozen = model = f"frozen{chosen.suffix}"
        self._call("freeze", {**where, "checkpoint": chosen.checkpoint(SHORT), "model": frozen})
        if compressing:
            compressed = f"compressed{chosen.suffix}"
            try:
                self._call("compress", {**where, "frozen": frozen, "model": compressed})
                model = compressed
            except DpstreamError:  # the descriptor does not support it
                pass
        systems = {"model": str(self.folder / model), "systems": list(self.systems)}
        self._call("evaluate", systems)
        return trained - began, time.monotonic() - trained

    def begin(self) -> None:
        """Start to train without end, if it has not been started."""
        if self._thread is None:
            (self.folder / LCURVE).unlink(missing_ok=True)
            self._write_input(ENDLESS)
            self._thread = threading.Thread(target=self._train, daemon=True)
            self._thread.start()

    @property
    def step(self) -> int:
        """Of the last line of the loss curve. Raises the error that ended the training."""
        if self.error is not None:
            raise self.error
        return last_step(self.folder)

    def stop(self) -> None:
        """End the training at the next look, within about a second."""
        self._ending.set()

    def close(self) -> None:
        if self._thread is not None:
            self._thread.join()
        self._resources.close()

    def _train(self) -> None:
        try:
            self._call("train", {"folder": str(self.folder)})
        except Stopped:
            pass
        except DpstreamError as error:
            self.error = error

    def _call(self, operation: str, arguments: Mapping[str, Any]) -> Any:
        return self._engine.call(operation, arguments, tick=self._check)

    def _check(self) -> None:
        if self._ending.is_set():
            raise Stopped("the measurement is over")

    def _write_input(self, steps: int) -> None:
        (self.folder / INPUT).write_text(json.dumps(self._document(steps)))


def _seconds_per_step(slots: list[Slot], deadline: float) -> float:
    """Mean over the slots, all of which train meanwhile: from the times at which two lines of each
    loss curve appear, between `SHORTEST` and `LONGEST` seconds apart where steps allow it."""
    for slot in slots:
        slot.begin()
    firsts = [_Line(slot) for slot in slots]
    while not all(line.seen for line in firsts):
        _poll(firsts)
    lines = [_Line(slot) for slot in slots]
    began = time.monotonic()
    until = min(began + LONGEST, max(deadline, began + SHORTEST))
    while time.monotonic() < until or not all(line.rate for line in lines):
        _poll(lines)
    return float(np.mean([line.rate for line in lines]))


class _Line:
    """The first and the last line of a slot's loss curve that appeared since now."""

    def __init__(self, slot: Slot) -> None:
        self._slot, self._before = slot, slot.step
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int] | None = None

    @property
    def seen(self) -> bool:
        return self._first is not None

    @property
    def rate(self) -> float:
        """Seconds per step; 0 if it is not known yet."""
        if self._first is None or self._last is None or self._last[1] == self._first[1]:
            return 0.0
        return (self._last[0] - self._first[0]) / (self._last[1] - self._first[1])

    def look(self) -> None:
        step = self._slot.step
        if step > self._before:
            self._before, self._last = step, (time.monotonic(), step)
            self._first = self._first or self._last


def _poll(lines: list[_Line]) -> None:
    time.sleep(POLL)
    for line in lines:
        line.look()
