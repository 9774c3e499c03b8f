"""The campaign that looks at a dataset until no frame of it is a candidate any more."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any

from pydantic import ValidationError

from dpstream.inputs.frames_as_given import runs
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import DATASET, LabelSettings, Selection, Spec, TrustLevels
from dpstream.shared.spec.errors import explain, shown
from dpstream.simplify.pool import SimplifyPool

Json = dict[str, Any]

NOT_THE_USERS = ("systems", "stages", "material", "md")
SYSTEM = "pool"
TRAJECTORIES = 100
"""Of one composition: as many as workers may share, each long enough to be worth a task."""
SHORTEST = 100
"""Frames of a trajectory, where the dataset is small."""
PICK = 20
FAR = 1e6
"""Beyond all limits: what is in the dataset is meant."""
SPARE_ROUNDS = 20
"""Beyond those in which every frame is labelled."""


def own_labels(settings: Mapping[str, Any]) -> bool:
    """Whether labels are those of the dataset: no code is asked for."""
    labels = settings.get("labels", {})
    return not isinstance(labels, dict) or labels.get("code", DATASET) == DATASET


def campaign(
    settings: Mapping[str, Any], name: str, sources: Sequence[str], pool: SimplifyPool
) -> Spec:
    """The spec made of `settings`, sections of one. Raises `SpecError` naming the key."""
    for key in NOT_THE_USERS:
        if key in settings:
            raise SpecError(f"{key}: the dataset's frames are what is looked at; leave it out")
    try:
        spec = Spec.model_validate(_document(settings, name, sources, pool))
    except ValidationError as error:
        raise SpecError(explain(error, Spec)) from error
    if not isinstance(spec.trust, TrustLevels):
        raise SpecError("trust: give levels {low, high}: they say which frames are left out")
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
    """No frame is refused for its shape or its place, but those that labels refuse."""
    least = _section(settings, "labels").get(
        "min_distance", _default(LabelSettings, "min_distance")
    )
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
        raise SpecError(f"{key}: {shown(value)}: should be a mapping of keys")
    return value


def trajectory_length(frames: Iterable[Frame]) -> int:
    """Frames of one trajectory, so that there are few of them."""
    known, length = list(frames), SHORTEST
    while len(runs(known, length)) > TRAJECTORIES and length < len(known):
        length *= 2
    return length
