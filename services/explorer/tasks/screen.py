"""The `screen` task: checks and judges frames that an external generator offers.

An invalid frame or proposal gives a verdict with a reason and never fails the task. Sizes are
limited before anything is parsed, and a parser in an expendable process (`parsing`) reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dpstream.services.explorer.evaluation import deviations
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.services.explorer.selection.geometry import GeometryLimits, limits_for, refusal
from dpstream.shared.atoms.deviation import Verdict, verdict
from dpstream.shared.atoms.frames import Batch, Floats, Frame, canonical, frame_key
from dpstream.shared.atoms.records import Record
from dpstream.shared.errors import DigestMismatch, NotFound
from dpstream.shared.messages import Screen, StructuresScreened
from dpstream.shared.runtime.context import Context
from dpstream.shared.runtime.parser import Parser, Unreadable, limits_of
from dpstream.shared.spec import Proposals, Spec
from dpstream.shared.values import LONGEST_REASON, Ref, Screened


@dataclass(frozen=True, eq=False)
class ValidFrame:
    """A valid canonical frame; `index`: its index in the generator's proposal.

    `verdict`, `deviation`: the committee's verdict and ε_f in eV/Å; without a committee the frame
    is a candidate as it is.
    """

    index: int
    key: str
    frame: Frame
    verdict: Verdict = "candidate"
    deviation: float | None = None


def screen(resources: ExplorerResources, command: Screen, context: Context) -> StructuresScreened:
    """Judge every offered frame; candidates are stored, one batch per composition."""
    spec = context.spec()
    try:
        frames = _read(resources.parser, command, context, spec.proposals)
    except Unreadable as error:
        reason = str(error)[:LONGEST_REASON]
        return StructuresScreened(**context.envelope(), version=command.version, refused=reason)
    context.progressed()
    limits = limits_for(spec.type_map, spec.selection.min_distance, spec.selection.max_skew)
    verdicts, valid = _checked(frames, command.first, spec, limits)
    batches: list[Ref] = []
    for members in Batch.grouped([item.frame for item in valid]):
        context.check()
        judged = _judged(resources, [valid[i] for i in members], command, context)
        kept = [each for each in judged if each.verdict == "candidate"]
        if kept:
            batch = _batch(kept, command.version)
            batches.append(context.put(f"offered-{len(batches)}.npz", batch.dumps()))
        rows = {each.index: row for row, each in enumerate(kept)}
        verdicts += [_screened(each, len(batches) - 1, rows.get(each.index)) for each in judged]
    return StructuresScreened(
        **context.envelope(),
        version=command.version,
        batches=tuple(batches),
        found=tuple(sorted(verdicts, key=lambda each: each.index)),
    )


# ------------------------------------------------------------------------------------- reading


def _read(
    parser: Parser, command: Screen, context: Context, limits: Proposals
) -> list[Frame | str]:
    """The frames of the proposal, or reasons why they are invalid. Raises `Unreadable` if their
    number differs from the command's, and `ParserFailed`."""
    data = _bytes(command.frames, context, limits.max_bytes)
    kind = command.frames.uri.rpartition(".")[2]
    arguments = {"kind": kind, "count": command.count, "limits": limits.model_dump()}
    allowed = limits_of(command.count, command.count * limits.max_atoms)
    try:
        records = parser.read("frames", data, arguments, allowed, context.check)
    except Unreadable as error:
        raise Unreadable(f"unreadable: {error}") from error
    if len(records) != command.count:
        found = "more" if len(records) > command.count else len(records)
        raise Unreadable(f"{command.count} frames were announced, found {found}")
    return [_frame(record) for record in records]


def _bytes(ref: Ref, context: Context, most: int) -> bytes:
    try:
        data = context.fetch(ref)
    except NotFound as error:
        raise Unreadable("the object does not exist") from error
    except DigestMismatch as error:
        raise Unreadable("the object does not match its reference") from error
    if len(data) > most:
        raise Unreadable(f"{len(data)} bytes; at most {most} allowed")
    return data


