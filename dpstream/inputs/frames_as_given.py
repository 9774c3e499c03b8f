"""Structures that a stage looks at as they are: dealt to trajectories, drawn for first labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dpstream.shared.atoms.frames import Batch, Frame
from dpstream.shared.spec import Spec
from dpstream.shared.spec.engines import AsGiven
from dpstream.shared.values import stable_seed


def run_lengths(spec: Spec) -> dict[str, int]:
    """Checks of a trajectory, by system whose structures are looked at as they are."""
    return {
        name: stage.md.steps // stage.md.every
        for stage in spec.stages
        for name in stage.systems
        if isinstance(stage.engine, AsGiven)
    }


def runs(frames: Sequence[Frame], length: int) -> list[list[Frame]]:
    """Frames that one trajectory looks at: of one kind, at most `length`."""
    return [
        [frames[i] for i in alike[first : first + length]]
        for alike in Batch.grouped(frames)
        for first in range(0, len(alike), length)
    ]


def picked(spec: Spec, systems: Mapping[str, Sequence[Frame]]) -> list[Frame]:
    """Structures of all systems as they are, drawn at random for the first labels."""
    frames = [frame for structures in systems.values() for frame in structures]
    rng = np.random.default_rng(stable_seed(spec.seed, "pick"))
    count = min(spec.initial.pick, len(frames))
    return [frames[i] for i in sorted(rng.choice(len(frames), count, replace=False))]
