"""Prepares the model from which a training starts.

A training starts from the checkpoint of its own earlier attempt (resume), from the previous
committee's checkpoint (warm start), from a model that the user gave, or from scratch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpstream.services.trainer import checkpoints
from dpstream.services.trainer.input_words import check_words
from dpstream.services.trainer.training_input import BACKENDS, CHECKPOINT, Begin
from dpstream.shared.atoms.tensorflow_graph import check_checkpoint, check_model, graph_of, texts_of
from dpstream.shared.errors import Permanent
from dpstream.shared.messages import Train
from dpstream.shared.runtime.context import Context
from dpstream.shared.spec import Spec
from dpstream.shared.values import Ref, given_model

GRAPH = ".meta"
"""Suffix of TensorFlow's graph of a checkpoint."""
SCRIPT = "train_attr/training_script"
"""Node with the input.json of the training of which the model came."""
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
    command: Train, spec: Spec, context: Context, allowed: Collection[str], folder: Path
) -> StartingModel:
    """Write the starting model to `folder`. Raises Permanent if the file is not a model or its
    suffix is not in `allowed`."""
    backend = BACKENDS[spec.training.backend]
    if command.resume is not None and not spec.starts_over:
        step = _unpack(command.resume, folder, context)
        section = checkpoints.model_section(folder)
        return StartingModel("restart", backend.checkpoint(step), resumed=step, section=section)
    if command.start is not None:
        step = _unpack(command.start, folder / START, context)
        section = checkpoints.model_section(folder / START)
        return StartingModel("init-model", f"{START}/{backend.checkpoint(step)}", section=section)
    return _given(command, spec, context, allowed, folder)


def _given(
    command: Train, spec: Spec, context: Context, allowed: Collection[str], folder: Path
) -> StartingModel:
    """The user's model for this member, or for all members."""
    init = spec.training.init
    if init is None:
        return StartingModel()
    name = given_model(command.member % len(init.model))
    if name not in command.files:
        raise Permanent(f"the campaign was submitted without {name}")
    ref = command.files[name]
    refusal = lacks(command, spec, allowed)
    if refusal is not None:
        raise Permanent(refusal)
    suffix = Path(ref.uri).suffix
    if init.how == "init-model":
        step = _unpack(ref, folder / START, context)
        checkpoint = BACKENDS[spec.training.backend].checkpoint(step)
        for graph in _graphs(folder / START):
            _check(name, lambda data: check_script(graph_of(data)), graph.read_bytes())
        return StartingModel(init.how, f"{START}/{checkpoint}", given=True)
    model, data = f"given{suffix}", context.fetch(ref)
    if suffix == BACKENDS["tensorflow"].suffix:
        _check(name, check_model, data)
        _check(name, check_script, data)
    (folder / model).write_bytes(data)
    return StartingModel(init.how, model, given=True, branch=init.branch or "")


def lacks(command: Train, spec: Spec, allowed: Collection[str]) -> str | None:
    """Why a worker must not start from the user's model of this member; None if it may, or if the
    training starts from none. `allowed`: suffixes."""
    init = spec.training.init
    if init is None or command.resume is not None or command.start is not None:
        return None
    name = given_model(command.member % len(init.model))
    suffix = Path(command.files[name].uri).suffix if name in command.files else None
    if suffix is None or suffix in allowed:
        return None
    return f"{name}: this worker's DPSTREAM_TRAINER_MODELS lacks {suffix}"


def check_script(graph: bytes) -> None:
    """Raises ValueError if the model section inside `graph`, with which DeePMD-kit continues, may
    name a file. Of a compressed model, DeePMD-kit does not read how it was compressed."""
    for script in texts_of(graph, SCRIPT):
        document = json.loads(script)
        model = document.get("model") if isinstance(document, dict) else None
        if not isinstance(model, dict):
            raise ValueError("the model holds no input.json")
        check_words({"model": {key: model[key] for key in model if key != "compress"}})


def _check(name: str, check: Callable[[bytes], None], data: bytes) -> None:
    try:
        check(data)
    except ValueError as error:
        raise Permanent(f"{name}: {error}") from error


def _graphs(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{CHECKPOINT}-*{GRAPH}"))


def _unpack(ref: Ref, folder: Path, context: Context) -> int:
    """Unpack a checkpoint, whose TensorFlow graph runs when it is read. Raises Permanent if it is
    invalid: it may come from whoever may write results."""
    try:
        step = checkpoints.unpack(context.fetch(ref), folder)
        for graph in _graphs(folder):
            check_checkpoint(graph.read_bytes())
        return step
    except ValueError as error:
        raise Permanent(f"{ref.uri}: {error}") from error
