"""Decides when trajectories are started, and what happens to the verdicts of older committees.

A round tries the newest committee on every condition of the stage: `begin_round` issues one Explore
task per trajectory. When a newer committee becomes ready, `supersede` cancels trajectories that
have not started, `rejudge` sends waiting candidates and unstarted label frames to a Judge task, and
`revoke_accurate` withdraws labels that the new committee no longer needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import zip_longest

from dpstream.services.coordinator.decisions import (
    Decisions,
    already_decided,
    cancel,
    frozen_once,
    plan_identity,
    tasks_of,
)
from dpstream.services.coordinator.rules.training import must_train_first
from dpstream.services.coordinator.rules.trust import (
    current_trust,
    opening_trust,
    set_trust,
    stage_of,
    trust_of,
)
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m
from dpstream.shared.spec.engines import AsGiven
from dpstream.shared.values import (
    Condition,
    FrameRef,
    PoolItem,
    Ref,
    is_offered,
    stable_id,
    stable_seed,
)

JUDGE_BATCH, MOST_NAMED = 60, 500


def supersede(decisions: Decisions) -> None:
    """Cancels the trajectories of the previous committee that have not started."""
    if not isinstance(decisions.decided[-1] if decisions.decided else None, m.ModelsReady):
        return
    for task in tasks_of(decisions.state, m.Explore, "open"):
        cancel(decisions, task, f"superseded by committee {decisions.state.committee.version}")


def rejudge(decisions: Decisions) -> None:
    """Has the new committee judge stale candidates, and frames whose labeling has not started."""
    state = decisions.state
    frames: tuple[FrameRef, ...] = ()
    if already_decided(decisions, m.ModelsReady) and not already_decided(decisions, m.Judge):
        frames = _frames_to_judge(state)
    stale = state.candidates.stale
    pools = _batches(stale[uri] for uri in sorted(stale))
    waits = (frames[i : i + JUDGE_BATCH] for i in range(0, len(frames), JUDGE_BATCH))
    for pool, waiting in zip_longest(pools, waits, fillvalue=()):
        decisions.command(
            m.Judge,
            *(state.committee.version, *plan_identity(state)),
            *(item.frames.uri for item in pool),
            *(ref.key for ref in waiting),
            title=f"re-judge {sum(item.count for item in pool) + len(waiting)} frames",
            committee=state.committee.manifest,
            version=state.committee.version,
            trust=current_trust(state),
            pool=pool,
            frames=waiting,
        )


def _batches(items: Iterable[PoolItem]) -> Iterator[tuple[PoolItem, ...]]:
    """Splits items into tasks. The result of a task lists every offered frame by key, and a message
    has room for `MOST_NAMED` of them."""
    batch, named = list[PoolItem](), 0
    for item in items:
        offered = item.count if is_offered(item.trajectory) else 0
        if len(batch) == JUDGE_BATCH or named + offered > MOST_NAMED:
            yield tuple(batch)
            batch, named = [], 0
        batch.append(item)
        named += offered
    if batch:
        yield tuple(batch)


def _frames_to_judge(state: State) -> tuple[FrameRef, ...]:
    """Training frames of label tasks that have not started."""
    if state.spec.mode == "lockstep":
        return ()
    refs = (ref for task in tasks_of(state, m.Label, "open") for ref in task.label_frames)
    frames = state.labels.frames
    return tuple(ref for ref in refs if ref.key in frames and frames[ref.key].purpose == "train")


def revoke_accurate(decisions: Decisions) -> None:
    """Cancels label tasks that have not started and whose frames are accurate now."""
    event = decisions.event
    assert isinstance(event, m.FramesJudged)
    accurate = set(event.accurate)
    for task in tasks_of(decisions.state, m.Label, "open") if accurate else []:
        if accurate & {ref.key for ref in task.label_frames}:
            cancel(decisions, task, f"accurate under committee {event.version}")


def begin_round(decisions: Decisions) -> None:
    """Starts a round: the newest committee explores every condition of the stage."""
    state, committee = decisions.state, decisions.state.committee
    if not committee.version or committee.training is not None or state.exploration.round:
        return
    if state.stages_over or must_train_first(state):
        return
    if state.exploration.stage.trust is None:
        set_trust(decisions, *opening_trust(state))
    known = _known_frames(decisions)
    for index, (condition, number) in enumerate(_planned_trajectories(state)):
        _issue_trajectory(decisions, index, condition, number, known)


def _known_frames(decisions: Decisions) -> Ref | None:
    """Keys of the frames that are already in the campaign: a stage that judges given frames skips
    them."""
    state = decisions.state
    if not isinstance(stage_of(state).engine, AsGiven):
        return None
    body = json.dumps(sorted({*state.labels.frames, *state.archive.frame_keys}))
    return frozen_once(decisions, "known", f"known-{stable_id(body)[:8]}", body)


def _issue_trajectory(
    decisions: Decisions, index: int, condition: Condition, number: int, known: Ref | None
) -> None:
    state = decisions.state
    assert state.submitted is not None
    stage, exploration = stage_of(state), state.exploration
    number_of_round = exploration.rounds + (exploration.round is None)
    structures = state.submitted.systems[condition.system]
    start = number if stage.at_every_start else number_of_round + index
    name = f"{stage.name}/{number_of_round}/{str(condition).replace(' ', '-')}/{number}"
    decisions.command(
        m.Explore,
        name,
        title=f"explore {condition}, trajectory {number}",
        committee=state.committee.manifest,
        version=state.committee.version,
        stage=exploration.stage.index,
        trajectory=name,
        condition=condition,
        structure=structures[start % len(structures)],
        seed=stable_seed(state.spec.seed, "explore", name),
        driver=index % state.committee.size,
        trust=trust_of(state, condition.system),
        pinned=state.spec.mode == "lockstep",
        known=known,
    )


def _planned_trajectories(state: State) -> Iterator[tuple[Condition, int]]:
    stage = stage_of(state)
    counts = {system: _trajectories(state, system) for system in stage.systems}
    for number in range(max(counts.values())):
        for condition in stage.conditions():
            if number < counts[condition.system]:
                yield condition, number


def _trajectories(state: State, system: str) -> int:
    """Number of trajectories per condition of the current stage."""
    assert state.submitted is not None
    return stage_of(state).trajectories(len(state.submitted.systems[system]))
