"""How rounds fill with frames, and the pool with candidates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dpstream.services.coordinator.apply.labels import ask_labels
from dpstream.services.coordinator.apply.tasks import changed, chunk_counted, is_live, settle
from dpstream.services.coordinator.state import ByCondition, KnownFrame, Round, State, Tally, Task
from dpstream.shared import messages as m
from dpstream.shared.values import Chosen, Counts, FrameRef, PoolItem, is_offered


def explore_issued(state: State, command: m.Explore) -> State:
    current = state.round
    if current is None:
        number = state.waves + 1
        current = Round(number=number, version=command.version)
        stage = state.stage.model_copy(update={"rounds": state.stage.rounds + 1})
        state = changed(state, waves=number, stage=stage, verdict=None)
    condition = str(command.condition)
    update = {
        "tallies": current.tallies.set(command.task, Tally(condition=condition)),
        "conditions": current.conditions.set(
            condition, current.conditions.get(condition, ByCondition())
        ),
        "unfinished": current.unfinished + 1,
    }
    return changed(state, round=current.model_copy(update=update))


def chunk_explored(state: State, event: m.ChunkExplored) -> State:
    task = state.tasks.get(event.task)
    if task is None or event.chunk in task.chunks or not is_live(task):
        return state
    state = add_to_tally(state, event.task, event.counts, event.dropped, done=False)
    if event.candidates is not None:
        state = offer_candidates(state, event.candidates)
    if event.reservoir is not None and state.round and event.task in state.round.tallies:
        reservoirs = state.round.reservoirs.set(event.reservoir.frames.uri, event.reservoir)
        state = changed(state, round=state.round.model_copy(update={"reservoirs": reservoirs}))
    return _chunk_counted(state, task, event)


def _chunk_counted(state: State, task: Task, event: m.ChunkExplored) -> State:
    """Another attempt would go on from the last chunk that none before is missing from."""
    command = task.command
    assert isinstance(command, m.Explore)
    unbroken = event.chunk >= command.from_chunk and task.chunks.issuperset(range(event.chunk))
    if event.restart is not None and unbroken:
        command = command.model_copy(
            update={"resume": event.restart, "from_chunk": event.chunk + 1}
        )
    state, over = chunk_counted(state, task, event, command=command)
    return add_to_tally(state, event.task, Counts(), 0, done=True) if over else state


def add_to_tally(state: State, task: str, counts: Counts, dropped: int, done: bool) -> State:
    if state.round is None or task not in state.round.tallies:
        return state
    old = state.round.tallies[task]
    checks = old.checks + counts.total + dropped
    new = old.model_copy(update={"checks": checks, "done": old.done or done})
    sums = state.round.conditions[old.condition]
    sums = ByCondition(counts=sums.counts + counts, dropped=sums.dropped + dropped)
    update = {
        "tallies": state.round.tallies.set(task, new),
        "conditions": state.round.conditions.set(old.condition, sums),
        "unfinished": state.round.unfinished - (new.done and not old.done),
    }
    return changed(state, round=state.round.model_copy(update=update))


def checks_left(state: State, command: m.Explore) -> int:
    tally = state.round.tallies.get(command.task) if state.round else None
    return state.spec.stages[command.stage].frames - (tally.checks if tally else 0)


def offer_candidates(state: State, item: PoolItem) -> State:
    """Candidates enter the pool, or the queue for a newer verdict when theirs is too old."""
    if state.version - item.version > state.spec.streaming.max_staleness:
        return changed(state, stale=state.stale.set(item.frames.uri, item))
    return changed(
        state, pool=state.pool.set(item.frames.uri, item), pool_new=state.pool_new + item.count
    )


def judge_issued(state: State, command: m.Judge) -> State:
    stale = state.stale
    for item in command.pool:
        stale = stale.delete(item.frames.uri)
    return changed(state, stale=stale)


def frames_judged(state: State, event: m.FramesJudged) -> State:
    task = state.tasks.get(event.task)
    if task is None or not is_live(task):
        return state
    state = settle(state, task, "done")
    for item in event.pool:
        state = offer_candidates(state, item)
    assert isinstance(task.command, m.Judge)
    frames, accurate = state.frames, set(event.accurate)
    for ref in task.command.frames:
        frame = frames[ref.key].model_copy(update={"accurate": ref.key in accurate})
        frames = frames.set(ref.key, frame)
    return changed(state, frames=frames)


def judge_abandoned(state: State, command: m.Judge) -> State:
    """Nobody could judge these again: their old verdict stands until the next committee."""
    pool = state.pool.update({item.frames.uri: item for item in command.pool})
    count = sum(item.count for item in command.pool)
    return changed(state, pool=pool, pool_new=state.pool_new + count)


def select_issued(state: State, command: m.Select) -> State:
    current = state.round
    if current is not None and current.unfinished == 0:
        state = changed(state, round=current.model_copy(update={"closing": command.task}))
    return changed(state, pool_new=0)


def candidates_selected(state: State, event: m.CandidatesSelected) -> State:
    task = state.tasks.get(event.task)
    if task is None or event.chunk in task.chunks or not is_live(task):
        return state
    state, over = chunk_counted(state, task, event)
    room = state.label_room
    new = [c for c in event.labels if c.key not in state.frames][:room]
    audits = [c for c in event.audits if c.key not in state.frames][: room - len(new)]
    picked = [_chosen_frame(event, c, "train") for c in new] + [
        _chosen_frame(event, c, "audit") for c in audits
    ]
    state = _times_taken(state, event.version, new, audits)
    state = changed(ask_labels(state, picked), selected=state.selected + len(new))
    current = state.round
    if current is None:
        return state
    missing = len(state.stage.audits) < state.spec.audit.min_frames
    own = sum(not is_offered(choice.trajectory) for choice in new)
    useful = own + (len(audits) if missing else 0)
    update = {"asked": current.asked + useful, "closed": over and current.closing == event.task}
    return changed(state, round=current.model_copy(update=update))


def _times_taken(
    state: State, version: int, labels: Iterable[Chosen], audits: Iterable[Chosen]
) -> State:
    """Times of every trajectory, from which frames chosen later keep apart; and those chosen for
    training under this version, which make up its share."""
    taken = state.taken
    places = [(choice.trajectory, choice) for choice in (*labels, *audits)]
    places += [(share_key(version, choice.trajectory), choice) for choice in labels]
    for place, choice in places:
        taken = taken.set(place, tuple(sorted((*taken.get(place, ()), choice.time_ps))))
    return changed(state, taken=taken)


def share_key(version: int, trajectory: str) -> str:
    """What a committee version has taken of a trajectory; no name of a trajectory has a space."""
    return f"{version} {trajectory}"


def _chosen_frame(event: m.CandidatesSelected, choice: Chosen, purpose: Any) -> KnownFrame:
    return KnownFrame(
        ref=FrameRef(batch=event.batches[choice.batch], index=choice.index, key=choice.key),
        purpose=purpose,
        stage=-1 if is_offered(choice.trajectory) else event.stage,
        version=choice.version,
        origin=choice.trajectory,
        weight=choice.weight,
    )
