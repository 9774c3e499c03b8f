"""Has a few imported labels computed again, and pauses the campaign if they disagree.

No other rule runs before the verdict: the campaign's first tasks are these.
"""

from __future__ import annotations

from dpstream.services.coordinator.decisions import Decisions, is_decided
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m
from dpstream.shared.values import FrameRef, Ref

FIXED = "If the recipe is wrong, cancel this campaign and start another (a recipe cannot change)"
ACCEPT = f"{FIXED}; to use the data as they are, resume"
MEND = f"If a labeler is the cause, fix it and resume: these frames are computed again. {FIXED}"
"""Of frames without a label."""


def compare_imported(decisions: Decisions) -> None:
    """Issues the tasks of the cross-check, or pauses the campaign by its result."""
    state = decisions.state
    if state.import_problem is not None:
        why = f"{state.import_problem}. {_next(state)}"
        what = decisions.event.id, "imported"
        decisions.fact(m.CampaignPaused, *what, why=why, imports_differ=True)
        return
    again = ("again",) if state.cross_check.repeated else ()
    known = {*state.cross_check.compared, *_in_progress(state)}
    for number, each in enumerate(state.imported, start=1):
        what = each.frame.key, "imported", *again
        if each.frame.key in known or is_decided(state, m.CheckLabel, *what):
            continue
        title = f"compare imported label {number} of {len(state.imported)}: {each.formula}"
        compute_again(decisions, *what, title=title, frame=each.frame, label=each.label)


def compute_again(
    decisions: Decisions, *what: object, title: str, frame: FrameRef, label: Ref
) -> None:
    """Has a label computed again, to compare it with this one."""
    state = decisions.state
    assert state.submitted is not None
    decisions.command(
        m.CheckLabel,
        *what,
        title=title,
        capability=state.spec.labels.capability,
        recipe=state.submitted.recipe.digest,
        frame=frame,
        label=label,
        max_seconds=state.spec.labels.max_seconds,
    )


def is_check_of_use(state: State, key: str) -> bool:
    """Whether another attempt at an imported frame may still change the verdict."""
    found = state.cross_check.compared.get(key)
    has_label = found is not None and not found.rejected
    return state.is_comparing and not has_label and key not in _in_progress(state)


def _in_progress(state: State) -> set[str]:
    commands = [task.command for task in state.under_way(m.CheckLabel)]
    return {c.frame.key for c in commands if isinstance(c, m.CheckLabel) and state.is_of_import(c)}


def _next(state: State) -> str:
    """What a user may do about the disagreement."""
    return MEND if state.cross_check.to_repeat else ACCEPT
