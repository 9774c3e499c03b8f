"""Builds the dimers of a spec: isolated pairs of atoms, closer than exploration allows.

The frames follow from the spec alone, so labelers and trainers recognise them by their keys.
"""

from __future__ import annotations

import functools
from itertools import combinations_with_replacement

import numpy as np

from dpstream.shared.atoms.frames import Frame, canonical, frame_key
from dpstream.shared.spec.campaign import Spec
from dpstream.shared.spec.systems import Dimers


def dimer_frames(dimers: Dimers, type_map: tuple[str, ...]) -> dict[str, list[Frame]]:
    """Canonical frames by pair, e.g. `C-H`; by default all pairs of `type_map`."""
    named = [tuple(pair.split("-")) for pair in dimers.pairs]
    pairs = named or list(combinations_with_replacement(type_map, 2))
    return {
        "-".join(pair): [_dimer(pair, d, dimers.box) for d in dimers.distances] for pair in pairs
    }


def _dimer(pair: tuple[str, ...], distance: float, box: float | None) -> Frame:
    cell = None if box is None else np.eye(3) * box
    positions = np.array([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])
    return canonical(Frame(pair, positions, cell)).frame


@functools.lru_cache(maxsize=8)
def _keys(dimers: Dimers, type_map: tuple[str, ...]) -> frozenset[str]:
    frames = dimer_frames(dimers, type_map).values()
    return frozenset(frame_key(frame) for group in frames for frame in group)


def dimer_keys(spec: Spec) -> frozenset[str]:
    """Frame keys of the campaign's dimers, empty if it has none."""
    return frozenset() if spec.initial.dimers is None else _keys(spec.initial.dimers, spec.type_map)
