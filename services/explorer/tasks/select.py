"""The `select` task: chooses frames from a pool for training and for the audit.

Loads the pool's frames, applies the geometry filters, chooses (`selection.choose`), draws the audit
(`selection.audit_draw`), and publishes the chosen frames in chunks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dpstream.services.explorer.selection.audit_draw import AuditRules, draw_audit
from dpstream.services.explorer.selection.choose import (
    OVER,
    Candidate,
    Refusals,
    Selected,
    SelectionRules,
    Taken,
    Used,
    choose,
)
from dpstream.services.explorer.selection.clusters import centres, cluster
from dpstream.services.explorer.selection.diversity import Environments
from dpstream.services.explorer.selection.geometry import (
    GeometryLimits,
    Refusal,
    limits_for,
    refusal,
)
from dpstream.shared.atoms.frames import Batch, Floats, Frame, frame_key
from dpstream.shared.messages import CandidatesSelected, Select
from dpstream.shared.runtime.context import Context
from dpstream.shared.spec import Spec, TrustLevels
from dpstream.shared.values import CandidatePool, Chosen, PoolItem, Ref, RefusedFrames, stable_seed

FRAMES_PER_EVENT = 75
"""Frames per event, such that it fits in a message even with the longest names."""
NO_CLUSTER = "no cluster can be cut"
MAX_REASONS = 2000
"""Maximum refused frames whose individual reasons are stored: about 200 KB."""
DIGITS = 6
"""Significant digits of the numbers of a pick."""

Picks = Sequence[Candidate]


class DescriptorSource(Protocol):
    """Source of descriptors for a diverse draw."""

    def descriptors(
        self, committee: Ref, batch: Batch, context: Context, relative: float | None
    ) -> tuple[Sequence[Floats], Sequence[Floats]]:
        """Per frame of `batch`: descriptors `(n_atoms, n_features)` by member 0, and the
        committee's force deviation of each atom `(n_atoms,)`, eV/Å; with `relative` (eV/Å) that
        relative to the mean force."""


@dataclass(frozen=True)
class LoadedPool:
    """A pool in memory: one record per frame, and the batches that the records refer to."""

    batches: Sequence[Batch]
    candidates: Sequence[Candidate]
    reservoir: Sequence[Candidate]
    taken: Taken
    used: Used
    fallback: bool

    def frame(self, candidate: Candidate) -> Frame:
        return self.batches[candidate.item][candidate.row]


def select(resources: DescriptorSource, command: Select, context: Context) -> CandidatesSelected:
    """Choose frames from the command's pool: filters, deduplication, spacing, policy, audit draw.

    Writes one `chosen-<chunk>-<n>.npz` (arrays `devi_f` in eV/Å, `time_ps`) per composition.
    """
    spec = context.spec()
    loaded = load(CandidatePool.model_validate_json(context.fetch(command.pool)), context)
    context.check()
    limits = limits_for(spec.type_map, spec.selection.min_distance, spec.selection.max_skew)
    refusals = Refusals()
    for_labels, failed_instead = _selectable(loaded)
    good = _valid(loaded, for_labels, limits, "", refusals)
    labels = choose(
        good,
        _rules(spec, command, failed_instead),
        loaded.taken,
        lambda pool: _described(resources, command, context, loaded, pool),
        loaded.used,
    )
    audits = _audits(spec, command, loaded, limits, labels, refusals)
    if spec.selection.clusters is not None:
        loaded, labels = _cut(resources, command, context, loaded, labels, refusals)
    refusals.counts.update(labels.refused)
    refusals.by_key |= labels.reasons
    *chunks, rest = _chunks(labels.picks, audits.picks)
    for number, picks in enumerate(chunks):
        context.publish(_event(command, context, loaded, number, *picks, last=False))
    refused = dict(sorted(refusals.counts.items()))
    reasons = _refusals(refusals, context)
    return _event(
        command, context, loaded, len(chunks), *rest, last=True, refused=refused, refusals=reasons
    )


def load(pool: CandidatePool, context: Context) -> LoadedPool:
    """The pool's batches with a record of every frame."""
    items = [*pool.candidates, *pool.reservoirs]
    batches = [Batch.loads(context.fetch(item.frames)) for item in items]
    records = [_records(n, *pair) for n, pair in enumerate(zip(items, batches, strict=True))]
    split = len(pool.candidates)
    return LoadedPool(
        batches,
        [c for group in records[:split] for c in group],
        [c for group in records[split:] for c in group],
        pool.taken,
        pool.used,
        pool.fallback,
    )


