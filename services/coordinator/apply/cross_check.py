"""Applies what becomes of imported labels that are computed again."""

from __future__ import annotations

from immutables import Map

from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.state import CrossCheckStatus, State
from dpstream.shared import messages as m
from dpstream.shared.cross_check import ComparedLabel


def import_compared(state: State, command: m.CheckLabel, event: m.LabelChecked) -> State:
    if event.forces is None or event.energy is None:
        return import_not_compared(state, command, event.rejected)
    found = ComparedLabel(event.forces, event.energy, event.opposed)
    return _with_compared(state, command.frame.key, found)


def import_not_compared(state: State, command: m.CheckLabel, why: str) -> State:
    key = command.frame.key
    formula = next(each.formula for each in state.imported if each.frame.key == key)
    return _with_compared(state, key, ComparedLabel(rejected=f"{formula}: {why or 'no reason'}"))


def _with_compared(state: State, key: str, found: ComparedLabel) -> State:
    """With an imported label beside a new one. The last one ends the check, unless they disagree. A
    result that comes after a report was no part of it: it has to be reported, too."""
    if not state.is_comparing:
        return state
    check = replace(
        state.cross_check,
        compared=state.cross_check.compared.set(key, found),
        status="comparing",
    )
    state = replace(state, cross_check=check)
    complete = len(check.compared) == len(state.imported)
    if complete and state.import_problem is None:
        return replace(state, cross_check=replace(check, status="over"))
    return state


def imports_reported(state: State, event: m.CampaignPaused) -> State:
    """The campaign is paused. Only the disagreement that the newest pause states is reported."""
    if not state.is_comparing:
        return state
    status: CrossCheckStatus = "reported" if event.imports_differ else "comparing"
    return replace(state, cross_check=replace(state.cross_check, status=status))


def accept_imports(state: State) -> State:
    """A user resumes the campaign. Of a disagreement that was reported, frames that the recipe
    rejected are computed once more; numbers that differ, which would be the same again, are
    accepted."""
    check = state.cross_check
    if check.status != "reported":
        return state
    if check.awaits_acceptance:
        return replace(state, cross_check=replace(check, status="over"))
    left = Map({key: each for key, each in check.compared.items() if not each.rejected})
    again = replace(check, compared=left, repeated=True, status="comparing")
    return replace(state, cross_check=again)
