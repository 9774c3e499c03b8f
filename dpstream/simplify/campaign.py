"""Builds the campaign that explores a dataset until none of its frames is a candidate.

The dataset is the only system, explored unchanged by the engine `frames` in lockstep mode. Settings
of the user are merged over defaults that suit a fixed pool.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any

from dpstream.inputs.frames_as_given import runs
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import DATASET, LabelSettings, Selection, Spec, TrustLevels
from dpstream.shared.spec.errors import shown, validated
from dpstream.simplify.pool import SimplifyPool

Json = dict[str, Any]

NOT_THE_USERS = ("systems", "stages", "material", "md")
SYSTEM = "pool"
TRAJECTORIES = 100
"""Largest number of trajectories per composition: enough to share among workers, each long
enough for a task."""
SHORTEST = 100
"""Frames per trajectory of a small dataset."""
PICK = 20
FAR = 1e6
"""Larger than any limit: frames of the dataset are not refused for their shape."""
SPARE_ROUNDS = 20
"""Rounds in addition to those that label every frame."""


def own_labels(settings: Mapping[str, Any]) -> bool:
    """Whether the dataset's own labels are used, because no labeling code is set."""
    labels = settings.get("labels", {})
    return not isinstance(labels, dict) or labels.get("code", DATASET) == DATASET


def campaign(
    settings: Mapping[str, Any], name: str, sources: Sequence[str], pool: SimplifyPool
) -> Spec:
    """The spec for the pool, with `settings` (sections of a spec) merged over the defaults.
    Raises `SpecError` naming the key."""
    for key in NOT_THE_USERS:
        if key in settings:
            raise SpecError(f"{key}: not allowed, as the dataset's frames are explored; remove it")
    spec = validated(Spec, _document(settings, name, sources, pool))
    if not isinstance(spec.trust, TrustLevels):
        raise SpecError("trust: give levels {low, high}; they determine which frames are left out")
    return spec


def _document(
    settings: Mapping[str, Any], name: str, sources: Sequence[str], pool: SimplifyPool
) -> Json:
    type_map = settings.get("type_map", pool.elements)
    length = trajectory_length(pool.frames.values())
    labels = _section(settings, "labels")
    if own_labels(settings):
        labels = {**labels, "code": DATASET, "settings": {"sha256": pool.digest}}
    return {
        "name": name,
        "mode": "lockstep",
        "trust": {"low": 0.1, "high": 10.0},
        **settings,
        "type_map": type_map,
        "systems": {SYSTEM: {"structures": list(sources)}},
        "initial": {"pick": PICK, **_section(settings, "initial")},
        "stages": [_stage(length)],
        "selection": _selection(settings, type_map, length),
        "labels": labels,
        "audit": {"per_round": 0, **_section(settings, "audit")},
        "convergence": {
            "accurate_ratio": 1.0,
            "max_failed": 0.0,
            **_section(settings, "convergence"),
        },
        "budget": {**_budget(settings, len(pool.frames)), **_section(settings, "budget")},
        "verification": {"nve_ps": 0.0, **_section(settings, "verification")},
    }


def _stage(length: int) -> Json:
    return {
        "name": SYSTEM,
        "systems": [SYSTEM],
        "temperatures": [1.0],  # no atom moves
        "engine": "frames",
        "md": {"steps": length, "every": 1, "chunk": length, "stop_after": length + 1},
    }


def _selection(settings: Mapping[str, Any], type_map: Sequence[str], length: int) -> Json:
    """Selection defaults that refuse no frame, except those that labeling would reject."""
    default = _default(LabelSettings, "min_distance")
    least = _section(settings, "labels").get("min_distance", default)
    pairs = combinations_with_replacement(type_map, 2)
    return {
        "min_distance": {f"{a}-{b}": least for a, b in pairs},
        "max_skew": FAR,
        "per_trajectory": length,
        "min_separation": 0.0,
        "time_bins": 1,
        **_section(settings, "selection"),
    }


def _budget(settings: Mapping[str, Any], frames: int) -> Json:
    each = _section(settings, "selection").get("per_round", _default(Selection, "per_round"))
    whole = isinstance(each, int) and each > 0
    return {"labels": frames, "rounds": SPARE_ROUNDS + math.ceil(frames / each if whole else 1)}


def _default(section: Any, key: str) -> Any:
    return section.model_fields[key].default


def _section(settings: Mapping[str, Any], key: str) -> Json:
    value = settings.get(key, {})
    if not isinstance(value, dict):
        raise SpecError(f"{key}: {shown(value)}: must be a mapping")
    return value


def trajectory_length(frames: Iterable[Frame]) -> int:
    """Frames per trajectory, chosen to have at most `TRAJECTORIES` trajectories."""
    known, length = list(frames), SHORTEST
    while len(runs(known, length)) > TRAJECTORIES and length < len(known):
        length *= 2
    return length
