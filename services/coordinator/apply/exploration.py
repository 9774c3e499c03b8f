"""Applies messages about exploration: rounds, trajectories, the candidate pool and selections.

Chunks of a trajectory add to the counts of the running round and to the pool. A selection moves
frames from the pool to the label requests. Chunks are counted once each, in any order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from dpstream.services.coordinator.apply.labels import request_labels
from dpstream.services.coordinator.apply.tasks import (
    chunk_counted,
    live_task,
    settle,
    unfinished_task,
)
from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.state import KnownFrame, Round, State, Task
from dpstream.shared import messages as m
from dpstream.shared.values import Chosen, Counts, PoolItem, is_offered


def explore_issued(state: State, command: m.Explore) -> State:
    if state.exploration.round is None:
        state = _begin_round(state, command.version)
    exploration = state.exploration
    assert exploration.round is not None
    begun = exploration.round.begun(command.task, str(command.condition))
    return replace(state, exploration=replace(exploration, round=begun))


def _begin_round(state: State, version: int) -> State:
    exploration = state.exploration
    number, stage = exploration.rounds + 1, exploration.stage
    exploration = replace(
        exploration,
        stage=replace(stage, rounds=stage.rounds + 1),
        rounds=number,
        round=Round(number, version),
        verdict=None,
    )
    return replace(state, exploration=exploration)


def chunk_explored(state: State, event: m.ChunkExplored) -> State:
    task = unfinished_task(state, event)
    if task is None:
        return state
    state, over = chunk_counted(state, _resumable(task, event), event)
    state = count_checks(state, event.task, event.counts, event.dropped, done=over)
    if event.candidates is not None:
        state = add_candidates(state, (event.candidates,))
    return state if event.reservoir is None else _keep_reservoir(state, event.task, event.reservoir)


def _resumable(task: Task, event: m.ChunkExplored) -> Task:
    """Lets another attempt resume after this chunk, if all chunks before it have arrived."""
    command = task.command
    assert isinstance(command, m.Explore)
    unbroken = event.chunk >= command.from_chunk and task.chunks.issuperset(range(event.chunk))
    if event.restart is None or not unbroken:
        return task
    resume = {"resume": event.restart, "from_chunk": event.chunk + 1}
    return replace(task, command=command.model_copy(update=resume))


def _keep_reservoir(state: State, task: str, item: PoolItem) -> State:
    current = state.exploration.round
    if current is None or task not in current.tallies:
        return state
    current = replace(current, reservoirs=current.reservoirs.set(item.frames.uri, item))
    return replace(state, exploration=replace(state.exploration, round=current))


def count_checks(state: State, task: str, counts: Counts, dropped: int, done: bool) -> State:
    """Counts the checks of a trajectory, if it belongs to the running round."""
    current = state.exploration.round
    if current is None or task not in current.tallies:
        return state
    current = current.counted(task, counts, dropped, done)
    return replace(state, exploration=replace(state.exploration, round=current))


def explore_abandoned(state: State, command: m.Explore, why: str) -> State:
    """Counts the planned checks of a trajectory that were not made as dropped."""
    current = state.exploration.round
    if current is None:
        return state
    current = current.abandoned(command.task, state.spec.stages[command.stage].frames, why)
    return replace(state, exploration=replace(state.exploration, round=current))


def add_candidates(state: State, items: Iterable[PoolItem]) -> State:
    """Adds batches to the pool, or to the stale ones if their committee is too old."""
    oldest = state.committee.version - state.spec.streaming.max_staleness
    candidates = state.candidates
    for item in items:
        stale = item.version < oldest
        candidates = candidates.outdated(item) if stale else candidates.pooled((item,))
    return replace(state, candidates=candidates)


def judge_issued(state: State, command: m.Judge) -> State:
    stale = state.candidates.stale
    for item in command.pool:
        stale = stale.delete(item.frames.uri)
    return replace(state, candidates=replace(state.candidates, stale=stale))


def frames_judged(state: State, event: m.FramesJudged) -> State:
    task = live_task(state, event)
    if task is None:
        return state
    assert isinstance(task.command, m.Judge)
    state = settle(state, task)
    if _other_levels(state, task.command):
        candidates = state.candidates
        for item in event.pool:
            candidates = candidates.outdated(item)
        state = replace(state, candidates=candidates)
    else:
        state = add_candidates(state, event.pool)
    accurate = set(event.accurate)
    for ref in task.command.frames:
        frame = state.labels.frames.get(ref.key)
        if frame is not None:
            state = state.with_frame(replace(frame, accurate=ref.key in accurate))
    return state


def _other_levels(state: State, command: m.Judge) -> bool:
    """Whether an amendment has set other trust levels since the task was issued."""
    now = state.exploration.stage.trust
    return state.plan.number > 1 and now is not None and now != command.trust


def judge_abandoned(state: State, command: m.Judge) -> State:
    """Returns the batches to the pool: their old verdict stands until the next committee."""
    return replace(state, candidates=state.candidates.pooled(command.pool))


def select_issued(state: State, command: m.Select) -> State:
    state = replace(state, candidates=replace(state.candidates, added=0))
    current = state.exploration.round
    if current is None or current.unfinished:
        return state
    closing = replace(current, closing=command.task)
    return replace(state, exploration=replace(state.exploration, round=closing))


def candidates_selected(state: State, event: m.CandidatesSelected) -> State:
    task = unfinished_task(state, event)
    if task is None:
        return state
    state, over = chunk_counted(state, task, event)
    room = state.label_room
    new = [c for c in event.labels if state.frame_status(c.key) is None][:room]
    audits = [c for c in event.audits if state.frame_status(c.key) is None][: room - len(new)]
    state = replace(state, candidates=state.candidates.took(event.version, new, audits))
    picked = [_chosen_frame(event, c, "train") for c in new]
    picked += [_chosen_frame(event, c, "audit") for c in audits]
    return _count_chosen(request_labels(state, picked), event, new, audits, over)


def _count_chosen(
    state: State, event: m.CandidatesSelected, new: list[Chosen], audits: list[Chosen], over: bool
) -> State:
    current, stage = state.exploration.round, state.exploration.stage
    if current is None:
        return state
    missing = len(stage.audits) < state.spec.audit.min_frames
    own = sum(not is_offered(choice.trajectory) for choice in new)
    useful = own + (len(audits) if missing else 0)
    closed = over and current.closing == event.task
    current = replace(current, chosen=current.chosen + useful, closed=closed)
    return replace(state, exploration=replace(state.exploration, round=current))


def _chosen_frame(
    event: m.CandidatesSelected, choice: Chosen, purpose: Literal["train", "audit"]
) -> KnownFrame:
    return KnownFrame(
        ref=choice.frame_ref(event.batches),
        purpose=purpose,
        stage=-1 if is_offered(choice.trajectory) else event.stage,
        version=choice.version,
        origin=choice.trajectory,
        weight=choice.weight,
    )
