"""Detects configurations outside the range of any model, at which a trajectory is stopped."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from dpstream.shared.atoms.frames import Floats


def unphysical(positions: Floats, cell: Floats, overlap: float, reach: float | None) -> str | None:
    """Reason why `positions` `(n_atoms, 3)` Å in `cell` `(3, 3)` Å are not a valid configuration,
    or None. `overlap`: minimum distance in Å; `reach`: the models' cutoff in Å for a molecule in
    vacuum, None for a periodic cell."""
    if not np.isfinite(positions).all():
        return "positions are not finite"
    from ase.neighborlist import neighbor_list  # deferred: slow to import

    atoms = Atoms(numbers=np.ones(len(positions)), positions=positions, cell=cell)
    atoms.pbc = reach is None
    distances = neighbor_list("d", atoms, overlap)
    if len(distances):
        return f"atoms {distances.min():.3f} Å apart"
    if reach is not None and not _in_one_piece(positions, reach):
        return "fragments further apart than the models' cutoff"
    return None


def _in_one_piece(positions: Floats, reach: float) -> bool:
    """Whether steps of at most `reach` Å connect all atoms. Models agree on fragments beyond the
    cutoff, because these do not interact, so the deviation would not detect them."""
    apart = np.linalg.norm(positions[:, None] - positions[None, :], axis=-1)
    near = apart <= reach
    reached = near[0]
    while True:
        wider = near[reached].any(axis=0)
        if (wider == reached).all():
            return bool(reached.all())
        reached = wider
