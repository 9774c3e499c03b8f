"""Applies audits, properties and verdicts, and the requests of users.

A verdict on a round ends it; the verdict stays in the state until a rule has acted on it. A request
to pause, resume, cancel or retry takes effect once, however often it is delivered.
"""

from __future__ import annotations

from typing import TypeVar

from immutables import Map

from dpstream.services.coordinator.apply.cross_check import (
    accept_imports,
    import_not_compared,
    imports_reported,
)
from dpstream.services.coordinator.apply.exploration import (
    explore_abandoned,
    judge_abandoned,
)
from dpstream.services.coordinator.apply.labels import (
    reject_frame,
    request_failed_again,
    with_check,
)
from dpstream.services.coordinator.apply.plan import entered, offered
from dpstream.services.coordinator.apply.tasks import live_task, settle
from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.state import State, timeless
from dpstream.shared import messages as m

R = TypeVar("R", bound=m.Result)


def audit_done(state: State, event: m.AuditDone) -> State:
    task = live_task(state, event)
    if task is None:
        return state
    state, exploration = settle(state, task), state.exploration
    if exploration.round is None or event.version != state.committee.version:
        return state
    exploration = replace(
        exploration,
        round=replace(exploration.round, audited=True),
        stage=replace(exploration.stage, audit=_plain(event)),
    )
    return _compare_ratio(replace(state, exploration=exploration), event)


def _compare_ratio(state: State, event: m.AuditDone) -> State:
    """Compares the ratio of deviation to error with that of the last cold committee. If it has
    fallen below two thirds, warm starts hide errors, and the next training is cold."""
    committee, found = state.committee, event.deviation_over_error
    if not event.frames:
        return state
    if committee.is_cold:
        return replace(state, committee=replace(committee, deviation_over_error=found))
    cold = committee.deviation_over_error
    fell = cold is not None and found < cold * 2 / 3
    return replace(state, committee=replace(committee, force_cold=committee.force_cold or fell))


def measured(state: State, event: m.Measured) -> State:
    task = live_task(state, event)
    if task is None:
        return state
    state, committee = settle(state, task), state.committee
    if event.version != committee.version:
        return state
    return replace(state, committee=replace(committee, measured=_plain(event)))


def _plain(event: R) -> R:
    """The result without what differs when it is computed again: time, duration and ids."""
    return event.model_copy(update={"time": 0.0, "cause": None, "seconds": 0.0, "id": ""})


def round_judged(state: State, decision: m.RoundJudged) -> State:
    exploration, committee = state.exploration, state.committee
    stage, current = exploration.stage, exploration.round
    passed = stage.passed + 1 if decision.outcome == "passed" else 0
    chosen = current.chosen if current else 0
    idle = 0 if chosen or passed else stage.rounds_without_labels + 1
    stage = replace(stage, passed=passed, rounds_without_labels=idle)
    suspect = passed >= state.spec.convergence.rounds and not committee.is_cold
    candidates = replace(state.candidates, selected=0)
    if state.spec.mode == "lockstep":
        pool = offered(candidates.pool)
        candidates = replace(candidates, pool=pool, added=0, taken=Map())
    return replace(
        state,
        exploration=replace(exploration, stage=stage, round=None, verdict=timeless(decision)),
        committee=replace(committee, force_cold=committee.force_cold or suspect),
        candidates=candidates,
    )


def trust_changed(state: State, decision: m.TrustChanged) -> State:
    stage = replace(state.exploration.stage, trust=decision.trust)
    return replace(state, exploration=replace(state.exploration, stage=stage))


def stage_ended(state: State, decision: m.StageEnded) -> State:
    exploration, candidates = state.exploration, state.candidates
    pool, stale = offered(candidates.pool), offered(candidates.stale)
    candidates = replace(candidates, pool=pool, added=0, stale=stale)
    exploration = replace(
        exploration,
        ended=(*exploration.ended, timeless(decision)),
        left=exploration.left.set(str(exploration.stage.index), exploration.stage),
    )
    state = replace(state, exploration=exploration, candidates=candidates)
    return replace(state, exploration=entered(state))


def verified(state: State, event: m.Verified) -> State:
    task = live_task(state, event)
    if task is None:
        return state
    return replace(settle(state, task), final=replace(state.final, verified=event))


def task_abandoned(state: State, decision: m.TaskAbandoned) -> State:
    task = state.tasks[decision.task]
    state, command = settle(state, task, "abandoned"), task.command
    if isinstance(command, m.Label):
        for ref in command.frames:
            state = reject_frame(state, ref.key)
    elif isinstance(command, m.CheckLabel) and state.is_of_import(command):
        state = import_not_compared(state, command, decision.why)
    elif isinstance(command, m.CheckLabel):
        state = with_check(state, command.frame.key, "unknown")
    elif isinstance(command, m.Explore):
        state = explore_abandoned(state, command, decision.why)
    elif isinstance(command, m.Judge):
        state = judge_abandoned(state, command)
    elif isinstance(command, m.Verify):
        state = replace(state, final=replace(state.final, failure=decision.why))
    return state


def campaign_paused(state: State, event: m.CampaignPaused) -> State:
    """Pauses the campaign, by decision or on request."""
    paused = _handled(state, event, paused=event.why)
    if paused is state:
        return state
    paused = imports_reported(paused, event)
    if not event.labels_fail:
        return paused
    return replace(paused, labels=replace(paused.labels, paused=True))


def campaign_resumed(state: State, event: m.CampaignResumed) -> State:
    """Whoever resumes it has mended what workers lacked and why labels were rejected, and accepts
    imported labels if the pause was for these."""
    resumed = _handled(state, event, paused=None)
    if resumed is state:
        return state
    return accept_imports(request_failed_again(replace(resumed, declined=Map())))


def campaign_cancelled(state: State, event: m.CampaignCancelled) -> State:
    return _handled(state, event, paused=None)


def tasks_retried(state: State, event: m.TasksRetried) -> State:
    return _handled(state, event, paused=state.paused)


def _handled(state: State, event: m.Message, paused: str | None) -> State:
    """Ignores a request that was delivered before or comes after the end of the campaign, so that
    an old `resume` does not end a new pause."""
    if event.id in state.handled or state.finished is not None:
        return state
    return replace(state, handled=state.handled.set(event.id, None), paused=paused)


def campaign_finished(state: State, decision: m.CampaignFinished) -> State:
    return replace(state, finished=timeless(decision))
