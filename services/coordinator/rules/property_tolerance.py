"""Compares properties of the models with those of the labeling recipe.

`decide_now` says when they matter, `unattainable` whether the recipe yields them at all, and
`failure` names the property that is farthest outside its tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dpstream.services.coordinator.state import State
from dpstream.shared.values import Compared


def decide_now(state: State) -> bool:
    """Whether the properties decide on the running round: it could end the last stage. A warm
    committee has to be confirmed by a cold one, so its properties are not tested."""
    last = state.ahead == (state.exploration.stage.index,)
    return bool(state.spec.verification.properties) and last and state.committee.is_cold


def unlabelled(state: State) -> str | None:
    """Why the recipe yields no value of a property: one of its structures has no label. Otherwise
    None."""
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


def unattainable(state: State, measured: Sequence[Compared]) -> str | None:
    """Why no model can pass, because the recipe itself yields no value; otherwise None."""
    missing = unlabelled(state)
    if missing is not None:
        return missing
    return next((_describe(state, each) for each in measured if each.recipe is None), None)


def failure(state: State, measured: Sequence[Compared]) -> str | None:
    """Describes the value farthest outside its tolerance; None if all are within."""
    if not state.spec.verification.properties:
        return None
    if not measured:
        return "no property was measured"
    worst = max(measured, key=lambda each: _relative_error(each) / _tolerance(state, each))
    return _describe(state, worst) if _relative_error(worst) > _tolerance(state, worst) else None


def _relative_error(each: Compared) -> float:
    """Deviation relative to the recipe's value; infinite if either value is missing."""
    if each.model is None or each.recipe is None or each.recipe == 0:
        return math.inf
    return abs(each.model - each.recipe) / abs(each.recipe)


def _tolerance(state: State, each: Compared) -> float:
    return state.spec.verification.properties[each.property].tolerance


def _describe(state: State, each: Compared) -> str:
    name = f"{each.name} of {state.spec.verification.properties[each.property].system}"
    if each.model is None or each.recipe is None:
        return f"{name}: {each.why}"
    tolerance = f"tolerance {100 * _tolerance(state, each):g}%"
    return (
        f"{name} off by {_relative_error(each):.1%} ({tolerance}): "
        f"{each.model:.4g} {each.unit}, recipe {each.recipe:.4g} {each.unit}"
    )
