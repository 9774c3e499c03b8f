"""How datasets and committees come to be."""

from __future__ import annotations

from immutables import Map

from dpstream.services.coordinator.apply.tasks import changed, is_live, settle, timeless
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m


def manifest_frozen(state: State, decision: m.ManifestFrozen) -> State:
    if decision.purpose == "dataset":
        return changed(
            state,
            dataset=decision.manifest,
            dataset_version=state.dataset_version + 1,
            trained=state.trained
            + len(state.fresh)
            + (state.submitted.pack_frames if state.submitted and not state.dataset else 0),
            fresh=Map(),
        )
    if decision.purpose == "test":
        return changed(state, test=decision.manifest)
    return state


def train_issued(state: State, command: m.Train) -> State:
    if command.final or state.training == command.version:
        return state
    cold = command.start is None
    return changed(
        state,
        training=command.version,
        members=Map(),
        verdict=None,
        cold_version=command.version if cold else state.cold_version,
        force_cold=False if cold else state.force_cold,
    )


def member_trained(state: State, event: m.MemberTrained) -> State:
    task = state.tasks.get(event.task)
    if task is None or not is_live(task):
        return state
    state = settle(state, task, "done")
    if isinstance(task.command, m.Train) and task.command.final:
        return changed(state, final=event)
    if event.version != state.training:
        return state
    return changed(state, members=state.members.set(str(event.member), event))


def training_judged(state: State, decision: m.TrainingJudged) -> State:
    return changed(state, judged_training=timeless(decision))


def models_ready(state: State, decision: m.ModelsReady) -> State:
    checkpoints = tuple(state.members[str(i)].checkpoint for i in range(len(state.members)))
    stale = state.stale.update(state.pool)
    return changed(
        state,
        version=decision.committee.version,
        committee=decision.committee,
        manifest=decision.manifest,
        training=None,
        checkpoints=checkpoints,
        round=None,
        verdict=None,
        pool=Map(),
        pool_new=0,
        stale=stale,
        selected=0,
    )
