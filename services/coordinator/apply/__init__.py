"""Changes the state by one message: `apply(state, message)`, a pure function.

`APPLY` maps every class of messages to the function that applies it. Events and decisions go
through the same table, so applying the messages of a ledger in order rebuilds the state byte for
byte, and no rule runs again.

The state does not depend on times, message ids or the order of deliveries. The exception are the
requests of users (pause, resume, cancel, retry, amend): their ids are kept, so that each takes
effect once, and so is what they say of amendments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from dpstream.services.coordinator.apply.exploration import (
    candidates_selected,
    chunk_explored,
    explore_issued,
    frames_judged,
    judge_issued,
    select_issued,
)
from dpstream.services.coordinator.apply.labels import (
    campaign_submitted,
    check_issued,
    label_checked,
    label_issued,
    label_retried,
    labels_done,
    reference_done,
    task_revoked,
)
from dpstream.services.coordinator.apply.plan import (
    amendment_refused,
    campaign_amended,
    plan_changed,
)
from dpstream.services.coordinator.apply.proposals import (
    screen_issued,
    structures_judged,
    structures_proposed,
    structures_screened,
)
from dpstream.services.coordinator.apply.tasks import (
    checkpoint_saved,
    task_cancelled,
    task_claimed,
    task_declined,
    task_lost,
    workers_missing,
)
from dpstream.services.coordinator.apply.training import (
    batch_resolved,
    manifest_frozen,
    member_trained,
    models_ready,
    train_issued,
    training_judged,
)
from dpstream.services.coordinator.apply.verdicts import (
    audit_done,
    campaign_cancelled,
    campaign_finished,
    campaign_paused,
    campaign_resumed,
    measured,
    round_judged,
    stage_ended,
    task_abandoned,
    tasks_retried,
    trust_changed,
    verified,
)
from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.state import State, Task, timeless
from dpstream.shared import messages as m
from dpstream.shared.values import Ref


def apply(state: State, message: m.Message) -> State:
    """The state after `message`; the same object if the message changes nothing. Raises TypeError
    for a class of messages that is not in `APPLY`."""
    change = APPLY.get(type(message))
    if change is None:
        raise TypeError(f"{type(message).__name__} is not in the table APPLY")
    if isinstance(message, m.Result) and not _is_answer(state, message):
        return state
    return change(state, message)


def _is_answer(state: State, result: m.Result) -> bool:
    """Whether the result answers a task that was issued; the content of events is not trusted."""
    task = state.tasks.get(result.task)
    if task is None or type(task.command) is not result.ANSWERS:
        return False
    return all(batch < len(batches) for batches, batch in _batch_numbers(result))


def _batch_numbers(result: m.Result) -> Iterator[tuple[tuple[Ref, ...], int]]:
    """The batches of a result, with each batch number that it refers to."""
    if isinstance(result, m.CandidatesSelected):
        for chosen in (*result.labels, *result.audits):
            yield result.batches, chosen.batch
    elif isinstance(result, m.StructuresScreened):
        for screened in result.found:
            if screened.row is not None:
                yield result.batches, screened.batch or 0


def _issued(state: State, command: Any) -> State:
    """Applies a command: a new task, or the next attempt of an existing one."""
    known = state.tasks.get(command.task)
    if known is not None:
        return _issued_again(state, known, command)
    is_new = not state.archive.has_task(command.task)
    state = state.with_task(Task(command=timeless(command)))
    change = ISSUED.get(type(command)) if is_new else None
    return state if change is None else change(state, command)


def _issued_again(state: State, known: Task, command: Any) -> State:
    """Applies the next attempt. An abandoned task is issued again only on request, and then its
    failures no longer count."""
    task = replace(known, command=timeless(command), status="open")
    if known.status != "abandoned":
        return state.with_task(task)
    state = state.with_task(replace(task, lapses=0))
    return label_retried(state, command) if isinstance(command, m.Label) else state


def _no_effect(state: State, message: m.Message) -> State:
    return state


ISSUED: dict[type[m.Command], Callable[[State, Any], State]] = {
    m.Train: train_issued,
    m.Explore: explore_issued,
    m.Judge: judge_issued,
    m.Screen: screen_issued,
    m.Select: select_issued,
    m.Label: label_issued,
    m.CheckLabel: check_issued,
}
"""What a new task changes besides the table of tasks, for the classes where it does."""


APPLY: dict[type[m.Message], Callable[[State, Any], State]] = {
    m.CampaignSubmitted: campaign_submitted,
    m.CampaignAmended: campaign_amended,
    **dict.fromkeys(m.COMMANDS, _issued),
    m.TaskClaimed: task_claimed,
    m.TaskHeartbeat: _no_effect,  # extends a lease, which is not part of the state
    m.WorkerStarted: _no_effect,  # belongs to no campaign
    m.TrainerStarted: _no_effect,
    m.TaskReleased: task_lost(counts=False),
    m.TaskDeclined: task_declined,
    m.TaskFailed: task_lost(counts=True),
    m.LeaseLapsed: task_lost(counts=True),
    m.TaskRevoked: task_revoked,
    m.CheckpointSaved: checkpoint_saved,
    m.MemberTrained: member_trained,
    m.ChunkExplored: chunk_explored,
    m.FramesJudged: frames_judged,
    m.StructuresProposed: structures_proposed,
    m.StructuresScreened: structures_screened,
    m.StructuresJudged: structures_judged,
    m.CandidatesSelected: candidates_selected,
    m.LabelsDone: labels_done,
    m.ReferenceDone: reference_done,
    m.LabelChecked: label_checked,
    m.AuditDone: audit_done,
    m.Measured: measured,
    m.Verified: verified,
    m.ManifestFrozen: manifest_frozen,
    m.BatchResolved: batch_resolved,
    m.WorkersMissing: workers_missing,
    m.TrainingJudged: training_judged,
    m.ModelsReady: models_ready,
    m.RoundJudged: round_judged,
    m.TrustChanged: trust_changed,
    m.StageEnded: stage_ended,
    m.TaskCancelled: task_cancelled,
    m.TaskAbandoned: task_abandoned,
    m.CampaignPaused: campaign_paused,
    m.CampaignResumed: campaign_resumed,
    m.CampaignCancelled: campaign_cancelled,
    m.TasksRetried: tasks_retried,
    m.AmendmentRefused: amendment_refused,
    m.PlanChanged: plan_changed,
    m.CampaignFinished: campaign_finished,
}
"""The function that applies each class of messages; every class is listed."""
