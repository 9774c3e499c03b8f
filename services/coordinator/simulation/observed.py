"""What a campaign that has run says of tasks and machines: the assumptions of `--like`.

Times of tasks, shares of candidates and rejections, and how often workers were reclaimed follow
from its ledger. When machines start, how many there are and what they cost is in no ledger, and is
taken from the fleet file.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence

from dpstream.services.coordinator.fleet.assumptions import Assumptions, PoolAssumptions, Times
from dpstream.services.coordinator.fleet.pools import FleetFile
from dpstream.services.coordinator.views.campaign import CampaignView
from dpstream.shared import messages as m
from dpstream.shared.errors import SpecError

MOST_VALUES = 10_000
"""Observed times of one kind that are kept, of the latest tasks."""
HOUR = 3600.0


def observed(view: CampaignView, file: FleetFile) -> Assumptions:
    """The assumptions of `file`, with what the campaign shows in place of what is assumed. Raises
    SpecError if it has computed no label."""
    labels = [a for done in _of(view, m.LabelsDone) for a in done.accepted if not a.reused]
    if not labels:
        raise SpecError(f"--like: {view.spec.name}: has computed no label")
    times = defaultdict[str, list[float]](list)
    for span in view.work.spans():
        if span.outcome == "done":
            times[span.kind].append(span.end - span.start)
    times["label"] = [each.seconds for each in labels]
    times.pop("check-label", None)
    tasks = {kind: Times(values=tuple(each[-MOST_VALUES:])) for kind, each in times.items()}
    rejected = sum(len(done.rejected) for done in _of(view, m.LabelsDone))
    given = file.simulation
    return given.model_copy(
        update={
            "tasks": {**given.tasks, **tasks},
            "candidates": _candidates(view) or given.candidates,
            "rejected": rejected / (rejected + len(labels)),
            "pools": {**given.pools, **_reclaimed(view.messages, file)},
        }
    )


def _of(view: CampaignView, kind: type[m.M]) -> Iterator[m.M]:
    return (each for each in view.messages if isinstance(each, kind))


def _candidates(view: CampaignView) -> tuple[float, ...]:
    """Share of candidates by the number of the committee in its stage, over all stages, up to the
    last committee that found some."""
    stages = {each.task: each.stage for each in _of(view, m.Explore)}
    found, checks = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for chunk in _of(view, m.ChunkExplored):
        if chunk.task in stages:
            found[stages[chunk.task], chunk.version] += chunk.counts.candidate
            checks[stages[chunk.task], chunk.version] += chunk.counts.total
    first = {stage: min(v for s, v in checks if s == stage) for stage, _ in checks}
    sums = defaultdict[int, list[int]](lambda: [0, 0])
    for (stage, version), count in checks.items():
        of_number = sums[version - first[stage]]
        of_number[0] += found[stage, version]
        of_number[1] += count
    last = max((number for number, (some, _) in sums.items() if some), default=-1)
    return tuple(sums[n][0] / max(sums[n][1], 1) for n in range(last + 1))


def _reclaimed(messages: Sequence[m.Message], file: FleetFile) -> dict[str, PoolAssumptions]:
    """Share of the workers of each pool that are reclaimed in an hour, from how often tasks were
    interrupted in the hours that workers had one."""
    stops = Counter[str]()
    seconds = defaultdict[str, float](float)
    claims: dict[tuple[str, int], m.TaskClaimed] = {}
    for message in messages:
        if isinstance(message, m.TaskClaimed):
            claims.setdefault((message.task, message.attempt), message)
        elif isinstance(message, m.TaskEvent) and _ends(message):
            claim = claims.pop((message.task, message.attempt), None)
            pool = _pool_of(claim, file.pools) if claim else None
            if claim is not None and pool is not None:
                seconds[pool] += max(0.0, message.time - claim.time)
                stops[pool] += _is_reclaimed(message)
    return {
        pool: file.simulation.of_pool(pool).model_copy(
            update={"preemptions": 1 - math.exp(-stops[pool] * HOUR / seconds[pool])}
        )
        for pool in stops
        if stops[pool] and seconds[pool]
    }


def _ends(event: m.TaskEvent) -> bool:
    if isinstance(event, m.Chunk):
        return event.last
    return isinstance(event, (m.Result, m.TaskReleased, m.LeaseLapsed, m.TaskFailed))


def _is_reclaimed(event: m.TaskEvent) -> bool:
    """Whether the worker was stopped, or its process had ended."""
    if isinstance(event, m.TaskReleased):
        return event.preempted
    return isinstance(event, m.LeaseLapsed) and bool(event.reason)


def _pool_of(claim: m.TaskClaimed, pools: Collection[str]) -> str | None:
    """The pool of a worker's process, `POOL-TIME-NUMBER`; None for one that no pool has."""
    pool = (claim.process or "").rpartition("-")[0].rpartition("-")[0]
    return pool if pool in pools else None
