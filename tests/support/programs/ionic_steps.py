"""Outputs with several ionic steps: what is read, and what each step has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dpstream.inputs.reading.sets import SetCount, SetOptions, Taken, read_set

SHIFTS = (0.0, 0.1, 0.2)
"""x of the second atom beyond 1 Å, in Å; step n has the energy −n and the force n along x, in the
program's units."""
EDGE = 5.0


def read(path: Path) -> tuple[list[Taken], SetCount]:
    count = SetCount()
    return list(read_set(path, SetOptions(), count)), count


def check_steps(taken: Sequence[Taken], steps: Sequence[int], energy: float, force: float) -> None:
    """`energy`, `force`: the program's units in eV and eV/Å."""
    assert [t.number for t in taken] == list(steps)
    for each, step in zip(taken, steps, strict=True):
        gap = each.frame.positions[1] - each.frame.positions[0]
        np.testing.assert_allclose(gap, [1 + SHIFTS[step], 0, 0], atol=1e-6)
        assert each.label.energy == pytest.approx(-(step + 1) * energy, rel=1e-6)
        np.testing.assert_allclose(each.label.forces[0], [(step + 1) * force, 0, 0], rtol=1e-4)