def _frame(record: Record) -> Frame | str:
    try:
        return str(record.facts["refused"]) if "refused" in record.facts else record.frame()
    except ValueError as error:
        return f"malformed: {error}"


# ------------------------------------------------------------------------------------- checking


def _checked(
    frames: Sequence[Frame | str], first: int, spec: Spec, limits: GeometryLimits
) -> tuple[list[Screened], list[ValidFrame]]:
    """Verdicts on refused frames and duplicates, and the valid frames."""
    verdicts: list[Screened] = []
    valid: dict[str, ValidFrame] = {}
    for index, read in enumerate(frames, start=first):
        frame = _usable(read, spec, limits)
        if isinstance(frame, str):
            reason = frame[:LONGEST_REASON]
            verdicts.append(Screened(index=index, verdict="refused", reason=reason))
            continue
        key = frame_key(frame)
        if key in valid:
            why = f"identical to frame {valid[key].index} of the proposal"
            verdicts.append(Screened(index=index, key=key, verdict="duplicate", reason=why))
        else:
            valid[key] = ValidFrame(index, key, frame)
    return verdicts, list(valid.values())


def _usable(frame: Frame | str, spec: Spec, limits: GeometryLimits) -> Frame | str:
    """The canonical frame, or the reason why it is refused; inexpensive tests come first."""
    if isinstance(frame, str):
        return frame
    refused = spec.proposals.wrong_size(len(frame.species))
    if refused is not None:
        return refused
    unknown = sorted(set(frame.species) - set(spec.type_map))
    if unknown:
        return f"element {unknown[0][:20]!r} is not in type_map ({', '.join(spec.type_map)})"
    for name, size in spec.training.parameters.items():
        count = frame.parameters.get(name, np.empty(0)).shape[-1]
        if count != size:
            return f"the models need {size} numbers of {name}, this frame has {count}"
    try:
        frame = canonical(frame).frame
    except (ValueError, np.linalg.LinAlgError) as error:
        return str(error)
    unsound = refusal(frame, limits)
    return frame if unsound is None else str(unsound)


# ------------------------------------------------------------------------------------- judging


def _judged(
    resources: ExplorerResources, group: Sequence[ValidFrame], command: Screen, context: Context
) -> Sequence[ValidFrame]:
    """The frames of one composition with the committee's verdicts."""
    if command.committee is None or command.trust is None:
        return group
    models = resources.committee(command.committee, context).models
    evaluation = resources.evaluate(models, Batch.of([item.frame for item in group]), context)
    devi_f, devi_v = deviations(evaluation, command.trust)
    virial: Sequence[float | None] = [None] * len(group) if devi_v is None else _floats(devi_v)
    return [
        replace(each, verdict=verdict(f, v, command.trust), deviation=f)
        for each, f, v in zip(group, _floats(devi_f), virial, strict=True)
    ]


def _floats(values: Floats) -> list[float]:
    return [float(value) for value in values]


def _batch(kept: Sequence[ValidFrame], version: int) -> Batch:
    arrays: Mapping[str, npt.NDArray[Any]] = {
        "offered": np.array([each.index for each in kept]),
        "devi_f": np.array([each.deviation or 0.0 for each in kept]),
        "time_ps": np.zeros(len(kept)),
        "version": np.full(len(kept), version),
    }
    return Batch.of([each.frame for each in kept], **arrays)


def _screened(each: ValidFrame, batch: int, row: int | None) -> Screened:
    """The verdict on a frame, with its batch and row if it was kept."""
    deviation = None if each.deviation is None else float(f"{each.deviation:.6g}")
    place = {} if row is None else {"batch": batch, "row": row}
    return Screened(
        index=each.index, key=each.key, verdict=each.verdict, deviation=deviation, **place
    )
