"""Which frames of a batch may have atoms that overlap, computed on the device. The neighbour search
of `lammps.sanity` takes longer than a step of the dynamics, and few frames need it."""

from __future__ import annotations

import torch

PAIRS = 4_000_000
"""Pairs of atoms compared at once."""
MARGIN = 1.001
"""Of distances, for rounding."""


def may_overlap(
    coordinates: torch.Tensor, boxes: torch.Tensor, limits: torch.Tensor
) -> torch.Tensor:
    """Whether two atoms of `coordinates` `(n, n_atoms, 3)` in `boxes` `(n, 3, 3)` may be closer
    than `limits` `(n,)`, all in Å: `(n,)`. Also true for positions that are not numbers, and for a
    box so flat that the nearest image is not that of the rounded fractional coordinates."""
    inverse = torch.linalg.inv(boxes)
    heights = 1 / inverse.norm(dim=1)
    flat = 2 * MARGIN * limits >= heights.amin(dim=1)
    fractions = coordinates @ inverse
    size = max(1, PAIRS // coordinates.shape[1] ** 2)
    parts = zip(fractions.split(size), boxes.split(size), strict=True)
    closest = torch.cat([_closest(*part) for part in parts])
    return flat | ~(closest >= MARGIN * limits)


def _closest(fractions: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Shortest distance of two atoms, `(n,)` Å."""
    apart = fractions.unsqueeze(2) - fractions.unsqueeze(1)
    apart -= apart.round()
    squared = (apart @ boxes.unsqueeze(1)).square().sum(dim=-1)
    squared.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    return squared.amin(dim=(1, 2)).sqrt()
