"""Applies messages about training: dataset versions, trained members, ready committees.

A frozen dataset takes over all fresh labels, whose frames are settled then. A new committee makes
every candidate in the pool stale: it has to be judged again before it can be selected.
"""

from __future__ import annotations

from immutables import Map

from dpstream.services.coordinator.apply.plan import plan_frozen
from dpstream.services.coordinator.apply.tasks import live_task, settle
from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.state import State, timeless
from dpstream.shared import messages as m


def manifest_frozen(state: State, decision: m.ManifestFrozen) -> State:
    if decision.purpose == "dataset":
        return _dataset_frozen(state, decision)
    if decision.purpose == "plan":
        return plan_frozen(state, decision)
    if decision.purpose == "test":
        return replace(state, dataset=replace(state.dataset, test=decision.manifest))
    return state


def _dataset_frozen(state: State, decision: m.ManifestFrozen) -> State:
    old, submitted = state.dataset, state.submitted
    packs = submitted.pack_frames if submitted and old.manifest is None else 0
    dataset = replace(
        old,
        fresh=Map(),
        version=old.version + 1,
        manifest=decision.manifest,
        size=old.size + len(old.fresh) + packs,
    )
    points = () if submitted is None else (ref.key for refs in submitted.points for ref in refs)
    measured = frozenset(points)  # properties are computed from their labels
    settled = (key for key in old.fresh if key not in measured)
    return replace(state.with_settled(settled), dataset=dataset)


def train_issued(state: State, command: m.Train) -> State:
    committee = state.committee
    if command.final:
        return state
    if committee.training == command.version:
        return replace(state, committee=replace(committee, size=committee.size + 1))
    for member in committee.members.values():
        state = settle(state, state.tasks[member.task])
    cold = command.start is None
    committee = replace(
        committee,
        training=command.version,
        size=1,
        dataset=command.dataset,
        members=Map(),
        cold_version=command.version if cold else committee.cold_version,
        force_cold=False if cold else committee.force_cold,
    )
    exploration = replace(state.exploration, verdict=None)
    return replace(state, committee=committee, exploration=exploration)


def member_trained(state: State, event: m.MemberTrained) -> State:
    task = live_task(state, event)
    if task is None:
        return state
    committee, is_final = state.committee, isinstance(task.command, m.Train) and task.command.final
    if not is_final and event.version != committee.training:
        return settle(state, task)
    state = state.with_task(replace(task, status="done"))
    if is_final:
        return replace(state, final=replace(state.final, model=event))
    members = committee.members.set(str(event.member), event)
    return replace(state, committee=replace(committee, members=members))


def batch_resolved(state: State, decision: m.BatchResolved) -> State:
    if state.batch_atoms is not None:
        return state
    committee = replace(state.committee, batch_atoms=decision.batch_atoms)
    return replace(state, committee=committee)


def training_judged(state: State, decision: m.TrainingJudged) -> State:
    return replace(state, committee=replace(state.committee, judged_training=timeless(decision)))


def models_ready(state: State, decision: m.ModelsReady) -> State:
    members, candidates = state.committee.members, state.candidates
    committee = replace(
        state.committee,
        version=decision.committee.version,
        manifest=decision.manifest,
        training=None,
        checkpoints=tuple(members[str(i)].checkpoint for i in range(len(members))),
    )
    stale = candidates.stale.update(candidates.pool)
    candidates = replace(candidates, pool=Map(), added=0, stale=stale, selected=0)
    candidates = candidates.forgot_all_but(_still_explored(state))
    exploration = replace(state.exploration, round=None, verdict=None)
    return replace(state, committee=committee, candidates=candidates, exploration=exploration)


def _still_explored(state: State) -> set[str]:
    """Trajectories that a later selection may choose from: they are under way, or have batches in
    the pool, or waiting for the verdict of a newer committee."""
    running, judged = state.under_way(m.Explore), state.under_way(m.Judge)
    items = [*state.candidates.pool.values(), *state.candidates.stale.values()]
    items += [
        item for task in judged if isinstance(task.command, m.Judge) for item in task.command.pool
    ]
    explored = {task.command.trajectory for task in running if isinstance(task.command, m.Explore)}
    return explored | {item.trajectory for item in items}