def _records(number: int, item: PoolItem, batch: Batch) -> list[Candidate]:
    """One record per frame. Each frame offered by a generator (array `offered`: its index in the
    proposal) counts as a separate trajectory."""
    ones, zeros = np.ones(len(batch)), np.zeros(len(batch), dtype=np.bool_)
    offered = batch.arrays.get("offered")
    weight, failed = batch.arrays.get("weight", ones), batch.arrays.get("failed", zeros)
    return [
        Candidate(
            key=frame_key(frame),
            trajectory=item.trajectory if offered is None else f"{item.trajectory}/{offered[row]}",
            condition=item.condition,
            version=item.version,
            time_ps=float(batch.arrays["time_ps"][row]),
            planned_ps=item.planned_ps,
            deviation=float(batch.arrays["devi_f"][row]),
            item=number,
            row=row,
            weight=float(weight[row]),
            failed=bool(failed[row]),
        )
        for row, frame in enumerate(batch)
    ]


def _selectable(loaded: LoadedPool) -> tuple[Sequence[Candidate], bool]:
    """The frames to choose labels from: the candidates or, without candidates and if the command
    allows it, failed frames (True)."""
    if loaded.fallback and not loaded.candidates:
        return [c for c in loaded.reservoir if c.failed], True
    return loaded.candidates, False


def _valid(
    loaded: LoadedPool,
    candidates: Iterable[Candidate],
    limits: GeometryLimits,
    prefix: str,
    refusals: Refusals,
) -> list[Candidate]:
    """The candidates that pass the geometry filters; the others are added to `refusals`."""
    valid = []
    for candidate in candidates:
        refused = refusal(loaded.frame(candidate), limits)
        if refused is None:
            valid.append(candidate)
        else:
            refusals.add(candidate, replace(refused, reason=prefix + refused.reason))
    return valid


def _rules(spec: Spec, command: Select, failed_instead: bool) -> SelectionRules:
    selection = spec.selection
    return SelectionRules(
        labels=command.labels,
        seed=command.seed,
        policy="least-deviation" if failed_instead else selection.drawn_by,
        per_system=command.per_system,
        caps=command.caps,
        min_per_system=selection.min_per_system,
        pool_size=None if failed_instead else selection.pool_size,
        pool_share=None if failed_instead else selection.pool_share,
        per_trajectory=selection.per_trajectory,
        min_separation=selection.min_separation,
        time_bins=selection.time_bins,
    )


def _audits(
    spec: Spec,
    command: Select,
    loaded: LoadedPool,
    limits: GeometryLimits,
    labels: Selected,
    refusals: Refusals,
) -> Selected:
    if command.audits == 0:
        return Selected((), {})
    rules = AuditRules(
        command.audits,
        stable_seed(command.seed, "audit"),
        spec.audit.min_trajectories,
        spec.selection.min_separation,
    )
    reservoir = _valid(loaded, loaded.reservoir, limits, "audit: ", refusals)
    drawn = draw_audit(reservoir, rules, loaded.taken, labels.picks)
    # Reservoir frames are not candidates, so those not drawn do not count as refused.
    counted = {f"audit: {why}": n for why, n in drawn.refused.items() if why != OVER}
    refusals.counts.update(counted)
    return drawn


def _cut(
    resources: DescriptorSource,
    command: Select,
    context: Context,
    loaded: LoadedPool,
    labels: Selected,
    refusals: Refusals,
) -> tuple[LoadedPool, Selected]:
    """Clusters in place of the frames of `labels`, and the pool with them: at most as many as the
    command and its limits per system allow."""
    spec = context.spec()
    rules, limits = spec.selection.clusters, _rules(spec, command, failed_instead=False)
    assert rules is not None
    described = _described(resources, command, context, loaded, labels.picks)
    batches, picks, systems = list(loaded.batches), dict[str, Candidate](), Counter[str]()
    judged = zip(labels.picks, described.deviations, described.low, strict=True)
    for pick, deviation, low in judged:
        frame, system = loaded.frame(pick), pick.condition.system
        most = min(
            rules.per_frame, command.labels - len(picks), limits.cap(system) - systems[system]
        )
        refusal: Refusal | None = Refusal(OVER)
        for atom in centres(frame, deviation, low, rules.separation, int(most)):
            try:
                own = cluster(frame, atom, rules.radius)
            except ValueError as error:
                refusal = refusal if refusal is None else Refusal(NO_CLUSTER, str(error))
                continue
            refusal = None
            systems[system] += 1
            batches.append(Batch.of([own]))
            why = f"{pick.reason}; cluster of {len(own.species)} atoms around its atom {atom + 1}"
            place = replace(pick, key=frame_key(own), item=len(batches) - 1, row=0, reason=why)
            picks.setdefault(place.key, place)
        if refusal is not None:
            refusals.add(pick, refusal)
    return replace(loaded, batches=batches), replace(labels, picks=tuple(picks.values()))


