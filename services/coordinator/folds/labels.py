"""How labels are asked for, accepted and rejected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from services.coordinator.folds.tasks import changed, current_task, is_live, settle, timeless
from services.coordinator.state import (
    KnownFrame,
    StageState,
    State,
)
from shared import messages as m
from shared.values import Ref


def campaign_submitted(state: State, event: m.CampaignSubmitted) -> State:
    if state.submitted is not None:
        return state
    state = changed(
        state,
        submitted=timeless(event),
        test=event.test,
        trained=0,
    )
    return ask_labels(state, [KnownFrame(ref=ref, purpose="initial") for ref in event.frames])


def ask_labels(state: State, frames: Iterable[KnownFrame]) -> State:
    known, waiting, pending = state.frames, state.waiting, state.pending
    for frame in frames:
        key = frame.ref.key
        if key not in known:
            known = known.set(key, frame)
            waiting = waiting.set(key, None)
            pending += 1
    return changed(state, frames=known, waiting=waiting, pending=pending)


def label_issued(state: State, command: m.Label) -> State:
    frames, waiting = state.frames, state.waiting
    for ref in command.frames:
        frames = frames.set(ref.key, frames[ref.key].model_copy(update={"status": "pending"}))
        waiting = waiting.delete(ref.key)
    return changed(state, frames=frames, waiting=waiting)


def labels_done(state: State, event: m.LabelsDone) -> State:
    task = state.tasks.get(event.task)
    if task is None or task.status in ("done", "cancelled"):
        return state
    state = settle(state, task, "done")
    state = changed(state, reused=state.reused + sum(a.reused for a in event.accepted))
    for accepted in event.accepted:
        state = _accept_label(state, accepted.key, accepted.label)
    for rejection in event.rejected:
        state = reject_frame(state, rejection.key)
    return state


def _accept_label(state: State, key: str, label: Ref) -> State:
    frame = state.frames[key]
    if frame.status == "labelled":
        return state
    changes: dict[str, Any] = {
        "frames": state.frames.set(
            key, frame.model_copy(update={"status": "labelled", "label": label})
        ),
    }
    if frame.status != "rejected":
        changes["pending"] = state.pending - 1
    if frame.purpose == "audit":
        audits = state.stage.audits
        if frame.stage == state.stage.index:
            audits = audits.set(key, frame.origin)
        changes["stage"] = _count_tried(state.stage, frame, 0).model_copy(update={"audits": audits})
    else:
        changes["fresh"] = state.fresh.set(key, label)
        changes["stage"] = _count_tried(state.stage, frame, 0)
    return changed(state, **changes)


def reject_frame(state: State, key: str) -> State:
    frame = state.frames[key]
    if frame.status not in ("waiting", "pending"):
        return state
    return changed(
        state,
        frames=state.frames.set(key, frame.model_copy(update={"status": "rejected"})),
        pending=state.pending - 1,
        stage=_count_tried(state.stage, frame, 1),
    )


def _count_tried(stage: StageState, frame: KnownFrame, rejected: int) -> StageState:
    if frame.stage != stage.index:
        return stage
    return stage.model_copy(
        update={"tried": stage.tried + 1, "rejected": stage.rejected + rejected}
    )


def reference_done(state: State, event: m.ReferenceDone) -> State:
    task = state.tasks.get(event.task)
    if task is None or not is_live(task):
        return state
    references = state.references.set(str(event.trajectory), event)
    return changed(settle(state, task, "done"), references=references)


def task_revoked(state: State, event: m.TaskRevoked) -> State:
    task = current_task(state, event)
    if task is None:
        return state
    state = settle(state, task, "cancelled")
    if not isinstance(task.command, m.Label):
        return state
    frames, waiting, pending = state.frames, state.waiting, state.pending
    for ref in task.command.frames:
        frame = frames[ref.key]
        status = "revoked" if frame.accurate else "waiting"
        frames = frames.set(ref.key, frame.model_copy(update={"status": status}))
        if frame.accurate:
            pending -= 1
        else:
            waiting = waiting.set(ref.key, None)
    return changed(state, frames=frames, waiting=waiting, pending=pending)
