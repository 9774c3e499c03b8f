"""The card of a dataset: what is in it, how it was computed, and under which licence."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dpstream.export.dataset_formats import DATABASE, split_of
from dpstream.export.rendering import render
from dpstream.export.results import CampaignResults
from dpstream.inputs.reading.found import KIND_WORDS, RULE_WORDS
from dpstream.services.labeler.codes import CODES
from dpstream.shared.atoms.dataset import Labelled
from dpstream.shared.atoms.frames import frame_key

CARD = "README.md"
NOT_STATED = "not stated"


@dataclass(frozen=True)
class Composition:
    """Frames of one composition and periodicity. `forces`: their RMS, eV/Å per component."""

    formula: str
    periodic: bool
    frames: int
    virials: int
    forces: float


def write_card(
    results: CampaignResults, labelled: Sequence[Labelled], folder: Path, licence: str
) -> None:
    recipe, submitted = results.recipe, results.history.submitted
    imported = submitted.imported if submitted else ()
    text = render(
        "dataset.md.j2",
        campaign=results.campaign,
        version=version("dpstream"),
        licence=licence or NOT_STATED,
        type_map=results.spec.type_map,
        frames=len(labelled),
        all_formats=(folder / DATABASE).exists(),
        splits=Counter(split_of(frame_key(item.frame)) for item in labelled),
        audit=len(results.audit_set()),
        held_out=len(results.test_set()),
        forces=_rms(labelled),
        largest=max((float(np.abs(i.label.forces).max()) for i in labelled), default=0.0),
        compositions=compositions(labelled),
        recipe=recipe,
        method=CODES[recipe.code].method(recipe.settings) if recipe else "",
        semi_empirical=recipe is not None and CODES[recipe.code].semi_empirical(recipe.settings),
        settings=_as_json(recipe.settings) if recipe else "",
        imported=imported,
        other_energies=any({*each.energies} - {"free"} for each in imported),
        kinds=KIND_WORDS,
        words=RULE_WORDS,
        imported_frames=submitted.pack_frames if submitted else 0,
    )
    (folder / CARD).write_text(text, encoding="utf-8")


def compositions(labelled: Sequence[Labelled]) -> list[Composition]:
    """A row per composition and periodicity, in alphabetical order."""
    groups: dict[tuple[str, bool], list[Labelled]] = {}
    for item in labelled:
        key = (item.frame.formula, item.frame.cell is not None)
        groups.setdefault(key, []).append(item)
    return [
        Composition(
            formula,
            periodic,
            len(items),
            sum(item.label.virial is not None for item in items),
            _rms(items),
        )
        for (formula, periodic), items in sorted(groups.items())
    ]


def _rms(labelled: Sequence[Labelled]) -> float:
    if not labelled:
        return 0.0
    forces = np.concatenate([item.label.forces.ravel() for item in labelled])
    return float(np.sqrt(np.mean(forces**2)))


def _as_json(settings: Any) -> str:
    return json.dumps(settings, indent=1, ensure_ascii=False)
