"""Creates offspring of two structures with the operators of ase-ga.

The operator is cut and splice (D. M. Deaven and K. M. Ho, Phys. Rev. Lett. 75, 288, 1995); if the
parents do not fit together, one parent is strained instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpstream.services.explorer.selection.geometry import GeometryLimits
from dpstream.shared.atoms.frames import Frame, canonical, from_ase, to_ase


def check_installed() -> None:
    """Raises ValueError if ase-ga is not installed."""
    try:
        import ase_ga  # noqa: F401  deferred: only breeding needs it
    except ImportError as error:
        raise ValueError("offspring: needs ase-ga on this worker; pip install ase-ga") from error


def offspring(parents: Sequence[Frame], limits: GeometryLimits, seed: int) -> Frame | None:
    """A canonical child of two frames of one composition, or None if none satisfies `limits`."""
    from ase import Atoms  # deferred, as above
    from ase_ga.cutandsplicepairing import CutAndSplicePairing
    from ase_ga.standardmutations import StrainMutation

    mother, father = (_individual(frame, number) for number, frame in enumerate(parents))
    closest = _closest(limits)
    common = {"number_of_variable_cell_vectors": 3, "rng": np.random.RandomState(seed)}
    pairing = CutAndSplicePairing(
        Atoms(pbc=True), len(mother), closest, p1=1.0, p2=0.0, minfrac=0.15, **common
    )
    child, _ = pairing.get_new_individual([mother, father])
    if child is None:
        child, _ = StrainMutation(closest, stddev=0.3, **common).get_new_individual([mother])
    try:
        return None if child is None else canonical(from_ase(child)).frame
    except ValueError:  # a left-handed cell
        return None


def _individual(frame: Frame, number: int) -> Any:
    atoms = to_ase(frame)
    atoms.info.update(confid=number, key_value_pairs={}, data={})
    return atoms


def _closest(limits: GeometryLimits) -> dict[tuple[int, int], float]:
    """Minimum distances by pair of atomic numbers, in both orders."""
    from ase.data import atomic_numbers

    pairs = limits.pairs.items()
    numbers = {(atomic_numbers[a], atomic_numbers[b]): limit for (a, b), limit in pairs}
    return numbers | {(b, a): limit for (a, b), limit in numbers.items()}
