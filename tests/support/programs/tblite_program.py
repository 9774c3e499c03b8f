"""A labeling program as users have them: `tblite_program.py CHARGE MULTIPLICITY` reads
`in/frame.xyz`, computes GFN2-xTB and leaves `label.xyz` and the DeePMD system `label`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from tblite.ase import TBLite


def main() -> None:
    atoms = ase.io.read("in/frame.xyz")
    options = Path("options.json")
    more = json.loads(options.read_text()) if options.exists() else {}
    charge, multiplicity = map(int, sys.argv[1:])
    atoms.calc = TBLite(
        method="GFN2-xTB",
        accuracy=0.1,
        charge=charge,
        multiplicity=multiplicity,
        verbosity=0,
        **more,
    )
    try:
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    except Exception as error:
        print(f"SCF not converged: {error}\ndone")
        return
    stress = {"stress": atoms.get_stress()} if atoms.pbc.all() else {}
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, **stress)
    ase.io.write("label.xyz", atoms, format="extxyz")
    leave_system(atoms, energy, forces)
    print("converged\ndone")


def leave_system(atoms: ase.Atoms, energy: float, forces: np.ndarray) -> None:
    symbols = sorted(set(atoms.get_chemical_symbols()))
    folder = Path("label/set.000")
    folder.mkdir(parents=True)
    np.save(folder / "coord.npy", atoms.positions.reshape(1, -1))
    np.save(folder / "box.npy", (atoms.cell[:] if atoms.pbc.all() else np.eye(3)).reshape(1, 9))
    np.save(folder / "energy.npy", np.array([energy]))
    np.save(folder / "force.npy", forces.reshape(1, -1))
    kinds = [symbols.index(symbol) for symbol in atoms.get_chemical_symbols()]
    Path("label/type.raw").write_text("\n".join(map(str, kinds)))
    Path("label/type_map.raw").write_text("\n".join(symbols))
    if not atoms.pbc.all():
        Path("label/nopbc").touch()


if __name__ == "__main__":
    main()
