"""Writes the starting structures and the initial labelled data of this example."""

from pathlib import Path

import dpdata
import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.io import write
from tblite.ase import TBLite

HERE = Path(__file__).parent
BOX = 8.0
"""Å"""


def methane(rng: np.random.Generator, displacement: float) -> Atoms:
    """CH₄ in a box, its atoms displaced by so many Å (standard deviation)."""
    atoms = molecule("CH4")
    atoms.set_cell([BOX] * 3)
    atoms.pbc = True
    atoms.center()
    atoms.positions += rng.normal(0, displacement, atoms.positions.shape)
    return atoms


def main() -> None:
    rng = np.random.default_rng(1)
    for number in range(4):
        path = HERE / "CH4" / f"00000{number}" / "POSCAR"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, methane(rng, 0.02), format="vasp", sort=True)
    systems = []
    for _ in range(40):
        atoms = methane(rng, 0.05)
        atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
        atoms.get_potential_energy()
        atoms.get_stress()
        systems.append(dpdata.LabeledSystem(atoms, fmt="ase/structure"))
    whole = systems[0]
    for system in systems[1:]:
        whole.append(system)
    whole.to("deepmd/npy", str(HERE / "init"))


if __name__ == "__main__":
    main()
