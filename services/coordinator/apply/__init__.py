"""`apply(state, message)`: a pure fold.

The ledger replayed through it gives the state back, byte for byte, without deciding anything again.
Times, ids of messages and the order of deliveries leave no trace in the state; but what people
said is remembered by its id.
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
    label_issued,
    label_retried,
    labels_done,
    reference_done,
    task_revoked,
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
    task_lost,
)
from dpstream.services.coordinator.apply.training import (
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
    """The state after `message`; the very same object when the message changes nothing. Raises
    TypeError for a class of messages that `APPLY` does not list."""
    change = APPLY.get(type(message))
    if change is None:
        raise TypeError(f"evolve: no effect is given for {type(message).__name__}")
    if isinstance(message, m.Result) and not _is_answer(state, message):
        return state
    return change(state, message)


def _is_answer(state: State, result: m.Result) -> bool:
    """Whether such a task was given to anybody: whoever may publish may say anything."""
    task = state.tasks.get(result.task)
    if task is None or type(task.command) is not result.ANSWERS:
        return False
    return all(batch < len(batches) for batches, batch in _named(result))


def _named(result: m.Result) -> Iterator[tuple[tuple[Ref, ...], int]]:
    """The batches a result brings, with the numbers of those it speaks of."""
    if isinstance(result, m.CandidatesSelected):
        for chosen in (*result.labels, *result.audits):
            yield result.batches, chosen.batch
    elif isinstance(result, m.StructuresScreened):
        for word in result.found:
            if word.row is not None:
                yield result.batches, word.batch or 0


def _issued(state: State, command: Any) -> State:
    """A command: a new task, or the next attempt of one that was lost."""
    known = state.tasks.get(command.task)
    if known is not None:
        return _issued_again(state, known, command)
    state = state.with_task(Task(command=timeless(command)))
    change = ISSUED.get(type(command))
    return state if change is None else change(state, command)


def _issued_again(state: State, known: Task, command: Any) -> State:
    """The next attempt; one that a person requested clears the record of failures."""
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
}
"""What a new task of each class changes, besides the table of tasks; the others change no more."""


APPLY: dict[type[m.Message], Callable[[State, Any], State]] = {
    m.CampaignSubmitted: campaign_submitted,
    **dict.fromkeys(m.COMMANDS, _issued),
    m.TaskClaimed: task_claimed,
    m.TaskHeartbeat: _no_effect,  # extends a lease at the coordinator's edge
    m.TaskReleased: task_lost(held_against=False),
    m.TaskFailed: task_lost(held_against=True),
    m.LeaseLapsed: task_lost(held_against=True),
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
    m.AuditDone: audit_done,
    m.Measured: measured,
    m.Verified: verified,
    m.ManifestFrozen: manifest_frozen,
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
    m.CampaignFinished: campaign_finished,
}
"""What each class of messages changes; every class is listed."""
