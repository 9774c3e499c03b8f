"""Decides on amendments of the plan: refuses them, or puts the next plan in force."""

from __future__ import annotations

from dpstream.services.coordinator.amendment import (
    Amended,
    is_between_rounds,
    is_of_training,
    objection,
    waits,
)
from dpstream.services.coordinator.decisions import Decisions, cancel, tasks_of
from dpstream.services.coordinator.rules.lost_work import (
    ESSENTIAL,
    abandoned,
    move_open_labels,
    reissue_all_lost,
)
from dpstream.services.coordinator.rules.training import start_training
from dpstream.services.coordinator.rules.trust import opening_trust, set_trust
from dpstream.shared import messages as m
from dpstream.shared.values import Ref, campaign_uri, stable_id

OF_A_ROUND = (m.Explore, m.Audit, m.Measure)
"""Tasks that are of no use without the round that they belong to; selections and judgements are."""


def answer_amendment(decisions: Decisions) -> None:
    """Refuses an amendment, or puts it in force if it need not wait. This also happens while the
    campaign is paused or has ended."""
    event = decisions.event
    assert isinstance(event, m.CampaignAmended)
    why = objection(decisions.before, event)
    if why is not None:
        decisions.fact(
            m.AmendmentRefused, event.id, amendment=event.id, author=event.author, why=why
        )
    elif is_between_rounds(decisions.state):
        change_plan(decisions)
    elif not waits(decisions.before, event):
        _put_in_force(decisions, event, Amended.overtaking(decisions.state, event))


def change_plan(decisions: Decisions) -> None:
    """Puts the plans in force that have waited for the end of a round."""
    while decisions.state.plan.asked and is_between_rounds(decisions.state):
        event = decisions.state.plan.asked[0]
        _put_in_force(decisions, event, Amended.by(decisions.state, event))


def _put_in_force(decisions: Decisions, event: m.CampaignAmended, amended: Amended) -> None:
    state = decisions.state
    _cancel_outdated(decisions, amended)
    if amended.trains_again:
        _cancel_training(decisions)
    number, body = state.plan.number + 1, amended.spec.model_dump_json()
    name = f"{number}-{stable_id(body)[:8]}.json"  # an overtaken coordinator's may differ
    ref = Ref.to(campaign_uri(state.spec.name, "plans", name), body.encode())
    decisions.fact(m.ManifestFrozen, ref.uri, purpose="plan", manifest=ref, body=body)
    decisions.fact(
        m.PlanChanged,
        number,
        amendment=event.id,
        number=number,
        author=event.author,
        plan=ref,
        changes=tuple(amended.changes),
        effects=tuple(amended.effects()),
        **amended.outcome,
    )
    if amended.new_trust and decisions.state.exploration.stage.trust is not None:
        set_trust(decisions, opening_trust(decisions.state)[0], f"by plan {number}")
    if state.finished is not None:
        reissue_all_lost(decisions)
    move_open_labels(decisions)
    if amended.trains_again and not decisions.state.stages_over:
        start_training(decisions, again_cold=state.committee.is_training_cold)


def _cancel_outdated(decisions: Decisions, amended: Amended) -> None:
    kinds: list[type[m.Command]] = []
    if amended.gives_up_round:
        kinds += OF_A_ROUND
    if amended.leaves:
        kinds.append(m.Judge)
    if decisions.state.stages_over:  # nothing but the final model is under way
        kinds += [m.Train] if amended.trains_final_again else []
        kinds += [m.Verify] if amended.verifies_again else []
    for kind in dict.fromkeys(kinds):
        _cancel_all(decisions, kind)


def _cancel_training(decisions: Decisions) -> None:
    state = decisions.state
    started = [*tasks_of(state, m.Train, "open", "running"), *abandoned(state)]
    for task in started:
        if is_of_training(state, task):
            cancel(decisions, task, "the plan has changed")


def _cancel_all(decisions: Decisions, kind: type[m.Command]) -> None:
    """Ends tasks of a kind, also those that `resume` or `retry` would issue again."""
    given_up = [each for each in abandoned(decisions.state) if isinstance(each.command, kind)]
    retried = given_up if issubclass(kind, ESSENTIAL) else []
    for task in (*tasks_of(decisions.state, kind, "open", "running"), *retried):
        cancel(decisions, task, "the plan has changed")
