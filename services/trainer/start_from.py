"""Prepares the model from which a training starts.

A training starts from the checkpoint of its own earlier attempt (resume), from the previous
committee's checkpoint (warm start), from a model that the user gave, or from scratch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpstream.services.trainer import checkpoints
from dpstream.services.trainer.training_input import BACKENDS, Begin
from dpstream.shared.errors import Permanent
from dpstream.shared.messages import Train
from dpstream.shared.runtime.context import Context
from dpstream.shared.spec import Spec
from dpstream.shared.values import Ref, given_model

START = "start"
"""Folder of the checkpoint of another training."""


@dataclass(frozen=True)
class StartingModel:
    """The model from which a training starts. `model`: checkpoint prefix or frozen model, relative
    to the training's folder, `given` by the user or made by dpstream; `resumed`: step at which the
    same training resumes; `section`: model section with which it was built, if recorded;
    `branch`: the head of a multitask model."""

    how: Begin | None = None
    model: str = ""
    given: bool = False
    resumed: int | None = None
    section: dict[str, Any] | None = None
    branch: str = ""

    def options(self) -> dict[str, Any]:
        """Arguments of the child's operation `train`."""
        options = {"how": self.how, "model": self.model, "given": self.given}
        return options | ({"branch": self.branch} if self.branch else {})


def lay_out(
    command: Train, spec: Spec, context: Context, allowed: Collection[str]
) -> StartingModel:
    """Write the starting model to the training's folder. Raises Permanent if the file is not a
    model or its suffix is not in `allowed`."""
    backend, folder = BACKENDS[spec.training.backend], context.scratch
    if command.resume is not None and not spec.starts_over:
        step = _unpack(command.resume, folder, context)
        section = checkpoints.model_section(folder)
        return StartingModel("restart", backend.checkpoint(step), resumed=step, section=section)
    if command.start is not None:
        step = _unpack(command.start, folder / START, context)
        section = checkpoints.model_section(folder / START)
        return StartingModel("init-model", f"{START}/{backend.checkpoint(step)}", section=section)
    return _given(command, spec, context, allowed)


def _given(command: Train, spec: Spec, context: Context, allowed: Collection[str]) -> StartingModel:
    """The user's model for this member, or for all members."""
    init = spec.training.init
    if init is None:
        return StartingModel()
    name = given_model(command.member % len(init.model))
    if name not in command.files:
        raise Permanent(f"the campaign was submitted without {name}")
    ref = command.files[name]
    suffix = Path(ref.uri).suffix
    if suffix not in allowed:
        raise Permanent(f"{name}: this worker's DPSTREAM_TRAINER_MODELS lacks {suffix}")
    if init.how == "init-model":
        step = _unpack(ref, context.scratch / START, context)
        checkpoint = BACKENDS[spec.training.backend].checkpoint(step)
        return StartingModel(init.how, f"{START}/{checkpoint}", given=True)
    model = f"given{suffix}"
    (context.scratch / model).write_bytes(context.fetch(ref))
    return StartingModel(init.how, model, given=True, branch=init.branch or "")


def _unpack(ref: Ref, folder: Path, context: Context) -> int:
    try:
        return checkpoints.unpack(context.fetch(ref), folder)
    except ValueError as error:
        raise Permanent(f"{ref.uri}: {error}") from error
