"""Decides how rounds, stages and the campaign end.

When a round is closed and its labels are in, `audit_round` has its audit frames measured,
`measure_properties` the properties if they matter, and `judge_round` records the verdict.
`act_on_verdict` then starts a training or ends the stage; the next round begins by `begin_round`.
After the last stage, `finish` trains and verifies the final model and ends the campaign.
"""

from __future__ import annotations

from dpstream.services.coordinator.decisions import Decisions, cancel, plan_identity, tasks_of
from dpstream.services.coordinator.rules import convergence
from dpstream.services.coordinator.rules.labels import (
    audit_manifest,
    pairs_manifest,
    points_manifest,
)
from dpstream.services.coordinator.rules.likely_cause import failed_trajectories, likely_cause
from dpstream.services.coordinator.rules.training import (
    end_campaign,
    start_training,
    train_final,
)
from dpstream.services.coordinator.rules.trust import current_trust, stage_of
from dpstream.services.coordinator.state import Round, State
from dpstream.shared import messages as m
from dpstream.shared.values import stable_seed


def audit_round(decisions: Decisions) -> None:
    """Has the error of the committee measured on the audit frames of the stage."""
    state, committee = decisions.state, decisions.state.committee
    current, stage = state.exploration.round, state.exploration.stage
    if current is None or not _is_settled(state, current) or state.alive(m.Audit):
        return
    if current.audited or not stage.audits:
        return
    manifest = audit_manifest(decisions, [stage.index])
    decisions.command(
        m.Audit,
        committee.version,
        current.number,
        title=f"audit committee {committee.version}",
        committee=committee.manifest,
        version=committee.version,
        stage=stage.index,
        trust=current_trust(state),
        audit=manifest,
        pairs=pairs_manifest(decisions),
        seed=stable_seed(state.spec.seed, "audit", current.number),
    )


def _is_settled(state: State, current: Round) -> bool:
    return current.closed and state.awaited == 0


def _audited_round(state: State) -> Round | None:
    """The running round, once its labels and its audit are complete."""
    current = state.exploration.round
    if current is None or not _is_settled(state, current) or state.alive(m.Audit):
        return None
    return current if current.audited or not state.exploration.stage.audits else None


def measure_properties(decisions: Decisions) -> None:
    """Has the properties of a committee measured that would end the last stage."""
    state, committee = decisions.state, decisions.state.committee
    if _audited_round(state) is None or state.alive(m.Measure):
        return
    if convergence.awaits_properties(state):
        decisions.command(
            m.Measure,
            committee.version,
            *plan_identity(state),
            title=f"measure properties of committee {committee.version}",
            committee=committee.manifest,
            version=committee.version,
            points=points_manifest(decisions),
        )


def judge_round(decisions: Decisions) -> None:
    """Records the verdict on the round, once everything it depends on is known."""
    state, version = decisions.state, decisions.state.committee.version
    current = _audited_round(state)
    if current is None or convergence.awaits_properties(state):
        return
    outcome, why = convergence.judge_round(state)
    broken = failed_trajectories(current)
    decisions.fact(
        m.RoundJudged,
        current.number,
        version,
        stage=state.exploration.stage.index,
        round=current.number,
        version=version,
        counts=convergence.by_condition(current),
        outcome=outcome,
        why=why if broken is None else f"{broken}; {why}",
        trajectories_failed=broken is not None,
    )


def act_on_verdict(decisions: Decisions) -> None:
    """Ends the stage or starts a training after a round; otherwise `begin_round` starts the next
    one."""
    state, verdict = decisions.state, decisions.state.exploration.verdict
    if verdict is None or state.committee.training is not None:
        return
    spec, stage = state.spec, state.exploration.stage
    cold = state.committee.is_cold
    if not stage_of(state).repeat:
        converged = verdict.outcome == "passed" and cold
        _end_stage(decisions, "converged" if converged else "explored", verdict.why)
    elif verdict.outcome == "passed" and stage.passed >= spec.convergence.rounds:
        if cold:
            _end_stage(decisions, "converged", verdict.why)
        else:  # warm starts reduce the disagreement: a cold committee has to confirm it
            start_training(decisions)
    elif verdict.outcome == "stuck":
        _end_stage(decisions, "stuck", verdict.why)
    elif stage.rounds >= spec.budget.rounds:
        _end_stage(decisions, "out-of-budget", f"all {stage.rounds} rounds used; {verdict.why}")
    elif not state.label_room:
        why = f"all {spec.budget.labels} labels used; {verdict.why}"
        _end_stage(decisions, "out-of-budget", why)
    elif state.dataset.fresh:
        start_training(decisions)


def _end_stage(decisions: Decisions, verdict: str, why: str) -> None:
    stage = decisions.state.exploration.stage.index
    what = stage, *plan_identity(decisions.state)
    for kind in (m.Explore, m.Judge):
        for task in tasks_of(decisions.state, kind, "open", "running"):
            cancel(decisions, task, "the stage has ended")
    last = decisions.state.exploration.verdict
    if last is not None and verdict in ("stuck", "out-of-budget"):
        why = "; ".join(filter(None, (why, likely_cause(decisions.state, last))))
    decisions.fact(m.StageEnded, *what, stage=stage, verdict=verdict, why=why)


def finish(decisions: Decisions) -> None:
    """Trains the final model from scratch on all labels, has it verified, and ends the campaign."""
    state = decisions.state
    open_labels = state.labels.pending or state.alive(m.Reference) or state.alive(m.CheckLabel)
    if not state.stages_over or open_labels:
        return
    if state.final.model is None:
        if not state.alive(m.Train):
            train_final(decisions)
    elif not state.final.is_verified:
        if not state.alive(m.Verify):
            _verify_final(decisions)
    else:
        verdict, why = convergence.judge_campaign(state)
        end_campaign(decisions, verdict, why)


def cancel_campaign(decisions: Decisions) -> None:
    """Ends the campaign on request. No further task is issued; running label tasks are allowed to
    finish, and their labels are kept."""
    event = decisions.event
    assert isinstance(event, m.CampaignCancelled)
    why = event.why or "cancelled on request"
    for task in decisions.state.under_way():
        cancel(decisions, task, "the campaign was cancelled")
    end_campaign(decisions, "cancelled", why)


def _verify_final(decisions: Decisions) -> None:
    state = decisions.state
    assert state.final.model is not None
    assert state.submitted is not None
    reference = state.spec.verification.reference_md
    system = reference.system if reference else next(iter(state.submitted.systems))
    decisions.command(
        m.Verify,
        *plan_identity(state),
        title="verify the final model",
        model=state.final.model.model,
        type_map=state.spec.type_map,
        structure=state.submitted.systems[system][0],
        seed=stable_seed(state.spec.seed, "verify"),
        test=state.dataset.test,
        points=points_manifest(decisions),
    )
