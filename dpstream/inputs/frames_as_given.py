"""Unchanged structures: their distribution over trajectories, and the draw of initial frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dpstream.shared.atoms.frames import Batch, Frame
from dpstream.shared.spec import Spec
from dpstream.shared.spec.engines import AsGiven
from dpstream.shared.values import stable_seed


def run_lengths(spec: Spec) -> dict[str, int]:
    """Checks per trajectory, for each system that a stage judges unchanged (engine `frames`)."""
    return {
        name: stage.md.steps // stage.md.every
        for stage in spec.stages
        for name in stage.systems
        if isinstance(stage.engine, AsGiven)
    }


def runs(frames: Sequence[Frame], length: int) -> list[list[Frame]]:
    """Split frames into trajectories: of one composition, at most `length` frames each."""
    return [
        [frames[i] for i in alike[first : first + length]]
        for alike in Batch.grouped(frames)
        for first in range(0, len(alike), length)
    ]


def picked(spec: Spec, systems: Mapping[str, Sequence[Frame]]) -> list[Frame]:
    """Unchanged structures of all systems, drawn at random (`initial.pick`)."""
    frames = [frame for structures in systems.values() for frame in structures]
    rng = np.random.default_rng(stable_seed(spec.seed, "pick"))
    count = min(spec.initial.pick, len(frames))
    return [frames[i] for i in sorted(rng.choice(len(frames), count, replace=False))]
