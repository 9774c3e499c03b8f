"""What readers find: configurations with the numbers of a label, before any is accepted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from dpstream.services.labeler.acceptance import Outcome
from dpstream.shared.atoms.frames import Floats, Frame

EnergyKind = Literal["free", "internal", ""]
"""E − TS, whose derivative the forces are; E, or E extrapolated to zero smearing; not stated."""
KIND_WORDS: Mapping[str, str] = {
    "free": "free energy",
    "internal": "internal energy",
    "": "energy as given",
}
RULE_WORDS: Mapping[str, str] = {
    "not-converged": "not converged",
    "end-marker": "incomplete",
    "frame": "unreadable",
    "energy": "without an energy",
    "one-energy": "without one valid energy",
    "forces": "without valid forces",
    "virial": "with an invalid virial",
    "positions": "with other positions",
    "cell": "with an invalid cell",
    "weights": "with invalid weights",
}
"""What a frame that is left out is, by the rule that it breaks."""


@dataclass(frozen=True, eq=False)
class FoundFrame:
    """One configuration of a file, in the file's order and orientation, with its results. `frame`
    is None if the file gives no valid one; `problem` then says why."""

    frame: Frame | None
    outcome: Outcome
    weights: Mapping[str, Floats] = field(default_factory=dict)
    energy: EnergyKind = ""
    problem: str = ""


def results(energy: float | None, forces: Floats | None, virial: Floats | None) -> Outcome:
    """The outcome with numbers that a file of data states: eV, eV/Å, −dE/dε in eV."""
    return Outcome(
        energies=() if energy is None else (float(energy),),
        forces=None if forces is None else np.array(forces, dtype=np.float64),
        virial=None if virial is None else np.array(virial, dtype=np.float64),
    )
