"""k-point meshes."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from pydantic import Field

from dpstream.shared.atoms.frames import Floats

Divisions = Annotated[int, Field(ge=1)]
Mesh = tuple[Divisions, Divisions, Divisions]
ROUNDING = 1e-6
"""Relative tolerance, so that rounding of the cell does not change the mesh."""


def mesh_of(cell: Floats, spacing: float) -> Mesh:
    """The coarsest mesh with points at most `spacing` Å⁻¹ (2π included) apart along each reciprocal
    vector, as by VASP's KSPACING."""
    lengths = 2 * math.pi * np.linalg.norm(np.linalg.inv(cell), axis=0)
    a, b, c = (max(1, math.ceil(length / spacing * (1 - ROUNDING))) for length in lengths)
    return a, b, c
