"""Judges a training, a round and a campaign by the criteria of the spec.

The numbers come from elsewhere: `apply/` counts verdicts on frames and rejected labels, workers
measure errors and properties. The functions here compare them with the limits and return a verdict
with the reason that users read in `status`, `logs` and the report.
"""

from __future__ import annotations

from typing import Any, Literal

from dpstream.services.coordinator.rules import property_tolerance
from dpstream.services.coordinator.state import ByCondition, Round, State
from dpstream.shared.messages import Verified
from dpstream.shared.spec.engines import AsGiven
from dpstream.shared.values import Compared, Counts, Trust

STUCK_AFTER = 3
"""Consecutive failed rounds without a frame to label, after which a stage is stuck."""


def shares(found: ByCondition) -> tuple[float, float]:
    """Accurate and failed share of one condition. Checks lost to an early stop count as failed, so
    that an unstable trajectory does not improve the shares by ending soon."""
    planned = found.counts.total + found.dropped
    if planned == 0:
        return 0.0, 0.0
    return found.counts.accurate / planned, (found.counts.failed + found.dropped) / planned


def accurate_by_system(state: State) -> dict[str, float]:
    """Accurate share of each system in the running round, over all its conditions."""
    current = state.exploration.round
    assert current is not None
    sums: dict[str, ByCondition] = {}
    for name, found in sorted(current.conditions.items()):
        system = name.split(" ")[0]
        sums[system] = sums.get(system, ByCondition()) + found
    return {system: shares(found)[0] for system, found in sums.items()}


def on_track(state: State) -> bool:
    """Whether every condition of the running round meets the limits so far."""
    current, limits = state.exploration.round, state.spec.convergence
    if current is None:
        return False
    for found in current.conditions.values():
        accurate, failed = shares(found)
        if accurate < limits.accurate_ratio or failed > limits.max_failed:
            return False
    return True


def by_condition(current: Round) -> dict[str, Counts]:
    """Verdict counts of each condition; dropped checks count as failed."""
    conditions = sorted(current.conditions.items())
    return {name: found.counts + Counts(failed=found.dropped) for name, found in conditions}


def judge_training(state: State, trust: Trust) -> dict[str, Any]:
    """Whether the training error of the committee is well below the trust level `low`."""
    training, before = state.spec.training, state.committee.judged_training
    force = max(member.train.force for member in state.committee.members.values())
    limit = training.limited_above * trust.low
    factor = before.lengthen if before else 1.0
    longer = min(factor * training.lengthen, training.max_lengthen)
    error = f"training force RMSE {force:.3g} eV/Å"
    verdict: Literal["sound", "training-limited", "label-noise-limited"] = "sound"
    why = f"{error} is below {limit:.3g}, {training.limited_above:g} × low"
    if force > limit:
        verdict, why = "training-limited", f"{error} is above {limit:.3g}"
        if before is not None and before.verdict != "sound" and force > 0.9 * before.force:
            verdict = "label-noise-limited"
            why = (
                f"{error}, not at least 10 % below the {before.force:.3g} of the previous training"
            )
        else:
            factor = longer
    return {"verdict": verdict, "force": force, "lengthen": factor, "why": why}


def judge_round(state: State) -> tuple[Literal["passed", "failed", "stuck"], str]:
    """Runs the convergence test of a round; the first criterion that fails is the reason."""
    failure = _failed_criterion(state)
    if failure is None and property_tolerance.decide_now(state):
        unattainable = property_tolerance.unattainable(state, _measured(state))
        if unattainable is not None:
            return "stuck", unattainable
        failure = property_tolerance.failure(state, _measured(state))
    if failure is None:
        return "passed", _pass_summary(state)
    current, stage = state.exploration.round, state.exploration.stage
    assert current is not None
    learned = current.chosen > 0 or bool(state.dataset.fresh)
    if learned or stage.rounds_without_labels + 1 < STUCK_AFTER:
        return "failed", failure
    return "stuck", f"{failure}; no frame to label in {STUCK_AFTER} consecutive rounds"


def awaits_properties(state: State) -> bool:
    """Whether the round meets all other criteria and the properties of its committee are not
    measured yet."""
    if not property_tolerance.decide_now(state) or _measured(state):
        return False
    return _failed_criterion(state) is None and property_tolerance.unlabelled(state) is None


def _measured(state: State) -> tuple[Compared, ...]:
    """Properties of the newest committee, if they are measured."""
    measured = state.committee.measured
    return measured.properties if measured and measured.version == state.committee.version else ()


def _failed_criterion(state: State) -> str | None:
    failures = (criterion(state) for criterion in (_conditions, _rejections, _audit))
    return next((failure for failure in failures if failure is not None), None)


