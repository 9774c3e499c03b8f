"""Recomputed labels tell imported ones of another sign."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dpstream.inputs.gather import Gathered
from dpstream.running.check_here import compare
from dpstream.shared.atoms.frames import Floats, Frame, FrameLabel
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Spec

VIRIAL = np.array([[3.0, 0.2, 0.1], [0.2, 2.0, 0.3], [0.1, 0.3, 1.0]])


def spec() -> Spec:
    return Spec.model_validate(
        {
            "name": "imported",
            "type_map": ["C"],
            "systems": {"a": {"structures": ["start.xyz"]}},
            "initial": {"data": ["set.extxyz"]},
            "stages": [{"name": "one", "systems": ["a"], "temperatures": [300]}],
        }
    )


def checked(*recomputed: Floats | None) -> None:
    """Two carbons with `VIRIAL` per frame, recomputed with others."""
    frames = [Frame(("C", "C"), np.eye(3)[:2] * (1 + n), np.eye(3) * 9) for n in range(5)]
    label = FrameLabel(-1.0, np.full((2, 3), 0.5), VIRIAL)
    gathered = Gathered({}, [], [(frame, label) for frame in frames], [], [])
    compare(gathered, spec(), lambda chosen: [replace(label, virial=v) for v in recomputed])


def test_virials_of_the_same_sign_pass() -> None:
    checked(*[VIRIAL * 1.05] * 5)
    checked(*[None] * 5)
    checked(*[VIRIAL + np.eye(3)] * 5)


def test_virials_of_the_opposite_sign_are_refused() -> None:
    with pytest.raises(SpecError, match="virials of 5 recomputed frames have the opposite sign"):
        checked(*[-0.95 * VIRIAL] * 5)


def test_small_virials_that_differ_are_no_sign() -> None:
    checked(-VIRIAL, *[VIRIAL] * 4)
