"""The cross-check: a few imported labels, compared with those of the recipe for the same frames.

Labels from another method would make the training set inconsistent without any visible error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import Field

from dpstream.shared.values import FrameRef, Ref, Value

ENERGY_OFFSET = 0.05
"""eV per atom; other settings of the same method differ by less, another energy zero by more."""
REMEDY = "set labels to the settings that computed this data"


class ImportedLabel(Value):
    """An imported label that is computed again; `label`: an object of one labelled frame."""

    frame: FrameRef
    label: Ref
    formula: str


class CrossCheck(Value):
    """Imported labels that a campaign has computed again before anything else."""

    labels: tuple[ImportedLabel, ...]
    forces: float = Field(description="largest difference of the forces on an atom, eV/Å")


@dataclass(frozen=True)
class ComparedLabel:
    """An imported label beside a new one: largest difference of the forces on an atom (norm, eV/Å),
    difference of the energies (eV/atom), and whether the virials have opposite signs (None: one of
    the labels has none). `rejected`: why there is no new one."""

    forces: float = 0.0
    energy: float = 0.0
    opposed: bool | None = None
    rejected: str = ""


def disagreement(compared: Sequence[ComparedLabel], tolerance: float) -> str | None:
    """How imported labels disagree with the recipe, and what to do; None: they agree.
    `tolerance`: of the forces, eV/Å."""
    rejected = next((each.rejected for each in compared if each.rejected), "")
    if rejected:
        return (
            f"initial.data: no label for an imported frame with the recipe in `labels`: {rejected}"
        )
    count, forces, energies = len(compared), *largest(compared)
    if forces > tolerance:
        return (
            f"initial.data: forces of {count} recomputed frames differ from the recipe in "
            f"labels by up to {forces:.3g} eV/Å; allowed: {tolerance:.3g} (half of "
            f"trust.low); {REMEDY}"
        )
    if energies > ENERGY_OFFSET:
        return (
            f"initial.data: energies of {count} recomputed frames differ from the recipe in "
            f"labels by up to {energies:.3g} eV per atom (forces agree within "
            f"{forces:.3g} eV/Å); allowed: {ENERGY_OFFSET:g}; {REMEDY}"
        )
    signs = [each.opposed for each in compared if each.opposed is not None]
    if signs and all(signs):
        return (
            f"initial.data: virials of {len(signs)} recomputed frames have the opposite sign "
            "(forces and energies agree); a virial is −dE/dε = −stress · V, positive in a "
            "compressed cell; correct the file, or give {file: …, stress: NAME}"
        )
    return None


def largest(compared: Sequence[ComparedLabel]) -> tuple[float, float]:
    """The largest differences of forces (eV/Å) and of energies (eV/atom); infinite if one is not a
    number."""
    return _largest(each.forces for each in compared), _largest(each.energy for each in compared)


def _largest(values: Iterable[float]) -> float:
    return max((math.inf if math.isnan(value) else value for value in values), default=0.0)
