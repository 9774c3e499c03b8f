"""Runs one training in its private folder.

Writes the dataset and `input.json`, trains in the child process while uploading checkpoints, then
freezes, compresses and measures the model.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dpstream.services.trainer import checkpoints
from dpstream.services.trainer.device_facts import device_facts, on_gpu
from dpstream.services.trainer.input_words import check_words
from dpstream.services.trainer.repulsion import table_text
from dpstream.services.trainer.resources import TrainerResources
from dpstream.services.trainer.start_from import StartingModel, lay_out
from dpstream.services.trainer.training_input import (
    BACKENDS,
    INPUT,
    LCURVE,
    RESOLVED,
    TABLE,
    Backend,
    TrainingRun,
    build_input,
)
from dpstream.shared.activity import Activity
from dpstream.shared.atoms.dataset import Labelled, load_dataset, write_deepmd
from dpstream.shared.atoms.frames import frame_key
from dpstream.shared.errors import EngineError, Permanent, Stopped, Temporary
from dpstream.shared.logs import logger
from dpstream.shared.messages import CheckpointSaved, Train
from dpstream.shared.runtime.confinement.files import arriving_in, read_inside
from dpstream.shared.runtime.context import Context
from dpstream.shared.spec import Spec
from dpstream.shared.spec.dimers import dimer_keys
from dpstream.shared.values import DeviceFacts, Ref, Rmse

log = logger()


DISK_FAULT = ("OSError", "UnknownError")
"""Exceptions that DeePMD-kit raises when disk space runs out."""


@dataclass
class TrainingJob:
    """One training in its private folder."""

    resources: TrainerResources
    command: Train
    context: Context
    _since: float = field(default_factory=time.monotonic)
    _start: StartingModel = field(default_factory=StartingModel)
    _uploaded: int = 0
    _written: dict[tuple[str, Ref], tuple[str, ...]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.context.scratch

    @cached_property
    def spec(self) -> Spec:
        return self.context.spec()

    @property
    def backend(self) -> Backend:
        return BACKENDS[self.spec.training.backend]

    def prepare(self) -> None:
        """Write the training set, the starting model and `input.json`. Raises Permanent for an
        input that may name files: spec and checkpoint arrive unchecked."""
        self._check_device()
        with arriving_in(self.folder) as fresh:
            self._prepare(fresh)

    def _prepare(self, fresh: Path) -> None:
        models = self.resources.models
        self._start = lay_out(self.command, self.spec, self.context, models, fresh)
        self._uploaded = self._start.resumed or 0
        run = TrainingRun(
            type_map=self.spec.type_map,
            systems=self._write("train", self.command.dataset),
            steps=self.command.steps,
            seed=self.command.seed,
            member=self.command.member,
            warm=self.command.start is not None or self._start.given,
            checkpoint_every=self._checkpoint_every(),
            model=self._start.section,
            batch_atoms=self.command.batch_atoms,
            rate=self.command.rate,
        )
        table = table_text(self.spec, self.command.files, self.context.fetch)
        if table is not None:
            (fresh / TABLE).write_text(table)
        document = build_input(self.spec.training, run)
        try:
            check_words(document, run.systems)
        except ValueError as error:
            raise Permanent(f"training.input: {error}") from error
        (fresh / INPUT).write_text(json.dumps(document, indent=1))

    def _check_device(self) -> None:
        """Raises Temporary, for another machine, if DeePMD-kit cannot use the GPU that this
        worker's setting demands; warns if it cannot use one that is there."""
        name, described = self.spec.training.backend, self.resources.described
        if name in described:
            return
        described[name] = self._run("describe", {})
        device = self.resources.device
        if device is None or device.gpu is None or on_gpu(described[name]):
            return
        reason = (
            f"{described[name]['backend']} cannot use {device.gpu.name}; "
            f"pip install '{self.backend.on_gpu}'"
        )
        if device.required:
            del described[name]
            raise Temporary(reason, delay=30.0)
        log.warning("training on the CPU", reason=reason)

    def device_facts(self) -> DeviceFacts:
        """What the training ran on."""
        resolved = self.folder / RESOLVED
        used = resolved if resolved.exists() else self.folder / INPUT
        document = json.loads(read_inside(used, self.folder))
        described = self.resources.described[self.spec.training.backend]
        return device_facts(described, self.resources.device, document)

    def _checkpoint_every(self) -> int | None:
        return None if self.spec.starts_over else self.spec.training.checkpoint_steps

    def _write(self, name: str, manifest: Ref) -> tuple[str, ...]:
        """Write a dataset version as DeePMD-kit systems. Paths are relative to the folder, so that
        the model does not depend on the machine."""
        if (name, manifest) in self._written:
            return self._written[name, manifest]
        try:
            labelled = load_dataset(self.context.fetch, manifest)
            if name == "measured":
                labelled = self._without_dimers(labelled)
            with arriving_in(self.folder) as fresh:
                systems = write_deepmd(labelled, fresh / name, self.spec.type_map)
        except ValueError as error:
            raise Permanent(f"{name}: {error}") from error
        if not systems and name == "train":
            raise Permanent("the dataset has no labelled frames")
        paths = tuple(str(system.relative_to(fresh)) for system in systems)
        self._written[name, manifest] = paths
        return paths

    def _without_dimers(self, labelled: list[Labelled]) -> list[Labelled]:
        """The frames without dimers, whose large forces would dominate the errors."""
        keys = dimer_keys(self.spec)
        return [item for item in labelled if frame_key(item.frame) not in keys] or labelled

    def train(self) -> int:
        """Train to the end and return the step of the last checkpoint."""
        resumed = self._start.resumed
        if resumed is not None and resumed >= self.command.steps:
            return resumed
        self.context.progress(f"step {resumed or 0}/{self.command.steps}")
        try:
            self._call("train", tick=self._show_progress, **self._start.options())
        except Stopped:
            self._upload_newest()
            raise
        step = checkpoints.newest_step(self.folder, self.backend)
        if step is None:
            raise Permanent("DeePMD-kit ended without a checkpoint")
        return step

    def _show_progress(self) -> None:
        self.context.progress(f"step {last_step(self.folder)}/{self.command.steps}")
        self._upload_newest()

    def _upload_newest(self) -> None:
        """Store the newest checkpoint, if not stored yet, so that another attempt can resume from
        it."""
        step = checkpoints.newest_step(self.folder, self.backend)
        if self.spec.starts_over or step is None or not self._uploaded < step < self.command.steps:
            return
        data = checkpoints.pack(self.folder, self.backend, step)
        ref = self.context.put(f"checkpoint-{step}.zip", data)
        self._uploaded = step
        self.context.publish(CheckpointSaved(**self.context.envelope(), checkpoint=ref, step=step))

    def freeze(self, step: int) -> Path:
        self.context.progress("freezing")
        model = f"frozen{self.backend.suffix}"
        self._call("freeze", checkpoint=self.backend.checkpoint(step), model=model)
        return self.folder / model

    def compress(self, frozen: Path) -> Path | None:
        """The compressed model; None if compression is off or the descriptor does not support
        it."""
        if not self.spec.training.compress:
            return None
        self.context.progress("compressing")
        model = f"compressed{self.backend.suffix}"
        try:
            self._call("compress", frozen=frozen.name, model=model)
        except Permanent as error:
            if self.backend.compressed_only:
                raise
            log.info("model not compressed", task=self.command.title, reason=str(error))
            return None
        return self.folder / model

    def measure(self, model: Path) -> dict[str, Rmse | None]:
        """Errors of `model` on the training, audit and test sets."""
        self.context.progress("measuring errors")
        command = self.command
        sets = {"train": command.dataset, "audit": command.audit, "test": command.test}
        return {
            name: None if ref is None else self._errors(name, ref, model)
            for name, ref in sets.items()
        }

    def _errors(self, name: str, manifest: Ref, model: Path) -> Rmse | None:
        with_dimers = name == "train" and self.spec.initial.dimers is not None
        systems = self._write("measured" if with_dimers else name, manifest)
        if not systems:
            return None
        paths = [str(self.folder / system) for system in systems]
        errors = self._run("evaluate", {"model": str(model), "systems": paths})
        if not math.isfinite(errors["force"]):
            raise Permanent(f"the training diverged: force RMSE on {name} is {errors['force']}")
        return Rmse(**errors)

    def _call(self, operation: str, tick: Callable[[], None] | None = None, **options: Any) -> Any:
        return self._run(operation, {"folder": str(self.folder), **options}, tick)

    def _run(
        self, operation: str, arguments: Mapping[str, Any], tick: Callable[[], None] | None = None
    ) -> Any:
        """Call the child process within the remaining time of the task. Raises Permanent for its
        errors, Temporary if the machine is at fault."""
        left = self.command.max_seconds - (time.monotonic() - self._since)
        engine = self.resources.engine(self.spec.training.backend)
        activity = Activity(lambda: engine.pid)
        check = activity.watched(self.context.check, self.context.progressed)

        def check_and_tick() -> None:
            check()
            if tick is not None:
                tick()

        try:
            return engine.call(operation, arguments, tick=check_and_tick, seconds=max(1.0, left))
        except EngineError as error:
            reason = f"{operation}: {error.kind}: {error}"
            if error.kind in DISK_FAULT:
                raise Temporary(reason, delay=30.0) from error
            raise Permanent(reason) from error


def last_step(folder: Path) -> int:
    """Step of the last line of the loss curve in `folder`; 0 before the first."""
    if not (folder / LCURVE).exists():
        return 0
    rows = [line.split() for line in read_inside(folder / LCURVE, folder).splitlines()]
    steps = [int(row[0]) for row in rows if row and row[0].isdigit()]
    return steps[-1] if steps else 0