def _described(
    resources: DescriptorSource,
    command: Select,
    context: Context,
    loaded: LoadedPool,
    pool: Sequence[Candidate],
) -> Environments:
    """Atomic environments of the pool, evaluated one composition at a time. In place of a
    calibrated lower level, the smallest deviation of the candidates judged by it is used."""
    descriptors: dict[int, Floats] = {}
    deviations: dict[int, Floats] = {}
    spec = context.spec()
    levels = [_levels(spec, command, candidate) for candidate in pool]
    relative = [None if each is None else each.relative for each in levels]
    judged = zip(pool, levels, strict=True)
    least = min((each.deviation for each, own in judged if own is None), default=0.0)
    frames = [loaded.frame(c) for c in pool]
    for members in Batch.grouped(frames, also=relative):
        context.check()
        batch, scale = Batch.of([frames[i] for i in members]), relative[members[0]]
        values, by_atom = resources.descriptors(command.committee, batch, context, scale)
        descriptors.update(zip(members, values, strict=True))
        deviations.update(zip(members, by_atom, strict=True))
    return Environments(
        [frame.species for frame in frames],
        [descriptors[i] for i in range(len(frames))],
        [deviations[i] for i in range(len(frames))],
        [least if each is None else each.low for each in levels],
    )


def _levels(spec: Spec, command: Select, candidate: Candidate) -> TrustLevels | None:
    """The trust levels by which a candidate was judged; None if they are calibrated, because the
    command does not have them."""
    stage = spec.stages[command.stage]
    own = stage.system_trust.get(candidate.condition.system) or stage.trust or spec.trust
    return own if isinstance(own, TrustLevels) else None


def _chunks(labels: Picks, audits: Picks) -> list[tuple[Picks, Picks]]:
    """All picks in chunks of at most `FRAMES_PER_EVENT`; at least one chunk."""
    picks, split = [*labels, *audits], len(labels)
    return [
        (
            picks[first : min(first + FRAMES_PER_EVENT, split)],
            picks[max(first, split) : first + FRAMES_PER_EVENT],
        )
        for first in range(0, max(len(picks), 1), FRAMES_PER_EVENT)
    ]


def _event(
    command: Select,
    context: Context,
    loaded: LoadedPool,
    chunk: int,
    labels: Picks,
    audits: Picks,
    **fields: Any,
) -> CandidatesSelected:
    picks = [*labels, *audits]
    places: dict[int, tuple[int, int]] = {}
    refs = []
    groups = Batch.grouped([loaded.frame(pick) for pick in picks])
    for number, members in enumerate(groups):
        batch = _batch([picks[i] for i in members], loaded)
        refs.append(context.put(f"chosen-{chunk}-{number}.npz", batch.dumps()))
        places.update({i: (number, row) for row, i in enumerate(members)})
    chosen = tuple(_chosen(pick, *places[i]) for i, pick in enumerate(picks))
    return CandidatesSelected(
        **context.envelope(),
        version=command.version,
        stage=command.stage,
        chunk=chunk,
        batches=tuple(refs),
        labels=chosen[: len(labels)],
        audits=chosen[len(labels) :],
        **fields,
    )


def _refusals(refusals: Refusals, context: Context) -> Ref | None:
    """Stores the reasons of individual refusals, the first `MAX_REASONS` by key."""
    reasons = dict(sorted(refusals.by_key.items())[:MAX_REASONS])
    if not reasons:
        return None
    return context.put("refused.json", RefusedFrames(frames=reasons).model_dump_json().encode())


def _batch(candidates: Sequence[Candidate], loaded: LoadedPool) -> Batch:
    arrays: dict[str, npt.NDArray[np.float64]] = {
        "devi_f": np.array([c.deviation for c in candidates]),
        "time_ps": np.array([c.time_ps for c in candidates]),
    }
    return Batch.of([loaded.frame(c) for c in candidates], **arrays)


def _chosen(c: Candidate, batch: int, index: int) -> Chosen:
    return Chosen(
        batch=batch,
        index=index,
        key=c.key,
        trajectory=c.trajectory,
        version=c.version,
        time_ps=round(c.time_ps, DIGITS),
        deviation=_rounded(c.deviation),
        weight=_rounded(c.weight),
        reason=c.reason,
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
