"""How labels are asked for, accepted and rejected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dpstream.services.coordinator.apply.tasks import (
    changed,
    current_task,
    is_live,
    settle,
    timeless,
)
from dpstream.services.coordinator.state import NEVER_LEARNED, KnownFrame, StageState, State, Task
from dpstream.shared import messages as m
from dpstream.shared.values import Ref


def campaign_submitted(state: State, event: m.CampaignSubmitted) -> State:
    if state.submitted is not None:
        return state
    state = changed(
        state,
        submitted=timeless(event),
        test=event.test,
        trained=0,
    )
    initial = [KnownFrame(ref=ref, purpose="initial") for ref in event.frames]
    points = [KnownFrame(ref=ref, purpose="property") for refs in event.points for ref in refs]
    return ask_labels(state, (*initial, *points))


def ask_labels(state: State, frames: Iterable[KnownFrame]) -> State:
    known, waiting, proposed = state.frames, state.waiting, 0
    for frame in frames:
        key = frame.ref.key
        if key not in known:
            known = known.set(key, frame)
            waiting = waiting.set(key, None)
            proposed += frame.purpose == "proposed"
    return changed(
        state,
        frames=known,
        waiting=waiting,
        pending=state.pending + len(known) - len(state.frames),
        proposed=state.proposed + proposed,
    )


def label_issued(state: State, command: m.Label) -> State:
    frames, waiting = state.frames, state.waiting
    for ref in command.frames:
        frames = frames.set(ref.key, frames[ref.key].model_copy(update={"status": "pending"}))
        waiting = waiting.delete(ref.key)
    return changed(state, frames=frames, waiting=waiting)


def labels_done(state: State, event: m.LabelsDone) -> State:
    """The first answer stands, if it is about the frames that were asked for. One that comes after
    the task was given up or revoked still brings its labels; its rejections count only while nobody
    else is asked."""
    task = state.tasks.get(event.task)
    if task is None or task.status == "done" or not _covers(event, task):
        return state
    cancelled = task.status == "cancelled"
    state = settle(state, task, "done")
    state = changed(state, reused=state.reused + sum(a.reused for a in event.accepted))
    for accepted in event.accepted:
        state = _accept_label(state, accepted.key, accepted.label)
    for rejection in () if cancelled else event.rejected:
        state = reject_frame(state, rejection.key)
    return state


def _covers(event: m.LabelsDone, task: Task) -> bool:
    assert isinstance(task.command, m.Label)
    accepted, rejected = (a.key for a in event.accepted), (r.key for r in event.rejected)
    return sorted((*accepted, *rejected)) == sorted(ref.key for ref in task.command.frames)


def _accept_label(state: State, key: str, label: Ref) -> State:
    frame = state.frames[key]
    if frame.status == "labelled":
        return state
    awaited, redeemed = frame.status in ("waiting", "pending"), frame.status == "rejected"
    known = frame.model_copy(update={"status": "labelled", "label": label})
    stage = _count_tried(state.stage, frame, tried=not redeemed, rejected=-redeemed)
    changes: dict[str, Any] = {
        "frames": state.frames.set(key, known),
        "waiting": state.waiting.delete(key) if key in state.waiting else state.waiting,
        "pending": state.pending - awaited,
        "revoked": state.revoked - (frame.status == "revoked"),
        "proposed": state.proposed - (awaited and frame.purpose == "proposed"),
    }
    if frame.purpose not in NEVER_LEARNED:
        changes["fresh"] = state.fresh.set(key, label)
    elif frame.purpose == "audit":
        changes["audited"] = state.audited.set(key, None)
        if frame.stage == stage.index:
            stage = stage.model_copy(update={"audits": stage.audits.set(key, frame.origin)})
    return changed(state, stage=stage, **changes)


def asked_again(state: State, command: m.Label) -> State:
    """Frames rejected because their task was given up are awaited once more."""
    for ref in command.frames:
        frame = state.frames[ref.key]
        if frame.status == "rejected":
            known = frame.model_copy(update={"status": "pending"})
            state = changed(
                state,
                frames=state.frames.set(ref.key, known),
                pending=state.pending + 1,
                proposed=state.proposed + (frame.purpose == "proposed"),
                stage=_count_tried(state.stage, frame, tried=-1, rejected=-1),
            )
    return state


def reject_frame(state: State, key: str) -> State:
    frame = state.frames[key]
    if frame.status not in ("waiting", "pending"):
        return state
    return changed(
        state,
        frames=state.frames.set(key, frame.model_copy(update={"status": "rejected"})),
        waiting=state.waiting.delete(key) if key in state.waiting else state.waiting,
        pending=state.pending - 1,
        proposed=state.proposed - (frame.purpose == "proposed"),
        stage=_count_tried(state.stage, frame, tried=1, rejected=1),
    )


def _count_tried(stage: StageState, frame: KnownFrame, tried: int, rejected: int) -> StageState:
    if frame.stage != stage.index:
        return stage
    return stage.model_copy(
        update={"tried": stage.tried + tried, "rejected": stage.rejected + rejected}
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
    frames, waiting, revoked = state.frames, state.waiting, 0
    for ref in task.command.frames:
        frame = frames[ref.key]
        if frame.status != "pending":  # a label of a lapsed attempt came in meanwhile
            continue
        status = "revoked" if frame.accurate else "waiting"
        frames = frames.set(ref.key, frame.model_copy(update={"status": status}))
        if frame.accurate:
            revoked += 1
        else:
            waiting = waiting.set(ref.key, None)
    return changed(
        state,
        frames=frames,
        waiting=waiting,
        pending=state.pending - revoked,
        revoked=state.revoked + revoked,
    )
