"""The labeling program of this example: GFN2-xTB by tblite, from POSCAR to label/ (deepmd/npy).

DP-GEN's `fp_style: custom` and dpstream start it in the folder of one calculation.
"""

import dpdata
from ase.io import read
from tblite.ase import TBLite

atoms = read("POSCAR")
atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
atoms.get_potential_energy()
atoms.get_stress()
dpdata.LabeledSystem(atoms, fmt="ase/structure").to("deepmd/npy", "label")
