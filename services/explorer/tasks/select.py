"""The `select` task: load a pool, choose from it, write what was chosen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dpstream.services.explorer.selection.audit_draw import AuditRules, draw_audit
from dpstream.services.explorer.selection.choose import (
    OVER,
    Candidate,
    Pick,
    Refusals,
    Selected,
    SelectionRules,
    Taken,
    Used,
    choose,
)
from dpstream.services.explorer.selection.diversity import Environments
from dpstream.services.explorer.selection.geometry import GeometryLimits, limits_for, refusal
from dpstream.shared.atoms.frames import Batch, Floats, Frame, frame_key
from dpstream.shared.messages import CandidatesSelected, Select
from dpstream.shared.runtime.context import Context
from dpstream.shared.spec import Spec, TrustLevels
from dpstream.shared.values import Chosen, Pool, PoolItem, Ref, RefusedFrames, stable_seed

NAMED = 75
"""Frames that one event names: with the longest names and a batch for each it still fits."""
MOST_TOLD = 2000
"""Refused frames whose reasons are kept one by one: 200 KB."""
DIGITS = 6
"""Significant digits of the numbers that travel with a pick."""

Picks = Sequence[Pick]


class DescriptorSource(Protocol):
    """What a diverse draw asks of the explorer's warm engine."""

    def descriptors(
        self, committee: Ref, batch: Batch, context: Context
    ) -> tuple[Sequence[Floats], Sequence[Floats]]:
        """Per frame of `batch`: descriptors `(n_atoms, n_features)` by member 0, and the
        committee's force deviation of each atom `(n_atoms,)`, in the trust levels' unit: eV/Å, or
        relative where they are."""


@dataclass(frozen=True)
class LoadedPool:
    """Pool items in memory: the records to choose from, and the batches they point into."""

    batches: Sequence[Batch]
    candidates: Sequence[Candidate]
    reservoir: Sequence[Candidate]
    taken: Taken
    used: Used
    fallback: bool

    def frame(self, candidate: Candidate) -> Frame:
        return self.batches[candidate.item][candidate.row]


def select(resources: DescriptorSource, command: Select, context: Context) -> CandidatesSelected:
    """Filters, dedupe, spacing, batch policy and audit draw over the command's pool.

    Writes one `chosen-<chunk>-<n>.npz` (arrays `devi_f` in eV/Å, `time_ps`) per composition.
    """
    spec = context.spec()
    loaded = load(Pool.model_validate_json(context.fetch(command.pool)), context)
    context.check()
    limits = limits_for(spec.type_map, spec.selection.min_distance, spec.selection.max_skew)
    refusals = Refusals()
    for_labels, failed_instead = _asked_for(loaded)
    good = _sound(loaded, for_labels, limits, "", refusals)
    labels = choose(
        good,
        _rules(spec, command, failed_instead),
        loaded.taken,
        lambda pool: _described(resources, command, context, loaded, pool),
        loaded.used,
    )
    audits = _audits(spec, command, loaded, limits, labels, refusals)
    refusals.counts.update(labels.refused)
    refusals.by_key |= labels.told
    *chunks, rest = _chunks(labels.picks, audits.picks)
    for number, picks in enumerate(chunks):
        context.publish(_event(command, context, loaded, number, *picks, last=False))
    refused = dict(sorted(refusals.counts.items()))
    told = _told(refusals, context)
    return _event(
        command, context, loaded, len(chunks), *rest, last=True, refused=refused, refusals=told
    )


def load(pool: Pool, context: Context) -> LoadedPool:
    """The pool's batches and a record of every frame in them."""
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
    """One record per frame. Each frame that a generator offered (array `offered`: its index in the
    proposal) is a trajectory of its own."""
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


def _asked_for(loaded: LoadedPool) -> tuple[Sequence[Candidate], bool]:
    """What labels are chosen from: the candidates; failed frames if there are none and the
    coordinator asked for them."""
    if loaded.fallback and not loaded.candidates:
        return [c for c in loaded.reservoir if c.failed], True
    return loaded.candidates, False


def _sound(
    loaded: LoadedPool,
    candidates: Iterable[Candidate],
    limits: GeometryLimits,
    prefix: str,
    refusals: Refusals,
) -> list[Candidate]:
    """The candidates that pass the geometry filters; the others are added to `refusals`."""
    sound = []
    for candidate in candidates:
        refused = refusal(loaded.frame(candidate), limits)
        if refused is None:
            sound.append(candidate)
        else:
            refusals.add(candidate, replace(refused, reason=prefix + refused.reason))
    return sound


