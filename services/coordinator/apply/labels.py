"""Applies messages about labels: requested, computed, rejected, revoked, requested again.

A frame goes through the statuses *waiting*, *pending*, *labelled* or *rejected*; `State.with_frame`
keeps the counters and tables that depend on them up to date.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from immutables import Map

from dpstream.services.coordinator.apply.cross_check import import_compared
from dpstream.services.coordinator.apply.tasks import (
    current_task,
    issued_task,
    live_task,
    settle,
)
from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.state import (
    CheckStatus,
    FrameStatus,
    KnownFrame,
    LabelCheck,
    LabelState,
    State,
    Task,
    timeless,
)
from dpstream.shared import messages as m
from dpstream.shared.values import Accepted, FrameRef, Ref, Rejected, is_offered, stable_seed

OF_THE_FRAME = frozenset({"max-force"})
"""Rules that frames far from equilibrium break, whatever the recipe."""
LONGEST_LABEL = 1e7
"""Seconds; a longer time of a label is an error of its worker and does not count."""


def campaign_submitted(state: State, event: m.CampaignSubmitted) -> State:
    if state.submitted is not None:
        return state
    dataset = replace(state.dataset, test=event.test)
    state = replace(state, submitted=timeless(event), dataset=dataset)
    initial = [KnownFrame(ref=ref, purpose="initial") for ref in event.frames]
    points = [KnownFrame(ref=ref, purpose="property") for refs in event.points for ref in refs]
    return request_labels(state, (*initial, *points))


def request_labels(state: State, frames: Iterable[KnownFrame]) -> State:
    """Requests labels of the frames that are new to the campaign."""
    for frame in frames:
        if state.frame_status(frame.ref.key) is None:
            state = state.with_frame(frame)
    return state


def label_issued(state: State, command: m.Label) -> State:
    for ref in command.frames:
        state = _with_status(state, ref.key, "pending")
    return state


def labels_done(state: State, event: m.LabelsDone) -> State:
    """Applies the verdicts on frames that the task has none for, and ends the task with the last of
    them. Labels are accepted even if the task was abandoned or revoked in the meantime; rejections
    of a revoked task are ignored, because another task may have its frames."""
    task = issued_task(state, event)
    if task is None or task.status == "done":
        return state
    verdicts = _new_verdicts(task, event)
    if not verdicts and task.label_frames:
        return state
    state = _without(state, task, verdicts.keys())
    for key, verdict in verdicts.items():
        if state.archive.has_frame(key):
            continue
        if isinstance(verdict, Accepted) and _is_distrusted(state, verdict):
            state = _with_status(state, key, "waiting")
        elif isinstance(verdict, Accepted):
            state = _accept(_sampled(state, verdict), key, verdict.label)
        elif task.status != "cancelled":
            state = reject_frame(state, key)
    labels = _with_failures(state.labels, verdicts.values())
    return replace(state, labels=_counted(labels, verdicts.values()))


def _is_distrusted(state: State, verdict: Accepted) -> bool:
    """Whether a label was reused by a task that was issued before its writer was distrusted."""
    writer = verdict.writer or ""
    pending = _frame(state, verdict.key).status == "pending"
    return verdict.reused and pending and writer in state.labels.distrusted


def _sampled(state: State, verdict: Accepted) -> State:
    """Has a reused label computed again if it is the first of its writer, or in the sample, as far
    as the label budget allows."""
    share = state.spec.share_checked
    if not verdict.reused or not share or not state.label_room:
        return state
    writer, checks = verdict.writer or "", state.labels.checks
    first = all(c.writer != writer or c.status == "unknown" for c in checks.values())
    if not first and stable_seed("check", state.spec.name, verdict.key) % 10_000 >= 10_000 * share:
        return state
    check = LabelCheck(verdict.label, writer)
    return replace(state, labels=state.labels.with_check(verdict.key, check))


def check_issued(state: State, command: m.CheckLabel) -> State:
    if state.is_of_import(command):
        return state
    return with_check(state, command.frame.key, "issued")


def label_checked(state: State, event: m.LabelChecked) -> State:
    task = live_task(state, event)
    if task is None or not isinstance(task.command, m.CheckLabel):
        return state
    state = settle(state, task)
    state = replace(state, labels=_timed(state.labels, [event.seconds]))
    if state.is_of_import(task.command):
        return import_compared(state, task.command, event)
    compared: CheckStatus = "differs" if event.differs else "agrees"
    status = "unknown" if event.forces is None else compared
    return with_check(state, task.command.frame.key, status)


def with_check(state: State, key: str, status: CheckStatus) -> State:
    """Records how the check of a reused label stands."""
    check = state.labels.checks.get(key)
    if check is None:
        return state
    return replace(state, labels=state.labels.with_check(key, replace(check, status=status)))


def _new_verdicts(task: Task, event: m.LabelsDone) -> dict[str, Accepted | Rejected]:
    """The verdicts on frames that the task still has, by key."""
    owed = {ref.key for ref in task.label_frames}
    verdicts: tuple[Accepted | Rejected, ...] = (*event.rejected, *event.accepted)
    return {verdict.key: verdict for verdict in verdicts if verdict.key in owed}


def _without(state: State, task: Task, keys: Collection[str]) -> State:
    """Takes frames out of a task, so that another attempt does not have them; the task ends with
    its last frame."""
    left = tuple(ref for ref in task.label_frames if ref.key not in keys)
    task = replace(task, command=task.command.model_copy(update={"frames": left}))
    return state.with_task(task) if left else settle(state, task)


def _counted(labels: LabelState, verdicts: Collection[Accepted | Rejected]) -> LabelState:
    """With the reused labels among the verdicts, and the time that the others took."""
    reused = sum(isinstance(each, Accepted) and each.reused for each in verdicts)
    labels = replace(labels, reused=labels.reused + reused)
    return _timed(labels, (each.seconds for each in verdicts if _took_time(each)))


def _timed(labels: LabelState, times: Iterable[float]) -> LabelState:
    """With computed labels that took these times, s; impossible times do not count."""
    possible = [seconds for seconds in times if 0 <= seconds < LONGEST_LABEL]
    return replace(
        labels,
        computed=labels.computed + len(possible),
        microseconds=labels.microseconds + sum(round(1e6 * seconds) for seconds in possible),
    )


def _with_failures(labels: LabelState, verdicts: Collection[Accepted | Rejected]) -> LabelState:
    """With the rejections among the verdicts, until a label is accepted."""
    if labels.failures is None:
        return labels
    if any(isinstance(each, Accepted) for each in verdicts):
        return replace(labels, failures=None)
    failures = labels.failures
    for each in verdicts:
        if isinstance(each, Rejected) and _took_time(each) and each.rule not in OF_THE_FRAME:
            known = failures.get(each.kind, ())
            failures = failures.set(each.kind, tuple(sorted({*known, each.key})))
    return replace(labels, failures=failures)


def request_failed_again(state: State) -> State:
    """If frames were rejected alike so often that the campaign paused: requests their labels again;
    the second time nothing, so that the campaign goes on without them. Frames of generators keep
    the verdict that was reported."""
    labels, failures = replace(state.labels, paused=False), state.labels.failures
    if failures is None or not (state.labels.paused or state.is_failing):
        return replace(state, labels=labels)
    if labels.failures_retried:
        return replace(state, labels=replace(labels, failures=None))
    for key in sorted(key for keys in failures.values() for key in keys):
        if state.frame_status(key) == "rejected" and not is_offered(_frame(state, key).origin):
            state = _with_status(state, key, "waiting")
    return replace(
        state,
        labels=replace(state.labels, failures=Map(), failures_retried=True, paused=False),
    )


def _took_time(verdict: Accepted | Rejected) -> bool:
    return not verdict.reused if isinstance(verdict, Accepted) else verdict.seconds > 0


def _accept(state: State, key: str, label: Ref) -> State:
    frame = state.labels.frames[key]
    if frame.status == "labelled":
        return state
    return state.with_frame(replace(frame, status="labelled", label=label))


def reject_frame(state: State, key: str) -> State:
    awaited = state.frame_status(key) in ("waiting", "pending")
    return _with_status(state, key, "rejected") if awaited else state


def label_retried(state: State, command: m.Label) -> State:
    """Sets frames that were rejected with their abandoned task to *pending* again."""
    for ref in command.frames:
        if state.frame_status(ref.key) == "rejected":
            state = _with_status(state, ref.key, "pending")
    return state


def reference_done(state: State, event: m.ReferenceDone) -> State:
    task = live_task(state, event)
    if task is None:
        return state
    references = state.dataset.references.set(str(event.trajectory), event)
    return replace(settle(state, task), dataset=replace(state.dataset, references=references))


def task_revoked(state: State, event: m.TaskRevoked) -> State:
    task = current_task(state, event)
    if task is None:
        return state
    state = settle(state, task, "cancelled")
    for ref in task.label_frames:
        state = _revoke(state, ref)
    return state


def _revoke(state: State, ref: FrameRef) -> State:
    if state.frame_status(ref.key) != "pending":  # a lapsed attempt has delivered its label
        return state
    accurate = _frame(state, ref.key).accurate
    return _with_status(state, ref.key, "revoked" if accurate else "waiting")


def _frame(state: State, key: str) -> KnownFrame:
    return state.labels.frames[key]


def _with_status(state: State, key: str, status: FrameStatus) -> State:
    return state.with_frame(replace(_frame(state, key), status=status))
