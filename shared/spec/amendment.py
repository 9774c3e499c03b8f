"""Compares two plans of one campaign: what differs, in the user's terms, and what may not.

A plan is a spec whose `material` is expanded. Both plans have all their defaults, so that a
difference is always something that a user wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Set
from typing import Any

from dpstream.shared.spec.campaign import Spec
from dpstream.shared.spec.exploration import AnyTrust, Stage, TrustLevels

RECIPE = (
    "code",
    "settings",
    "charge",
    "multiplicity",
    "compositions",
    "electron_temperature",
    "version",
)
"""Keys of `labels` that determine the numbers of a label."""
FIXED: Mapping[str, str] = {
    "name": "it identifies the campaign",
    "seed": "all random numbers so far derive from it",
    "mode": "earlier rounds ran in it",
    "reproducible": "earlier tasks were retried according to it",
    "type_map": "all models are made for these elements",
    "initial": "the first training used it",
    "training.backend": "warm starts and explorers need models of one backend",
    "training.init": "its files are stored with the campaign",
    "training.repulsion": "its files are stored with the campaign",
    "verification.data": "the held-out set is frozen",
    "verification.reference_md": "the held-out set is frozen",
    **{f"labels.{key}": "labels of one campaign have one recipe" for key in RECIPE},
}
"""Keys that no amendment changes, with all keys below them, and why."""
INSTEAD = "prepare a new campaign with the labels of this one: dpstream new NAME --from"
AT_ANY_TIME = (
    "labels.worker_class",
    "labels.max_seconds",
    "training.max_hours",
    "max_attempts",
    "proposals",
)
"""Keys on which no choice of a frame depends, with all keys below them."""
SHOWN = 60
"""Most characters of a value in a difference."""
_ABSENT = object()
Flat = dict[str, Any]


def differences(before: Spec, after: Spec) -> list[str]:
    """What an amendment changes, a line per change; empty if the two are the same plan."""
    lines = [*_stages(before, after)]
    lines += [f"system `{name}` added" for name in after.systems if name not in before.systems]
    lines += [f"system `{name}` removed" for name in before.systems if name not in after.systems]
    common = before.systems.keys() & after.systems.keys()
    old, new = _flat_settings(before, common), _flat_settings(after, common)
    return lines + [f"{key} {_change(old, new, key)}" for key in changed_keys(old, new)]


def unchangeable(before: Spec, after: Spec) -> str | None:
    """The first change that no amendment can make, as one line with what to do; None if there is
    none."""
    old, new = flat(before), flat(after)
    for key in changed_keys(old, new):
        why = _why_fixed(key, before)
        if why is not None:
            change = _change(old, new, key)
            return f"{key}: {change}: cannot change in a campaign: {why}; {INSTEAD} {before.name}"
    return None


def is_at_any_time(before: Spec, after: Spec) -> bool:
    """Whether no choice of a frame depends on what changes, so that even a lockstep campaign need
    not wait for the end of its round."""
    changed = changed_keys(flat(before), flat(after))
    return all(any(is_below(key, each) for each in AT_ANY_TIME) for key in changed)


def with_any_time(spec: Spec, of: Spec) -> Spec:
    """A plan with those values of another that may change at any time."""
    for key in AT_ANY_TIME:
        section, _, name = key.partition(".")
        value = getattr(of, section)
        if name:
            update = {name: getattr(value, name)}
            value = getattr(spec, section).model_copy(update=update)
        spec = spec.model_copy(update={section: value})
    return spec


def changes_below(before: Spec, after: Spec, *sections: str) -> bool:
    """Whether anything in these sections changes."""
    changed = changed_keys(flat(before), flat(after))
    return any(is_below(key, section) for key in changed for section in sections)


def is_below(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def flat(spec: Spec) -> Flat:
    """The leaves of a spec, by dotted key. Lists of plain values are leaves."""
    return _flat(spec.model_dump(mode="json"))


def changed_keys(before: Flat, after: Flat) -> list[str]:
    keys = before.keys() | after.keys()
    return sorted(key for key in keys if before.get(key, _ABSENT) != after.get(key, _ABSENT))


def shown(flat: Flat, key: str) -> str:
    """The value of a key, as JSON."""
    text = json.dumps(flat[key], ensure_ascii=False) if key in flat else "not set"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _change(before: Flat, after: Flat, key: str) -> str:
    return f"{shown(before, key)} → {shown(after, key)}"


def _why_fixed(key: str, before: Spec) -> str | None:
    for section, why in FIXED.items():
        if is_below(key, section):
            return why
    _, _, system = key.partition("systems.")
    if key.startswith("systems.") and system.split(".")[0] in before.systems:
        return "existing frames belong to this system; add a system with another name"
    if key.startswith("verification.properties") and not key.endswith(".tolerance"):
        return "its structures were labelled with the initial frames"
    return None


def _flat_settings(spec: Spec, systems: Set[str]) -> Flat:
    """The leaves beside the stages; of the systems, those of these names."""
    document = spec.model_dump(mode="json", exclude={"stages", "material"})
    document["systems"] = {name: document["systems"][name] for name in systems}
    return _flat(document)


def _flat(value: Any, prefix: str = "") -> Flat:
    if isinstance(value, dict) and value:
        items: Iterator[tuple[Any, Any]] = iter(value.items())
    elif isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        items = iter(enumerate(value))
    else:
        return {prefix: value}
    leaves: Flat = {}
    for key, inner in items:
        leaves |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return leaves


# ------------------------------------------------------------------------------ stages


def _stages(before: Spec, after: Spec) -> Iterator[str]:
    old = {stage.name: stage for stage in before.stages}
    new = {stage.name: stage for stage in after.stages}
    place = "first"
    for name, stage in new.items():
        if name not in old:
            yield f"stage `{name}` added {place}: {_what(stage)}"
        place = f"after `{name}`"
    yield from (f"stage `{name}` dropped" for name in old if name not in new)
    common = [name for name in new if name in old]
    if common != [name for name in old if name in new]:
        yield f"stages in another order: {', '.join(new)}"
    for name in common:
        yield from _stage(before, after, old[name], new[name])


def _what(stage: Stage) -> str:
    kelvin = ", ".join(f"{each:g}" for each in stage.temperatures)
    bar = ", ".join(f"{each:g}" for each in stage.pressures)
    return f"{', '.join(stage.systems)} at {kelvin} K" + (f", {bar} bar" if bar else "")


def _stage(before: Spec, after: Spec, old: Stage, new: Stage) -> Iterator[str]:
    """The changes of a stage, without what it takes over from `md`."""
    was, now = (_flat(stage.model_dump(mode="json")) for stage in (old, new))
    general = [_flat({"md": spec.md.model_dump(mode="json")}) for spec in (before, after)]
    for key in changed_keys(was, now):
        inherited = key in general[0] and [was.get(key), now.get(key)] == [
            each.get(key) for each in general
        ]
        if not inherited:
            yield f"stage `{new.name}`: {key} {_change(was, now, key)}"


# ------------------------------------------------------------------------------ stricter rules


HIGHER = ("convergence.accurate_ratio", "convergence.rounds")
LOWER = ("convergence.max_failed", "convergence.max_rejected")
AUDIT_HIGHER = ("audit.min_frames", "audit.min_trajectories")
AUDIT_LOWER = ("audit.force_rmse", "audit.error_target", "audit.exceed")
"""Limits that are stricter the higher, or the lower, they are."""


def stricter_limit(before: Spec, after: Spec) -> str | None:
    """The first limit of convergence or audit that becomes stricter, as one line."""
    for key in (*HIGHER, *LOWER, *_audit_limits(before, after)):
        was, now = _value(before, key), _value(after, key)
        if now > was if key in (*HIGHER, *AUDIT_HIGHER) else now < was:
            return f"{key} {was:g} → {now:g}"
    if not before.audit.per_round and after.audit.per_round:
        return f"audit.per_round 0 → {after.audit.per_round}"
    return None


def _value(spec: Spec, key: str) -> float:
    section, name = key.split(".")
    return float(getattr(getattr(spec, section), name))


def _audit_limits(before: Spec, after: Spec) -> tuple[str, ...]:
    """Limits of the audit, where there is one."""
    both = before.audit.per_round and after.audit.per_round
    return (*AUDIT_HIGHER, *AUDIT_LOWER) if both else ()


def explores_otherwise(old: Stage, new: Stage) -> bool:
    apart = {"trust", "system_trust", "repeat"}
    return old.model_dump(exclude=apart) != new.model_dump(exclude=apart)


def is_looser(was: AnyTrust, now: AnyTrust) -> bool:
    """Whether everything that was accurate still is, and nothing fails that did not."""
    if was == now:
        return True
    if isinstance(was, TrustLevels) and isinstance(now, TrustLevels):
        scales = (was.relative, was.relative_v) == (now.relative, now.relative_v)
        pairs = ((was.low, now.low), (was.high, now.high))
        return scales and all(b >= a for a, b in pairs) and _is_looser_virial(was, now)
    if isinstance(was, TrustLevels) or isinstance(now, TrustLevels):
        return False
    return now.target >= was.target


def _is_looser_virial(was: TrustLevels, now: TrustLevels) -> bool:
    if now.low_v is None or now.high_v is None:
        return True
    if was.low_v is None or was.high_v is None:
        return False
    return now.low_v >= was.low_v and now.high_v >= was.high_v
