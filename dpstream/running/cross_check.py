"""Which imported labels a campaign has computed again, and how closely they have to agree."""

from __future__ import annotations

import numpy as np

from dpstream.inputs.gather import Gathered
from dpstream.shared.atoms.frames import Frame, FrameLabel
from dpstream.shared.spec import DATASET, AutoTrust, Spec, expand_material
from dpstream.shared.values import stable_seed
from dpstream.terminal.plan import AUTO_LOW

CHECKED = 5
"""Number of imported labels to compute again."""


def number_of_checks(gathered: Gathered, spec: Spec) -> int:
    """How many single points the cross-check takes; none where a dataset is the recipe."""
    return 0 if spec.labels.code == DATASET else min(CHECKED, len(gathered.labelled))


def labels_to_check(gathered: Gathered, spec: Spec) -> list[tuple[Frame, FrameLabel]]:
    """The imported labels to compute again, which the seed of the spec chooses."""
    count = number_of_checks(gathered, spec)
    rng = np.random.default_rng(stable_seed(spec.seed, "cross-check"))
    return [gathered.labelled[i] for i in rng.choice(len(gathered.labelled), count, False)]


def force_tolerance(gathered: Gathered, spec: Spec) -> float:
    """Half of the smallest force level `low` in use, eV/Å; of automatic levels, half of their
    initial value."""
    spec = expand_material(spec)
    levels = {stage.trust or spec.trust for stage in spec.stages}
    forces = np.concatenate([label.forces.ravel() for _, label in gathered.labelled])
    automatic = AUTO_LOW * float(np.sqrt(np.mean(forces**2)))
    return min(automatic if isinstance(t, AutoTrust) else t.low for t in levels) / 2
