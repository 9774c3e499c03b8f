"""The `screen` task: checks and judges frames that an external generator offers.

An invalid frame or proposal gives a verdict with a reason and never fails the task. Sizes are
limited before anything is parsed.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from dpstream.services.explorer.evaluation import deviations
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.services.explorer.selection.geometry import GeometryLimits, limits_for, refusal
from dpstream.shared.atoms.deviation import Verdict, verdict
from dpstream.shared.atoms.frames import Batch, Floats, Frame, canonical, frame_key, from_ase
from dpstream.shared.errors import DigestMismatch, NotFound
from dpstream.shared.messages import Screen, StructuresScreened
from dpstream.shared.runtime.context import Context
from dpstream.shared.spec import Proposals, Spec
from dpstream.shared.values import LONGEST_REASON, Offered, OfferedFrame, Ref, Screened

Read = Frame | str
"""A frame, or the reason why it is invalid."""


class Unreadable(Exception):
    """The proposal cannot be read."""


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
        frames = list(_read(command, context, spec.proposals))
    except Unreadable as error:
        reason = str(error)[:LONGEST_REASON]
        return StructuresScreened(**context.envelope(), version=command.version, refused=reason)
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


def _read(command: Screen, context: Context, limits: Proposals) -> Iterator[Read]:
    """The frames of the proposal. Raises `Unreadable` if their number differs from the
    command's."""
    data = _bytes(command.frames, context, limits.max_bytes)
    reader = READERS[command.frames.uri.rpartition(".")[2]]
    try:
        frames = list(islice(reader(data, limits), command.count + 1))
    except Unreadable:
        raise
    except Exception as error:  # parsers raise various exceptions for invalid input
        raise Unreadable(f"unreadable: {type(error).__name__}: {error}") from error
    if len(frames) != command.count:
        found = "more" if len(frames) > command.count else len(frames)
        raise Unreadable(f"{command.count} frames were announced, found {found}")
    yield from frames


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


def _written_out(data: bytes, limits: Proposals) -> Iterator[Read]:
    for offered in Offered.model_validate_json(data).frames:
        yield _frame(offered)


def _frame(offered: OfferedFrame) -> Read:
    if offered.malformed:
        return offered.malformed
    try:
        positions = np.array(offered.positions, dtype=np.float64).reshape(-1, 3)
        cell = None if offered.cell is None else np.array(offered.cell, dtype=np.float64)
        if len(positions) != len(offered.positions):
            raise ValueError("positions must be three numbers per atom")
        return Frame(offered.species, positions, cell)
    except ValueError as error:
        return f"malformed: {error}"


def _archived(data: bytes, limits: Proposals) -> Iterator[Read]:
    """Frames of an `.npz` batch, whose unpacked size is checked first."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > limits.max_bytes:
        raise Unreadable(f"{size} bytes unpacked; at most {limits.max_bytes} allowed")
    batch = Batch.loads(data)
    if batch.positions.ndim != 3 or not np.issubdtype(batch.positions.dtype, np.floating):
        raise Unreadable("positions must be numbers of shape (n_frames, n_atoms, 3)")
    if batch.cells is not None and len(batch.cells) != len(batch):
        raise Unreadable("the number of cells must equal the number of frames")
    for row in range(len(batch)):
        try:
            yield batch[row]
        except ValueError as error:
            yield f"malformed: {error}"


def _extended(data: bytes, limits: Proposals) -> Iterator[Read]:
    """Frames of an extended xyz file."""
    from ase.io import iread  # deferred: ASE is slow to import

    for atoms in iread(io.StringIO(data.decode()), index=":", format="extxyz"):
        try:
            yield from_ase(atoms)
        except ValueError as error:
            yield str(error)


READERS = {"json": _written_out, "npz": _archived, "extxyz": _extended}


# ------------------------------------------------------------------------------------- checking


def _checked(
    frames: Sequence[Read], first: int, spec: Spec, limits: GeometryLimits
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


def _usable(frame: Read, spec: Spec, limits: GeometryLimits) -> Read:
    """The canonical frame, or the reason why it is refused; inexpensive tests come first."""
    if isinstance(frame, str):
        return frame
    if not 1 <= len(frame.species) <= spec.proposals.max_atoms:
        return f"{len(frame.species)} atoms; allowed: 1 to {spec.proposals.max_atoms}"
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
    refused = refusal(frame, limits)
    return frame if refused is None else str(refused)


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