def _conditions(state: State) -> str | None:
    """Tests the worst condition: its accurate share and its failed share."""
    limits = state.spec.convergence
    worst_first = sorted((shares(c)[0], name, c) for name, c in _to_be_judged(state))
    for _, name, found in worst_first:
        accurate, failed = shares(found)
        if accurate < limits.accurate_ratio:
            return f"{name}: {accurate:.1%} accurate, below {limits.accurate_ratio:.1%}"
        if failed > limits.max_failed:
            return f"{name}: {failed:.1%} failed, above {limits.max_failed:.1%}"
    return None


def _to_be_judged(state: State) -> list[tuple[str, ByCondition]]:
    """Conditions of the round. A stage that judges given frames may have none left for a condition;
    that is not a failure."""
    current, stage = state.exploration.round, state.exploration.stage
    assert current is not None
    given = isinstance(state.spec.stages[stage.index].engine, AsGiven)
    found = current.conditions.items()
    return [(name, c) for name, c in found if c.counts.total + c.dropped or not given]


def _rejections(state: State) -> str | None:
    stage, limit = state.exploration.stage, state.spec.convergence.max_rejected
    if stage.answered and stage.rejected > limit * stage.answered:
        return f"{stage.rejected} of {stage.answered} labels rejected, above {limit:.0%}"
    return None


def _audit(state: State) -> str | None:
    """Tests the 95 % upper bounds of the measured errors, and that enough frames from enough
    trajectories were measured."""
    wanted, stage = state.spec.audit, state.exploration.stage
    if wanted.per_round == 0:
        return None
    have, origins = len(stage.audits), len(set(stage.audits.values()))
    if have < wanted.min_frames:
        return f"{have} audit frames, {wanted.min_frames} required"
    if origins < wanted.min_trajectories:
        return f"audit frames from {origins} trajectories, {wanted.min_trajectories} required"
    audit = stage.audit
    if audit is None:
        return "no audit result yet"
    if audit.force_upper > wanted.force_rmse:
        return (
            f"audit force RMSE {audit.force:.3g} eV/Å, 95 % upper bound {audit.force_upper:.3g}, "
            f"above {wanted.force_rmse:g}"
        )
    if audit.exceed_upper > wanted.exceed:
        return (
            f"P(error > {wanted.error_target:g} eV/Å | accurate): 95 % upper bound "
            f"{audit.exceed_upper:.1%}, above {wanted.exceed:.1%}"
        )
    return None


def _pass_summary(state: State) -> str:
    found = [(shares(c)[0], name) for name, c in _to_be_judged(state)]
    accurate, worst = min(found, default=(1.0, ""))
    text = f"worst condition {worst}: {accurate:.1%} accurate" if found else "no frames left"
    audit = state.exploration.stage.audit
    if state.spec.audit.per_round and audit is not None:
        text += (
            f"; audit force RMSE {audit.force:.3g} eV/Å, 95 % upper bound {audit.force_upper:.3g}"
        )
    if property_tolerance.decide_now(state):
        text += "; properties within tolerance"
    return text


def judge_campaign(state: State) -> tuple[Literal["converged", "not-converged"], str]:
    """The verdict on the campaign: every stage has converged and the final model meets the
    criteria."""
    for ended in state.exploration.ended:
        if ended.verdict != "converged":
            name = state.spec.stages[ended.stage].name
            how = "was explored once" if ended.verdict == "explored" else f"ended {ended.verdict}"
            return "not-converged", f"stage {name} {how}: {ended.why}"
    verified = state.final.verified
    if verified is None:
        return "not-converged", f"the final model was not verified: {state.final.failure}"
    if not verified.stable:
        return "not-converged", f"the final model is not stable: {verified.detail}"
    failure = property_tolerance.failure(state, verified.properties)
    if failure is not None:
        return "not-converged", f"the final model: {failure}"
    return _judge_test(verified, state.spec.verification.max_force_error)


def _judge_test(
    verified: Verified, limit: float
) -> tuple[Literal["converged", "not-converged"], str]:
    """Compares the held-out force RMSE with `limit`, a fraction of the RMS force."""
    test, stable = verified.test, f"stable NVE run of {verified.length_ps:g} ps"
    if test is None:
        return "converged", f"all stages converged; {stable}; no held-out set"
    share = test.force / test.rms_force
    error = f"held-out force RMSE {test.force:.3g} eV/Å, {share:.1%} of the RMS force"
    if share > limit:
        return "not-converged", f"{error}, above {limit:.1%}"
    return "converged", f"all stages converged; {error}; {stable}"
