"""Applies amendments of the plan.

An amendment waits in the state until a decision refuses it or puts its plan in force. The stages
that the new plan lists and that have not ended by its rules are explored; labels, models and
datasets stay.
"""

from __future__ import annotations

from immutables import Map

from dpstream.services.coordinator.apply.labels import request_labels
from dpstream.services.coordinator.apply.tasks import served
from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.state import (
    CandidateState,
    CommitteeState,
    ExplorationState,
    FinalState,
    KnownFrame,
    PlanRecord,
    PlanState,
    StageState,
    State,
)
from dpstream.shared import messages as m
from dpstream.shared.spec import Spec
from dpstream.shared.values import PoolItem, is_offered


def campaign_amended(state: State, event: m.CampaignAmended) -> State:
    if event.id in state.handled:
        return state
    plan = replace(state.plan, asked=(*state.plan.asked, event))
    return replace(state, plan=plan, handled=state.handled.set(event.id, None))


def amendment_refused(state: State, decision: m.AmendmentRefused) -> State:
    return replace(state, plan=_answered(state.plan, decision.amendment))


def _answered(plan: PlanState, amendment: str) -> PlanState:
    return replace(plan, asked=tuple(each for each in plan.asked if each.id != amendment))


def plan_frozen(state: State, decision: m.ManifestFrozen) -> State:
    upcoming = Spec.model_validate_json(decision.body)
    return replace(state, plan=replace(state.plan, upcoming=upcoming))


def plan_changed(state: State, decision: m.PlanChanged) -> State:
    event = next(each for each in state.plan.asked if each.id == decision.amendment)
    assert state.plan.upcoming is not None
    changed = replace(
        state,
        spec=state.plan.upcoming,
        plan=_in_force(state.plan, decision, event),
        submitted=_with_inputs(state.submitted, event, decision),
        finished=None,
        final=_final(state.final, decision),
        committee=_committee(state.committee, decision),
        candidates=_candidates(state.candidates, decision),
    )
    changed = replace(changed, exploration=_exploration(changed, decision))
    former = state.spec.labels.capability
    if former != changed.spec.labels.capability:
        changed = served(changed, m.Label.QUEUE.format(former))
    return request_labels(changed, (KnownFrame(ref, "initial") for ref in event.frames))


def _in_force(plan: PlanState, decision: m.PlanChanged, event: m.CampaignAmended) -> PlanState:
    record = PlanRecord(decision.number, decision.author, event.time, decision.changes)
    return replace(
        _answered(plan, event.id),
        number=decision.number,
        order=decision.order,
        records=(*plan.records, record),
        upcoming=None,
    )


def _with_inputs(
    submitted: m.CampaignSubmitted | None, event: m.CampaignAmended, decision: m.PlanChanged
) -> m.CampaignSubmitted | None:
    """What the campaign starts from, with the systems of the amendment; tasks name its plan."""
    assert submitted is not None
    update = {
        "spec": decision.plan,
        "systems": submitted.systems | event.systems,
        "atoms": submitted.atoms | event.atoms,
        "frames": submitted.frames + event.frames,
    }
    return submitted.model_copy(update=update)


def _committee(committee: CommitteeState, decision: m.PlanChanged) -> CommitteeState:
    return replace(
        committee,
        force_cold=committee.force_cold or decision.trains_from_scratch,
        training=None if decision.trains_again else committee.training,
    )


def _final(final: FinalState, decision: m.PlanChanged) -> FinalState:
    if decision.trains_final_again:
        return FinalState()
    return FinalState(model=final.model) if decision.verifies_again else final


def _candidates(candidates: CandidateState, decision: m.PlanChanged) -> CandidateState:
    """What no longer counts leaves the pool, or is judged again."""
    if decision.leaves:
        pool, stale = offered(candidates.pool), offered(candidates.stale)
        return replace(candidates, pool=pool, added=0, stale=stale)
    if decision.gives_up_round:
        stale = candidates.stale.update(candidates.pool)
        return replace(candidates, pool=Map(), added=0, stale=stale)
    return candidates


def _exploration(changed: State, decision: m.PlanChanged) -> ExplorationState:
    exploration = changed.exploration
    planned, stage = set(changed.planned), exploration.stage
    ended = tuple(
        each
        for each in exploration.ended
        if each.stage in planned and each.stage not in decision.reopened
    )
    left = exploration.left.set(str(stage.index), stage) if decision.leaves else exploration.left
    exploration = replace(exploration, ended=ended, left=left)
    if decision.gives_up_round:
        exploration = replace(exploration, round=None, verdict=None)
    if decision.enters:
        return entered(replace(changed, exploration=exploration))
    passed = 0 if decision.starts_anew else stage.passed
    return replace(exploration, stage=replace(stage, passed=passed))


def entered(state: State) -> ExplorationState:
    """The exploration at the beginning of the next stage of the plan. A stage that was begun before
    goes on with its labels and the rounds that it has used."""
    exploration = state.exploration
    index = next(iter(state.ahead), len(state.spec.stages))
    begun = exploration.left.get(str(index))
    left = exploration.left if begun is None else exploration.left.delete(str(index))
    stage = StageState(index=index) if begun is None else _begun_again(begun)
    return replace(exploration, stage=stage, left=left, round=None, verdict=None)


def _begun_again(stage: StageState) -> StageState:
    return replace(stage, passed=0, rounds_without_labels=0, trust=None, audit=None)


def offered(pool: Map[str, PoolItem]) -> Map[str, PoolItem]:
    """The batches that generators have offered: later rounds and stages do not find them again."""
    return Map({uri: item for uri, item in pool.items() if is_offered(item.trajectory)})
