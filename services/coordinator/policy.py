"""The concurrent-learning loop as one pure function: `decide(state, event) -> (state, decisions)`.

An event enters in three steps. `apply` changes the state by the event. The reaction to its class
runs, if `REACTIONS` lists one. Then `RULES` run in the order of the loop, again and again until a
pass adds no decision; until imported labels are known to agree with the recipe, `compare_imported`
alone. A decision is a command for a worker or a fact for the ledger, and each one
is applied to the state before the next rule looks at it.

There is no I/O, no clock and no randomness here: time and seeds come from the event and the spec.
The same events therefore give the same decisions, in a test, on a laptop and after a restart.
"""

from __future__ import annotations

from collections.abc import Callable

from dpstream.services.coordinator.apply import apply
from dpstream.services.coordinator.decisions import Decisions
from dpstream.services.coordinator.rules.cross_check import compare_imported
from dpstream.services.coordinator.rules.exploration import (
    begin_round,
    rejudge,
    revoke_accurate,
    supersede,
)
from dpstream.services.coordinator.rules.labels import (
    begin_references,
    check_reused,
    distrust,
    freeze_test,
    label_waiting,
    pause_failing,
)
from dpstream.services.coordinator.rules.lost_work import (
    pause_until_served,
    reissue_lost,
    retry_abandoned,
    retry_requested,
)
from dpstream.services.coordinator.rules.plan import answer_amendment, change_plan
from dpstream.services.coordinator.rules.proposals import (
    accept_proposal,
    report_to_generators,
    screen_proposals,
)
from dpstream.services.coordinator.rules.selection import select
from dpstream.services.coordinator.rules.training import (
    begin_stage,
    complete_committee,
    retrain_early,
    train_first,
)
from dpstream.services.coordinator.rules.trust import calibrate_trust
from dpstream.services.coordinator.rules.verdicts import (
    act_on_verdict,
    audit_round,
    cancel_campaign,
    finish,
    judge_round,
    measure_properties,
)
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m


def decide(state: State, event: m.Message) -> tuple[State, tuple[m.Message, ...]]:
    """The state after `event`, and the decisions that follow from it. For an event that changes
    nothing (doubled, late, about an unknown task) it returns the same state object and no decision.
    """
    if _is_own(event):
        return state, ()
    decisions = Decisions(state, apply(state, event), event)
    if decisions.state is state:
        return state, ()
    react = REACTIONS.get(type(event))
    if react is not None:
        react(decisions)
    settled = -1
    while settled != len(decisions.decided) and _may_go_on(decisions.state):
        settled = len(decisions.decided)
        for rule in (compare_imported,) if decisions.state.is_comparing else RULES:
            rule(decisions)
    report_to_generators(decisions)
    return decisions.state, tuple(decisions.decided)


def _is_own(event: m.Message) -> bool:
    """Whether the event is one that only the coordinator publishes, returned by the bus. Events
    about tasks, batches and workers are those that its loop itself hands in."""
    if isinstance(event, (m.TaskEvent, m.BatchResolved, m.WorkersMissing)):
        return False
    return not isinstance(event, m.Event) or set(event.PUBLISHERS) <= {"coordinator"}


def _may_go_on(state: State) -> bool:
    return state.submitted is not None and state.paused is None and state.finished is None


REACTIONS: dict[type[m.Message], Callable[[Decisions], None]] = {
    m.CampaignAmended: answer_amendment,
    m.StructuresProposed: accept_proposal,
    m.TaskReleased: reissue_lost,
    m.TaskFailed: reissue_lost,
    m.LeaseLapsed: reissue_lost,
    m.WorkersMissing: pause_until_served,
    m.FramesJudged: revoke_accurate,
    m.LabelChecked: distrust,
    m.LabelsDone: pause_failing,
    m.CampaignResumed: retry_abandoned,
    m.CampaignCancelled: cancel_campaign,
    m.TasksRetried: retry_requested,
}


RULES: tuple[Callable[[Decisions], None], ...] = (
    begin_references,
    label_waiting,
    check_reused,
    freeze_test,
    train_first,
    complete_committee,
    supersede,
    calibrate_trust,
    rejudge,
    screen_proposals,
    select,
    retrain_early,
    audit_round,
    measure_properties,
    judge_round,
    act_on_verdict,
    change_plan,
    begin_stage,
    begin_round,
    finish,
)
