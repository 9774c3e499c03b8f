"""Sets the trust levels: those of the spec, or levels calibrated from audits."""

from __future__ import annotations

from dpstream.services.coordinator.decisions import Decisions, already_decided, plan_identity
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m
from dpstream.shared.spec import AutoTrust, Stage
from dpstream.shared.values import Trust


def stage_of(state: State) -> Stage:
    return state.spec.stages[min(state.exploration.stage.index, len(state.spec.stages) - 1)]


def current_trust(state: State) -> Trust:
    return state.exploration.stage.trust or opening_trust(state)[0]


def trust_of(state: State, system: str) -> Trust:
    """Trust levels for the frames of one system."""
    own = stage_of(state).system_trust.get(system)
    return current_trust(state) if own is None else own.values()


def opening_trust(state: State) -> tuple[Trust, str]:
    """The levels a stage starts with, and their reason: those of the spec; for `auto`, 0.2 and 0.5
    times the RMS force of the labels."""
    given = stage_of(state).trust or state.spec.trust
    if not isinstance(given, AutoTrust):
        return given.values(), "set in the spec"
    trained = list(state.committee.members.values())
    rms = max((member.train.rms_force for member in trained), default=1.0)
    why = f"0.2 and 0.5 times the RMS force of the labels, {rms:.3g} eV/Å"
    return Trust(low=0.2 * rms, high=0.5 * rms), why


def set_trust(decisions: Decisions, trust: Trust, why: str) -> None:
    state = decisions.state
    stage, version = state.exploration.stage.index, state.committee.version
    what = stage, version, *plan_identity(state)
    decisions.fact(m.TrustChanged, *what, stage=stage, version=version, trust=trust, why=why)


def calibrate_trust(decisions: Decisions) -> None:
    """For `auto`, sets the levels that the last audit found. They change only when a new committee
    is ready, so that one version is judged by one pair of levels."""
    state, audit = decisions.state, decisions.state.exploration.stage.audit
    given = stage_of(state).trust or state.spec.trust
    if not isinstance(given, AutoTrust) or audit is None or audit.levels is None:
        return
    if not already_decided(decisions, m.ModelsReady) or already_decided(decisions, m.TrustChanged):
        return
    low, high = audit.levels
    trust = current_trust(state).model_copy(update={"low": low, "high": high})
    set_trust(decisions, trust, audit.levels_why)