def _rules(spec: Spec, command: Select, failed_instead: bool) -> SelectionRules:
    selection = spec.selection
    return SelectionRules(
        labels=command.labels,
        seed=command.seed,
        policy="least-deviation" if failed_instead else selection.policy,
        per_system=command.per_system,
        caps=command.caps,
        min_per_system=selection.min_per_system,
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
    reservoir = _sound(loaded, loaded.reservoir, limits, "audit: ", refusals)
    trained = [pick.candidate for pick in labels.picks]
    drawn = draw_audit(reservoir, rules, loaded.taken, trained)
    # Reservoir frames never asked for a label: those left over are not refused anything.
    counted = {f"audit: {why}": n for why, n in drawn.refused.items() if why != OVER}
    refusals.counts.update(counted)
    return drawn


def _described(
    resources: DescriptorSource,
    command: Select,
    context: Context,
    loaded: LoadedPool,
    pool: Sequence[Candidate],
) -> Environments:
    """Descriptors of the pool's atoms, evaluated one composition at a time."""
    descriptors: dict[int, Floats] = {}
    deviations: dict[int, Floats] = {}
    frames = [loaded.frame(c) for c in pool]
    for members in Batch.grouped(frames):
        context.check()
        batch = Batch.of([frames[i] for i in members])
        values, by_atom = resources.descriptors(command.committee, batch, context)
        descriptors.update(zip(members, values, strict=True))
        deviations.update(zip(members, by_atom, strict=True))
    return Environments(
        [frame.species for frame in frames],
        [descriptors[i] for i in range(len(frames))],
        [deviations[i] for i in range(len(frames))],
        _low(context.spec(), command, pool),
    )


def _low(spec: Spec, command: Select, pool: Sequence[Candidate]) -> float:
    """The lower trust level. Calibrated levels are not in the command; there the smallest
    deviation of a candidate stands for the level that all of them passed."""
    trust = spec.stages[command.stage].trust or spec.trust
    if isinstance(trust, TrustLevels):
        return trust.low
    return min((c.deviation for c in pool), default=0.0)


def _chunks(labels: Picks, audits: Picks) -> list[tuple[Picks, Picks]]:
    """All picks, as many at a time as one event names; one chunk at least."""
    picks, split = [*labels, *audits], len(labels)
    return [
        (picks[first : min(first + NAMED, split)], picks[max(first, split) : first + NAMED])
        for first in range(0, max(len(picks), 1), NAMED)
    ]


def _event(
    command: Select,
    context: Context,
    loaded: LoadedPool,
    chunk: int,
    labels: Picks,
    audits: Picks,
    **said: Any,
) -> CandidatesSelected:
    picks = [*labels, *audits]
    places: dict[int, tuple[int, int]] = {}
    refs = []
    groups = Batch.grouped([loaded.frame(pick.candidate) for pick in picks])
    for number, members in enumerate(groups):
        batch = _batch([picks[i].candidate for i in members], loaded)
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
        **said,
    )


def _told(refusals: Refusals, context: Context) -> Ref | None:
    """What single frames were refused for, the first `MOST_TOLD` by key: an object for people."""
    told = dict(sorted(refusals.by_key.items())[:MOST_TOLD])
    if not told:
        return None
    return context.put("refused.json", RefusedFrames(frames=told).model_dump_json().encode())


def _batch(candidates: Sequence[Candidate], loaded: LoadedPool) -> Batch:
    arrays: dict[str, npt.NDArray[np.float64]] = {
        "devi_f": np.array([c.deviation for c in candidates]),
        "time_ps": np.array([c.time_ps for c in candidates]),
    }
    return Batch.of([loaded.frame(c) for c in candidates], **arrays)


def _chosen(pick: Pick, batch: int, index: int) -> Chosen:
    c = pick.candidate
    return Chosen(
        batch=batch,
        index=index,
        key=c.key,
        trajectory=c.trajectory,
        version=c.version,
        time_ps=round(c.time_ps, DIGITS),
        deviation=_rounded(c.deviation),
        weight=_rounded(pick.weight),
        reason=pick.reason,
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
