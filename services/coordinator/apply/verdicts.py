"""What verdicts leave behind."""

from __future__ import annotations

from typing import Any, TypeVar

from immutables import Map

from dpstream.services.coordinator.apply.exploration import (
    add_to_tally,
    checks_left,
    judge_abandoned,
)
from dpstream.services.coordinator.apply.labels import reject_frame
from dpstream.services.coordinator.apply.tasks import changed, is_live, settle, timeless
from dpstream.services.coordinator.state import StageState, State
from dpstream.shared import messages as m
from dpstream.shared.values import Counts, PoolItem, is_offered

R = TypeVar("R", bound=m.Result)


def audit_done(state: State, event: m.AuditDone) -> State:
    task = state.tasks.get(event.task)
    if task is None or not is_live(task):
        return state
    state = settle(state, task, "done")
    if state.round is None or event.version != state.version:
        return state
    found, cold = event.deviation_over_error, state.cold_version == state.version
    ratio = found if cold and event.frames else state.ratio
    fell = state.ratio is not None and event.frames > 0 and found < state.ratio * 2 / 3
    return changed(
        state,
        round=state.round.model_copy(update={"audited": True}),
        stage=state.stage.model_copy(update={"audit": _plain(event)}),
        ratio=ratio,
        force_cold=state.force_cold or (fell and not cold),
    )


def measured(state: State, event: m.Measured) -> State:
    task = state.tasks.get(event.task)
    if task is None or not is_live(task):
        return state
    state = settle(state, task, "done")
    return changed(state, measured=_plain(event)) if event.version == state.version else state


def _plain(event: R) -> R:
    """Without what differs when the same is found again."""
    return event.model_copy(update={"time": 0.0, "cause": None, "seconds": 0.0, "id": ""})


def round_judged(state: State, decision: m.RoundJudged) -> State:
    good = state.stage.good + 1 if decision.outcome == "passed" else 0
    asked = state.round.asked if state.round else 0
    barren = 0 if asked or good else state.stage.barren + 1
    stage = state.stage.model_copy(update={"good": good, "barren": barren})
    suspect = good >= state.spec.convergence.rounds and state.cold_version != state.version
    drained: dict[str, Any] = (
        {"pool": _offered(state.pool), "pool_new": 0, "taken": Map()}
        if state.spec.mode == "lockstep"
        else {}
    )
    return changed(
        state,
        stage=stage,
        round=None,
        verdict=timeless(decision),
        force_cold=state.force_cold or suspect,
        selected=0,
        **drained,
    )


def trust_changed(state: State, decision: m.TrustChanged) -> State:
    return changed(state, stage=state.stage.model_copy(update={"trust": decision.trust}))


def stage_ended(state: State, decision: m.StageEnded) -> State:
    following = StageState(index=state.stage.index + 1)
    return changed(
        state,
        ended=(*state.ended, timeless(decision)),
        stage=following,
        round=None,
        verdict=None,
        pool=_offered(state.pool),
        pool_new=0,
        stale=_offered(state.stale),
    )


def _offered(pool: Map[str, PoolItem]) -> Map[str, PoolItem]:
    """What generators have offered: no round and no stage will find it again."""
    return Map({uri: item for uri, item in pool.items() if is_offered(item.trajectory)})


def verified(state: State, event: m.Verified) -> State:
    task = state.tasks.get(event.task)
    if task is None or not is_live(task):
        return state
    return changed(settle(state, task, "done"), verified=event)


def task_abandoned(state: State, decision: m.TaskAbandoned) -> State:
    task = state.tasks[decision.task]
    state = settle(state, task, "abandoned")
    if isinstance(task.command, m.Label):
        for ref in task.command.frames:
            state = reject_frame(state, ref.key)
    elif isinstance(task.command, m.Explore):
        state = add_to_tally(
            state, decision.task, Counts(), checks_left(state, task.command), done=True
        )
    elif isinstance(task.command, m.Judge):
        state = judge_abandoned(state, task.command)
    elif isinstance(task.command, m.Verify):
        state = changed(state, verify_failed=decision.why)
    return state


def campaign_paused(state: State, word: m.CampaignPaused) -> State:
    """Decided, or said by a person."""
    return _heeded(state, word, paused=word.why)


def campaign_resumed(state: State, event: m.CampaignResumed) -> State:
    return _heeded(state, event, paused=None)


def campaign_cancelled(state: State, event: m.CampaignCancelled) -> State:
    return _heeded(state, event, paused=None)


def tasks_retried(state: State, event: m.TasksRetried) -> State:
    return _heeded(state, event)


def _heeded(state: State, word: m.Message, **changes: Any) -> State:
    """A word that was heard before, or that comes too late, changes nothing: a day-old `resume`
    must not end today's pause."""
    if word.id in state.heeded or state.finished is not None:
        return state
    return changed(state, heeded=state.heeded.set(word.id, None), **changes)


def campaign_finished(state: State, decision: m.CampaignFinished) -> State:
    return changed(state, finished=timeless(decision))
