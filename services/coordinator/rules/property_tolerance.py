"""Properties of the models beside those by the recipe, pure: when they decide, whether they can be
had at all, and whether they are near enough."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dpstream.services.coordinator.state import State
from dpstream.shared.values import Compared


def decide_now(state: State) -> bool:
    """Whether a round of this version, should it pass, ends the last stage. A committee that was
    not trained from scratch has to be confirmed by one that is: its properties do not matter."""
    last = state.exploration.stage.index == len(state.spec.stages) - 1
    return bool(state.spec.verification.properties) and last and state.committee.is_cold


def unlabelled(state: State) -> str | None:
    """Why a property by the recipe will never be known, if labels are missing."""
    assert state.submitted is not None
    for number, refs in enumerate(state.submitted.points):
        missing = sum(state.labels.frames[ref.key].label is None for ref in refs)
        if missing:
            wanted = state.spec.verification.properties[number]
            return (
                f"{wanted.property} of {wanted.system}: {missing} of its {len(refs)} structures "
                "could not be labelled"
            )
    return None


def hopeless(state: State, found: Sequence[Compared]) -> str | None:
    """Why no model will ever pass, if so: the recipe itself has no such property."""
    missing = unlabelled(state)
    if missing is not None:
        return missing
    return next((_said(state, each) for each in found if each.recipe is None), None)


def broken(state: State, found: Sequence[Compared]) -> str | None:
    """The number farthest beyond its tolerance, if any is."""
    if not state.spec.verification.properties:
        return None
    if not found:
        return "no property was measured"
    worst = max(found, key=lambda each: _off(each) / _tolerance(state, each))
    return _said(state, worst) if _off(worst) > _tolerance(state, worst) else None


def _off(each: Compared) -> float:
    """Difference as a share of the recipe's number."""
    if each.model is None or each.recipe is None or each.recipe == 0:
        return math.inf
    return abs(each.model - each.recipe) / abs(each.recipe)


def _tolerance(state: State, each: Compared) -> float:
    return state.spec.verification.properties[each.property].tolerance


def _said(state: State, each: Compared) -> str:
    name = f"{each.name} of {state.spec.verification.properties[each.property].system}"
    if each.model is None or each.recipe is None:
        return f"{name}: {each.why}"
    return (
        f"{name} off by {_off(each):.1%} (tolerance {100 * _tolerance(state, each):g}%): "
        f"{each.model:.4g} {each.unit}, {each.recipe:.4g} by the recipe"
    )
