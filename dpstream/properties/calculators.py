"""ASE calculators: a labeling recipe, whose every single point is a label in the cache, and a
trained model."""

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
    """Energy, forces and stress as a desk labels them: looked up where they are known. Raises
    `Permanent` where the label is rejected."""

    implemented_properties = ("energy", "free_energy", "forces", "stress")

    def __init__(self, desk: FrameLabeler) -> None:
        super().__init__()
        self.desk = desk
        self.computed = 0

    def calculate(
        self,
        atoms: Any = None,
        properties: Any = ("energy",),
        system_changes: Any = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        form = canonical(as_frame(self.atoms, self.atoms.get_chemical_formula()))
        verdict = self.desk.judge(frame_key(form.frame), form.frame)
        if isinstance(verdict, Rejected):
            raise Permanent(f"{form.frame.formula}: {verdict.rule}: {verdict.detail}")
        self.computed += not verdict.reused
        _, label, _ = decode_labelled(self.desk.context.store.get(verdict.label.uri))
        back = label_back(form, label)
        self.results = {"energy": back.energy, "free_energy": back.energy, "forces": back.forces}
        if back.virial is not None:
            stress = -back.virial / self.atoms.get_volume()
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress)


def label_back(form: Canonical, label: FrameLabel) -> FrameLabel:
    """The label of a canonical frame in the caller's order and orientation."""
    virial = None
    if label.virial is not None:
        virial = np.asarray(form.rotation @ label.virial @ form.rotation.T)
    return FrameLabel(label.energy, form.forces_back(label.forces), virial)


def model_calculator(path: Path) -> Any:
    """A model of DeePMD-kit; `SpecError` where it cannot be loaded."""
    if not path.is_file():
        raise SpecError(f"MODEL: {path}: no such file")
    try:
        from deepmd.calculator import DP  # deferred: takes seconds
    except ImportError as error:
        raise SpecError(
            f"MODEL: {path}: needs deepmd-kit ({error}); pip install 'dpstream[trainer]'"
        ) from error
    try:
        return DP(path)
    except Exception as error:  # TensorFlow raises whatever its parsing meets
        text = " ".join(str(error).split())
        raise SpecError(f"MODEL: {path}: cannot be loaded as a model: {text}") from error
