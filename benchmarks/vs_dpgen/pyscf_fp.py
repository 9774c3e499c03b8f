"""DP-GEN's label command: one frame of a DeePMD folder `frame`, labelled by PySCF into `label`.

Runs in a task folder and in DP-GEN's environment, one process per label. The settings are those of
dpstream's recipe: PBE/def2-SVP, grid level 3, SCF converged to 1e-9 hartree. A calculation
that does not converge writes no label; DP-GEN counts it as failed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from pyscf import dft, gto

HARTREE = 27.211386245988
"""eV."""
BOHR = 0.529177210903
"""Å."""


def main() -> int:
    """Returns the exit status: 1 if the calculation did not converge."""
    frame, label = Path("frame"), Path("label")
    names = (frame / "type_map.raw").read_text().split()
    types = [int(word) for word in (frame / "type.raw").read_text().split()]
    positions = np.load(frame / "set.000" / "coord.npy").reshape(-1, 3)
    molecule = gto.M(
        atom=[(names[t], (x / BOHR).tolist()) for t, x in zip(types, positions, strict=True)],
        unit="Bohr",
        basis="def2-svp",
        verbose=0,
    )
    field = dft.RKS(molecule, xc="PBE")
    field.grids.level, field.conv_tol, field.max_cycle = 3, 1e-9, 50
    energy = float(field.kernel())
    if not field.converged:
        return 1
    forces = -np.asarray(field.nuc_grad_method().kernel()) * (HARTREE / BOHR)
    _write(label, frame, energy * HARTREE, positions, forces)
    return 0


def _write(label: Path, frame: Path, energy: float, positions: object, forces: object) -> None:
    folder = label / "set.000"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("type.raw", "type_map.raw"):
        (label / name).write_text((frame / name).read_text())
    (label / "nopbc").touch()
    np.save(folder / "energy.npy", np.array([energy]))
    np.save(folder / "coord.npy", np.reshape(np.asarray(positions), (1, -1)))
    np.save(folder / "force.npy", np.reshape(np.asarray(forces), (1, -1)))
    np.save(folder / "box.npy", (np.eye(3) * 100.0).reshape(1, -1))


if __name__ == "__main__":
    sys.exit(main())
