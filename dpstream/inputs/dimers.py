"""Selects the dimers that a campaign labels first: those that its recipe can compute."""

from __future__ import annotations

from dpstream.services.labeler.acceptance import AcceptanceLimits, check_before
from dpstream.services.labeler.recipes import code_of, make_recipe
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Spec
from dpstream.shared.spec.dimers import dimer_frames


def gather_dimers(spec: Spec) -> tuple[list[Frame], list[str]]:
    """Canonical frames, and warnings of omitted pairs. Raises `SpecError` if a pair listed in the
    spec cannot be computed, or if none can."""
    dimers = spec.initial.dimers
    if dimers is None:
        return [], []
    code, recipe = code_of(spec.labels), make_recipe(spec.labels, version_needed=False)
    limits = AcceptanceLimits.of_dimers(dimers, spec.labels)
    kept: list[Frame] = []
    warnings = []
    for pair, frames in dimer_frames(dimers, spec.type_map).items():
        problems = (check_before(frame, recipe, code, limits) for frame in frames)
        broken = next((problem for problem in problems if problem is not None), None)
        if broken is None:
            kept += frames
            continue
        text = f"{pair} cannot be labelled ({broken.rule}): {broken.detail}"
        if dimers.pairs:
            raise SpecError(f"initial.dimers.pairs: {text}")
        warnings.append(f"initial.dimers: {text}; omitted")
    if not kept:
        raise SpecError(f"initial.dimers: no pair can be labelled: {warnings[0]}")
    return kept, warnings
