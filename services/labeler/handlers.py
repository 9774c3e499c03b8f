"""Handlers of the labeler's commands: `label` and `reference`.

A label is computed only if the store does not have it, and is then shared by all campaigns. A frame
that cannot be labelled becomes a rejection with a reason, never an exception.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from dpstream.services.labeler.acceptance import (
    AcceptanceLimits,
    BrokenRule,
    Outcome,
    check_after,
    check_before,
)
from dpstream.services.labeler.child import frame_facts, frame_from_facts
from dpstream.services.labeler.codes.base import FileCode
from dpstream.services.labeler.dynamics import Plan
from dpstream.services.labeler.labeling import MAX_DETAIL, FrameLabeler
from dpstream.services.labeler.recipes import make_recipe, recipe_for
from dpstream.services.labeler.resources import LabelerResources
from dpstream.shared.atoms.dataset import labelled_batch
from dpstream.shared.atoms.frames import Frame, FrameLabel, decode_labelled
from dpstream.shared.errors import Permanent, SpecError
from dpstream.shared.logs import logger
from dpstream.shared.messages import (
    CheckLabel,
    Command,
    Label,
    LabelChecked,
    LabelsDone,
    Reference,
    ReferenceDone,
)
from dpstream.shared.runtime.context import Context, Handler
from dpstream.shared.spec import Spec
from dpstream.shared.values import Accepted, Recipe, Rejected

log = logger()

CHUNK_SECONDS = 1.0
"""Work after which a library's verdicts are published: a fast one does not send a message per
frame."""


def unserved(
    resources: LabelerResources, command: Label | CheckLabel | Reference, context: Context
) -> str | None:
    """What this worker lacks to compute labels for the campaign; None: nothing."""
    try:
        _recipe(resources, command, context.spec())
    except SpecError as error:
        return str(error)
    return None


def _recipe(
    resources: LabelerResources, command: Label | CheckLabel | Reference, spec: Spec
) -> Recipe:
    """The campaign's recipe. Raises SpecError if this worker's differs, or if the worker's settings
    do not allow it."""
    recipe = make_recipe(spec.labels)
    if recipe.digest != command.recipe:
        raise SpecError(
            f"this worker's recipe is {recipe.digest} ({recipe.program}), the "
            f"campaign's is {command.recipe}: the code's version or its settings differ"
        )
    refusal = resources.refusal(recipe)
    if refusal is not None:
        raise SpecError(refusal)
    return recipe


def _labeler(
    resources: LabelerResources, command: Label | CheckLabel | Reference, context: Context
) -> FrameLabeler:
    """Raises Permanent as `_recipe` does SpecError."""
    spec = context.spec()
    try:
        recipe = _recipe(resources, command, spec)
    except SpecError as error:
        raise Permanent(f"this worker cannot label for this campaign: {error}") from error
    return FrameLabeler(resources, context, spec.labels, recipe, spec)


def label(resources: LabelerResources, command: Label, context: Context) -> LabelsDone:
    """Label every frame of the command or reject it with a reason. Publishes all verdicts but those
    of the last chunk, which is returned. Labels of an earlier attempt are reused. Raises Permanent
    if this worker's recipe differs from the campaign's."""
    labeler = _labeler(resources, command, context)
    verdicts: list[Accepted | Rejected] = []
    chunk = 0
    for number, ref in enumerate(command.frames):
        if verdicts and _is_due(labeler, context):
            context.publish(_labels_done(context, verdicts, chunk, last=False))
            verdicts, chunk = [], chunk + 1
        context.progress(f"frame {number + 1} of {len(command.frames)}")
        verdicts.append(labeler.label(ref))
    return _labels_done(context, verdicts, chunk, last=True)


def _is_due(labeler: FrameLabeler, context: Context) -> bool:
    """Whether the verdicts so far are published before the next frame, on which a program may work
    for hours."""
    return isinstance(labeler.code, FileCode) or context.unsaved >= CHUNK_SECONDS


def _labels_done(
    context: Context, verdicts: Sequence[Accepted | Rejected], chunk: int, last: bool
) -> LabelsDone:
    return LabelsDone(
        **context.envelope(),
        chunk=chunk,
        last=last,
        accepted=tuple(v for v in verdicts if isinstance(v, Accepted)),
        rejected=tuple(v for v in verdicts if isinstance(v, Rejected)),
    )


def check_label(resources: LabelerResources, command: CheckLabel, context: Context) -> LabelChecked:
    """Computes a reused or imported label again and compares the two. Without a new label, for
    example after a crash, nothing is known of the other one."""
    labeler = _labeler(resources, command, context)
    known = decode_labelled(context.fetch(command.label))[1]
    found = labeler.compare(command.frame, known)
    if isinstance(found, BrokenRule):
        why = f"{found.rule}: {found.detail[:MAX_DETAIL]}"
        log.warning("label not checked", frame=command.frame.key, reason=why)
        return LabelChecked(**context.envelope(), rejected=why)
    facts = {"forces": found.forces, "energy": found.energy, "differs": found.differs}
    return LabelChecked(**context.envelope(), **facts, opposed=found.opposed)


def reference(resources: LabelerResources, command: Reference, context: Context) -> ReferenceDone:
    """One trajectory of held-out frames: a labelled batch of canonical frames with `energy`,
    `forces` and, if periodic, `virial`. Raises Permanent if the dynamics fails or the code is an
    external program."""
    labeler = _labeler(resources, command, context)
    if isinstance(labeler.code, FileCode):
        raise Permanent(f"{labeler.code.name} cannot drive dynamics: only Python libraries can")
    start = labeler.frame(command.structure)
    if isinstance(start, BrokenRule):
        raise Permanent(f"the starting structure: {start.rule}: {start.detail}")
    arguments = {
        "recipe": labeler.for_engine(recipe_for(labeler.recipe, start)),
        "frame": frame_facts(start),
        "plan": asdict(_plan(command, context)),
    }
    kept = labeler.call("reference_md", arguments, command.max_seconds)
    batch = labelled_batch(list(_accepted(labeler, kept, start)))
    pack = context.put(f"reference-{command.trajectory}.npz", batch.dumps())
    return ReferenceDone(
        **context.envelope(), trajectory=command.trajectory, pack=pack, frames=len(batch)
    )


def _plan(command: Reference, context: Context) -> Plan:
    settings = context.spec().verification.reference_md
    if settings is None:
        raise Permanent("the spec has no verification.reference_md")
    return Plan(seed=command.seed, **settings.model_dump(exclude={"system", "trajectories"}))


def _accepted(
    labeler: FrameLabeler, kept: list[dict[str, Any]], start: Frame
) -> Iterator[tuple[Frame, FrameLabel]]:
    """The kept frames, with the parameters of `start`, and their labels. Raises Permanent if one
    violates the acceptance contract."""
    for number, item in enumerate(kept):
        frame = frame_from_facts(item["frame"]).with_parameters(start.parameters)
        outcome = Outcome.of(item["outcome"])
        limits = AcceptanceLimits.of(labeler.labels, labeler.spec)
        recipe = recipe_for(labeler.recipe, frame)
        refused = check_before(frame, recipe, labeler.code, limits)
        broken = refused or check_after(frame, outcome, limits)
        if broken is not None:
            raise Permanent(f"reference frame {number}: {broken.rule}: {broken.detail}")
        yield frame, outcome.label()


HANDLERS: dict[type[Command], Handler] = {
    Label: label,
    CheckLabel: check_label,
    Reference: reference,
}
