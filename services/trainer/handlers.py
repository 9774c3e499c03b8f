"""Handler of the trainer's command `train`: from a dataset version to a measured model.

The steps are those of `TrainingJob`: train, freeze, compress, measure errors; the results are
stored and reported as member-trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dpstream.services.trainer import checkpoints
from dpstream.services.trainer.resources import TrainerResources
from dpstream.services.trainer.start_from import lacks
from dpstream.services.trainer.training import TrainingJob
from dpstream.services.trainer.training_input import LCURVE
from dpstream.shared.codec import encode
from dpstream.shared.messages import Command, MemberTrained, Train
from dpstream.shared.runtime.confinement.files import read_inside
from dpstream.shared.runtime.context import Context
from dpstream.shared.values import TRAINED


def train(resources: TrainerResources, command: Train, context: Context) -> MemberTrained:
    """Train, freeze, compress and measure one member.

    Raises Permanent for input that DeePMD-kit does not accept and for results that lead out of the
    training's folder, Temporary if memory, disk space or
    GPU of the machine is at fault, EngineCrashed, and Stopped if the task is cancelled or the
    worker stops (in streaming mode, after storing the newest checkpoint).
    """
    job = TrainingJob(resources, command, context)
    job.prepare()
    step = job.train()
    frozen = job.freeze(step)
    compressed = job.compress(frozen)
    if compressed is not None and job.backend.compressed_only:
        frozen = compressed
    model = compressed or frozen
    errors = job.measure(model)
    device = job.device_facts()
    frozen_ref = context.put(frozen.name, read_inside(frozen, job.folder))
    same = model == frozen
    model_ref = frozen_ref if same else context.put(model.name, read_inside(model, job.folder))
    checkpoint = checkpoints.pack(job.folder, job.backend, step)
    trained = MemberTrained(
        **context.envelope(),
        version=command.version,
        member=command.member,
        steps=command.steps,
        model=model_ref,
        frozen=frozen_ref,
        compressed=compressed is not None,
        device=device,
        checkpoint=context.put("checkpoint.zip", checkpoint),
        lcurve=context.put(LCURVE, read_inside(job.folder / LCURVE, job.folder)),
        **errors,
    )
    context.put(TRAINED, b"\n".join((encode(command), encode(trained), context.proof.encode())))
    return trained


def unserved(resources: TrainerResources, command: Train, context: Context) -> str | None:
    """What this worker lacks to train for the campaign; None: nothing."""
    spec = context.spec()
    return resources.lacks(spec.training.backend) or lacks(command, spec, resources.models)


HANDLERS: Mapping[type[Command], Callable[[Any, Any, Context], MemberTrained]] = {Train: train}
