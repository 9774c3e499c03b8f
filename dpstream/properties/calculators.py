"""ASE calculators for the two sides of a comparison: a labeling recipe, whose single points are
labels in the cache, and a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from dpstream.services.labeler.labeling import FrameLabeler
from dpstream.shared.atoms.frames import (
    Canonical,
    FrameLabel,
    as_frame,
    canonical,
    decode_labelled,
    frame_key,
)
from dpstream.shared.errors import Permanent, SpecError
from dpstream.shared.values import Rejected


class RecipeCalculator(Calculator):  # type: ignore[misc]
    """Energy, forces and stress from a `FrameLabeler`, which uses cached labels. Raises `Permanent`
    if a label is rejected."""

    implemented_properties = ("energy", "free_energy", "forces", "stress")

    def __init__(self, labeler: FrameLabeler) -> None:
        super().__init__()
        self.labeler = labeler
        self.computed = 0

    def calculate(
        self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        form = canonical(as_frame(self.atoms, self.atoms.get_chemical_formula()))
        verdict = self.labeler.judge(frame_key(form.frame), form.frame)
        if isinstance(verdict, Rejected):
            raise Permanent(f"{form.frame.formula}: {verdict.rule}: {verdict.detail}")
        self.computed += not verdict.reused
        _, label, _ = decode_labelled(self.labeler.context.store.get(verdict.label.uri))
        back = label_back(form, label)
        self.results = {"energy": back.energy, "free_energy": back.energy, "forces": back.forces}
        if back.virial is not None:
            stress = -back.virial / self.atoms.get_volume()
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress)


def label_back(form: Canonical, label: FrameLabel) -> FrameLabel:
    """Transform the label of a canonical frame to the original order and orientation."""
    virial = None
    if label.virial is not None:
        virial = np.asarray(form.rotation @ label.virial @ form.rotation.T)
    return FrameLabel(label.energy, form.forces_back(label.forces), virial)


def model_calculator(path: Path) -> Any:
    """The calculator of a DeePMD-kit model. Raises `SpecError` if it cannot be loaded."""
    if not path.is_file():
        raise SpecError(f"MODEL: {path}: no such file")
    try:
        from deepmd.calculator import DP  # deferred: takes seconds

        from dpstream.shared.atoms.deep_pot import NEIGHBOUR_LIST
    except ImportError as error:
        raise SpecError(
            f"MODEL: {path}: requires deepmd-kit ({error}); pip install 'dpstream[trainer]'"
        ) from error
    try:
        return DP(path, nlist_backend=NEIGHBOUR_LIST)
    except Exception as error:  # TensorFlow raises many kinds
        text = " ".join(str(error).split())
        raise SpecError(f"MODEL: {path}: cannot be loaded as a model: {text}") from error
