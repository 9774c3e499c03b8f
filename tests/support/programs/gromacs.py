"""Inputs of GROMACS for tests: methane and water, with force fields of a few lines."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from ase.build import molecule

from dpstream.shared.atoms.frames import Frame, canonical, from_ase

needs_gromacs = pytest.mark.skipif(shutil.which("gmx") is None, reason="needs GROMACS")

MDP = """
integrator = md
cutoff_scheme = Verlet ; as since GROMACS 2020
nsteps = 7             ; those of the stage are used
rcoulomb = 0.45
rvdw = 0.45
coulombtype = reaction-field
Tcoupl = v-rescale
tc-grps = System
tau-t = 0.1
"""
METHANE = """
[ defaults ]
1 2 yes 0.5 0.5
[ atomtypes ]
; name  at.num  mass  charge  ptype  sigma  epsilon
CT 6 12.011 0.0 A 0.35 0.276
HC 1 1.008 0.0 A 0.25 0.126
[ moleculetype ]
MET 3
[ atoms ]
1 HC 1 MET H1 1 0.06 1.008
2 HC 1 MET H2 1 0.06 1.008
3 CT 1 MET C 1 -0.24 12.011
4 HC 1 MET H3 1 0.06 1.008
5 HC 1 MET H4 1 0.06 1.008
[ bonds ]
3 1 1 0.109 284512
3 2 1 0.109 284512
3 4 1 0.109 284512
3 5 1 0.109 284512
[ angles ]
1 3 2 1 109.5 276
1 3 4 1 109.5 276
1 3 5 1 109.5 276
2 3 4 1 109.5 276
2 3 5 1 109.5 276
4 3 5 1 109.5 276
[ system ]
methane
[ molecules ]
MET 1
"""
"""The carbon is between the hydrogens: another order than that of a canonical frame."""
SPCE = """
[ defaults ]
1 2 yes 0.5 0.5
[ atomtypes ]
OW 8 15.9994 0.0 A 0.316557 0.650194
HW 1 1.008 0.0 A 0.0 0.0
[ moleculetype ]
SOL 2
[ atoms ]
1 OW 1 SOL OW 1 -0.8476 15.9994
2 HW 1 SOL HW1 1 0.4238 1.008
3 HW 1 SOL HW2 1 0.4238 1.008
[ bonds ]
1 2 1 0.1 345000
1 3 1 0.1 345000
[ angles ]
2 1 3 1 109.47 383
[ system ]
water
[ molecules ]
SOL {count}
"""
"""Flexible SPC/E water."""


def water_box(edge: int, seed: int = 2) -> Frame:
    """edge³ water molecules in a cubic box of edge × 3.1 Å, not canonical: O H H O H H …"""
    rng = np.random.default_rng(seed)
    whole = molecule("H2O")[:0]
    for site in np.ndindex(edge, edge, edge):
        one = molecule("H2O")
        one.rotate(float(rng.uniform(0, 360)), rng.normal(size=3))
        one.positions += 3.1 * np.array(site) + rng.normal(0, 0.02, (3, 3))
        whole += one
    whole.set_cell([3.1 * edge] * 3)
    whole.pbc = True
    return from_ase(whole)


def canonical_box(edge: int, seed: int = 2) -> Frame:
    return canonical(water_box(edge, seed)).frame


def gro_of_methane() -> str:
    """Methane in a cell of 20 Å, in the order of `METHANE`."""
    atoms = molecule("CH4")[[1, 2, 0, 3, 4]]
    names, places = ("H1", "H2", "C", "H3", "H4"), atoms.positions / 10
    lines = [
        f"    1MET  {name:>5}{number:5d}{x:8.3f}{y:8.3f}{z:8.3f}"
        for number, (name, (x, y, z)) in enumerate(zip(names, places, strict=True), 1)
    ]
    return "\n".join(["methane", "5", *lines, "   2.0   2.0   2.0", ""])
