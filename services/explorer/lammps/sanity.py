"""Where dynamics has left what any model was made for."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from dpstream.shared.atoms.frames import Floats


def astray(positions: Floats, cell: Floats, overlap: float, reach: float | None) -> str | None:
    """Why atoms at `positions` `(n_atoms, 3)` Å in `cell` `(3, 3)` Å are no configuration to look
    at, or None. `overlap`: Å; `reach`: None where the cell is periodic, else the models' cutoff."""
    if not np.isfinite(positions).all():
        return "positions are not numbers"
    from ase.neighborlist import neighbor_list  # deferred: slow to import

    atoms = Atoms(numbers=np.ones(len(positions)), positions=positions, cell=cell)
    atoms.pbc = reach is None
    distances = neighbor_list("d", atoms, overlap)
    if len(distances):
        return f"atoms {distances.min():.3f} Å apart"
    if reach is not None and not _in_one_piece(positions, reach):
        return "fragments out of the models' sight of one another"
    return None


def _in_one_piece(positions: Floats, reach: float) -> bool:
    """Whether steps of at most `reach` Å connect all atoms. Beyond the cutoff every model sees
    isolated fragments: they agree perfectly, on nothing anybody asked for."""
    apart = np.linalg.norm(positions[:, None] - positions[None, :], axis=-1)
    near = apart <= reach
    reached = near[0]
    while True:
        wider = near[reached].any(axis=0)
        if (wider == reached).all():
            return bool(reached.all())
        reached = wider
