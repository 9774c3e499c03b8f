"""Outputs with several ionic steps: each converged step is a label, with its own atoms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dpstream.inputs.reading.sets import SetCount, SetOptions, Taken, read_set
from dpstream.services.labeler.units import BOHR, HARTREE

SHIFTS = (0.0, 0.1, 0.2)
"""x of the second atom beyond 1 Å, in Å; step n has the energy −n and the force n along x, in the
program's units."""
EDGE = 5.0


def read(path: Path) -> tuple[list[Taken], SetCount]:
    count = SetCount()
    return list(read_set(path, SetOptions(), count)), count


def check_steps(taken: Sequence[Taken], steps: Sequence[int], energy: float, force: float) -> None:
    """`energy`, `force`: the program's units in eV and eV/Å."""
    assert [t.number for t in taken] == list(steps)
    for each, step in zip(taken, steps, strict=True):
        gap = each.frame.positions[1] - each.frame.positions[0]
        np.testing.assert_allclose(gap, [1 + SHIFTS[step], 0, 0], atol=1e-6)
        assert each.label.energy == pytest.approx(-(step + 1) * energy, rel=1e-6)
        np.testing.assert_allclose(each.label.forces[0], [(step + 1) * force, 0, 0], rtol=1e-4)


# ------------------------------------------------------------------------------ CP2K


def cp2k(run: str = "GEO_OPT", unconverged: int | None = None, last: str = "") -> str:
    steps = []
    for n, _ in enumerate(SHIFTS):
        good = "  *** SCF run converged in    10 steps ***"
        bad = " *** WARNING SCF run NOT converged ***"
        steps.append(
            f"""
 SCF WAVEFUNCTION OPTIMIZATION

{bad if n == unconverged else good}

 ENERGY| Total FORCE_EVAL ( QS ) energy [a.u.]:              {-(n + 1):.12f}

 ATOMIC FORCES in [a.u.]

 # Atom   Kind   Element          X              Y              Z
      1      1      H        {n + 1:.8f}     0.00000000     0.00000000
      2      1      H       {-(n + 1):.8f}     0.00000000     0.00000000
 SUM OF ATOMIC FORCES           0.00000000     0.00000000     0.00000000     0.00000000

 STRESS| Analytical stress tensor [GPa]
 STRESS|                        x                   y                   z
 STRESS|      x        {n + 1:.11E}   0.00000000000E+00   0.00000000000E+00
 STRESS|      y        0.00000000000E+00   0.00000000000E+00   0.00000000000E+00
 STRESS|      z        0.00000000000E+00   0.00000000000E+00   0.00000000000E+00

 OPTIMIZATION STEP:      {n + 1}
"""
        )
    return f"""
 CP2K| version string:                                       CP2K version 2023.1
 GLOBAL| Project name                                                         h2
 GLOBAL| Run type                                                        {run}
 CELL| Vector a [angstrom]:       5.000     0.000     0.000   |a| =     5.000000
 CELL| Vector b [angstrom]:       0.000     5.000     0.000   |b| =     5.000000
 CELL| Vector c [angstrom]:       0.000     0.000     5.000   |c| =     5.000000

 MODULE QUICKSTEP: ATOMIC COORDINATES IN ANGSTROM

   Atom Kind Element         X             Y             Z       Z(eff)     Mass
      1    1 H     1      2.000000      2.500000      2.500000   1.0000   1.0079
      2    1 H     1      3.000000      2.500000      2.500000   1.0000   1.0079

 SCF PARAMETERS
{"".join(steps)}{last}
  **** **** ******  **  PROGRAM ENDED AT               2026-11-30 02:00:30.000
"""


def trajectory(steps: Sequence[int], first: float = 2.0) -> str:
    return "".join(
        f"       2\n i = {n:8d}, E = {-(n + 1):20.10f}\n"
        f"  H  {first:.10f} 2.5000000000 2.5000000000\n"
        f"  H  {first + 1 + SHIFTS[n]:.10f} 2.5000000000 2.5000000000\n"
        for n in steps
    )


def test_cp2k_steps_have_the_positions_of_the_trajectory(tmp_path: Path) -> None:
    (tmp_path / "out").write_text(cp2k())
    (tmp_path / "h2-pos-1.xyz").write_text(trajectory([1, 2]))
    taken, count = read(tmp_path / "out")
    check_steps(taken, [0, 1, 2], HARTREE, HARTREE / BOHR)
    assert count.left_out == {}
    virials = [each.label.virial for each in taken]
    ratios = [virial[0, 0] / virials[0][0, 0] for virial in virials]  # type: ignore[index]
    np.testing.assert_allclose(ratios, [1, 2, 3])


def test_an_unconverged_step_of_cp2k_is_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "out").write_text(cp2k(unconverged=1))
    (tmp_path / "h2-pos-1.xyz").write_text(trajectory([0, 1, 2]))
    taken, count = read(tmp_path / "out")
    check_steps(taken, [0, 2], HARTREE, HARTREE / BOHR)
    assert (count.found, count.left_out) == (3, {"not-converged": 1})


def test_cp2k_steps_without_positions_are_left_out_with_the_file_that_lacks(tmp_path: Path) -> None:
    """As those of a line search, and all if the trajectory is missing or ends too early."""
    (tmp_path / "out").write_text(cp2k())
    taken, count = read(tmp_path / "out")
    check_steps(taken, [0], HARTREE, HARTREE / BOHR)
    assert count.left_out == {"frame": 2}
    assert "h2-pos-1.xyz beside the output has no positions" in count.examples["frame"]
    for cut in (2, 30, 75):  # in the last number, in the last line, in the line before
        (tmp_path / "h2-pos-1.xyz").write_text(trajectory([1, 2])[:-cut])
        check_steps(read(tmp_path / "out")[0], [0, 1], HARTREE, HARTREE / BOHR)


def test_a_cell_of_cp2k_that_changes_is_that_of_the_step(tmp_path: Path) -> None:
    (tmp_path / "out").write_text(cp2k(run="CELL_OPT"))
    (tmp_path / "h2-pos-1.xyz").write_text(trajectory([1, 2]))
    taken, count = read(tmp_path / "out")
    assert (len(taken), count.left_out) == (1, {"frame": 2})
    assert "h2-1.cell beside the output has no cell" in count.examples["frame"]
    rows = [f"{n} 0.0 {EDGE + n} 0 0 0 {EDGE} 0 0 0 {EDGE} 130.0" for n in (1, 2)]
    (tmp_path / "h2-1.cell").write_text("\n".join(["# Step  Time [fs] Ax", *rows, ""]))
    taken, _ = read(tmp_path / "out")
    check_steps(taken, [0, 1, 2], HARTREE, HARTREE / BOHR)
    assert [each.frame.cell[0, 0] for each in taken] == [5, 6, 7]  # type: ignore[index]


def test_the_last_step_that_cp2k_computes_again_is_no_step(tmp_path: Path) -> None:
    again = cp2k().split(" SCF WAVEFUNCTION")[-1].partition(" OPTIMIZATION STEP")[0]
    last = f"                    Reevaluating energy at the minimum\n SCF WAVEFUNCTION{again}"
    (tmp_path / "out").write_text(cp2k(last=last))
    (tmp_path / "h2-pos-1.xyz").write_text(trajectory([1, 2]))
    taken, count = read(tmp_path / "out")
    check_steps(taken, [0, 1, 2], HARTREE, HARTREE / BOHR)
    assert count.found == 3


def test_a_run_of_cp2k_that_was_killed_lacks_its_last_step(tmp_path: Path) -> None:
    text = cp2k()
    (tmp_path / "out").write_text(text[: text.rindex(" SUM OF ATOMIC FORCES")])
    (tmp_path / "h2-pos-1.xyz").write_text(trajectory([1, 2]))
    taken, count = read(tmp_path / "out")
    check_steps(taken, [0, 1], HARTREE, HARTREE / BOHR)
    assert count.left_out == {"end-marker": 1}


# ------------------------------------------------------------------------------ ABACUS

ABACUS_HEADER = """
                             WELCOME TO ABACUS v3.2
                  lattice constant (Bohr) = 2
"""


def abacus(unconverged: int | None = None, moved: bool = True) -> str:
    unit = 2 * BOHR
    text = ABACUS_HEADER
    for n, shift in enumerate(SHIFTS):
        good, bad = "charge density convergence is achieved", "convergence has NOT been achieved!"
        if moved or not n:
            text += f"""
 CARTESIAN COORDINATES ( UNIT = 2 Bohr ).
         atom                   x                   y                   z                 mag
      tauc_H1   {2 / unit:.12f} {2.5 / unit:.12f} {2.5 / unit:.12f}   0
      tauc_H2   {(3 + shift) / unit:.12f} {2.5 / unit:.12f} {2.5 / unit:.12f}   0

"""
        if not n:
            text += f"""
 Lattice vectors: (Cartesian coordinate: in unit of a_0)
          {EDGE / unit:+.12f}                  +0                  +0
                   +0          {EDGE / unit:+.12f}                  +0
                   +0                  +0          {EDGE / unit:+.12f}
"""
        text += f"""
 PW ALGORITHM --------------- ION=   {n + 1}  ELEC=   1------------------------------
 {bad if n == unconverged else good}
 final etot is {-(n + 1)} eV

 TOTAL-FORCE (eV/Angstrom)
 ------------------------------------------------------------------
      H1        {n + 1}.0        0.0        0.0
      H2       -{n + 1}.0        0.0        0.0
 ------------------------------------------------------------------

"""
    return text + " Total  Time  : +0 h +0 mins +18 secs \n"


@pytest.mark.parametrize("name", ["running_relax.log", "running_cell-relax.log", "running_md.log"])
def test_abacus(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(abacus(unconverged=1))
    taken, count = read(tmp_path / name)
    check_steps(taken, [0, 2], 1, 1)
    assert count.left_out == {"not-converged": 1}


def test_abacus_with_positions_in_other_files_says_so(tmp_path: Path) -> None:
    (tmp_path / "running_md.log").write_text(abacus(moved=False))
    taken, count = read(tmp_path / "running_md.log")
    assert taken == []
    assert "MD_dump, STRU_ION*_D) that are not read" in count.examples["frame"]


# ------------------------------------------------------------------------------ SIESTA

SIESTA_HEADER = """Siesta Version : v4.1
initatom: Reading input for the pseudopotentials and atomic orbitals ----------
 Species number:            1  Label: H Atomic number:           1
"""


def siesta(unconverged: int | None = None, moved: bool = True) -> str:
    text = SIESTA_HEADER
    for n, shift in enumerate(SHIFTS):
        good, bad = (
            "SCF cycle converged after   12 iterations",
            "SCF_NOT_CONV: SCF did not converge",
        )
        if moved or not n:
            text += f"""
outcoor: Atomic coordinates (Ang):
    2.00000000    2.50000000    2.50000000   1       1  H
    {3 + shift:.8f}    2.50000000    2.50000000   1       2  H

"""
        if not n:
            text += """outcell: Unit cell vectors (Ang):
        5.000000    0.000000    0.000000
        0.000000    5.000000    0.000000
        0.000000    0.000000    5.000000

siesta: Program's energy decomposition (eV):
siesta: FreeEng =      -209.013965
"""
        text += f"""
   scf: iscf   Eharris(eV)      E_KS(eV)   FreeEng(eV)    dDmax  Ef(eV)
   scf:    1     -220.1717     -209.0140     -209.0140  1.98614  0.4290
   scf:    2       -9.0000       -9.0000    {-(n + 1):.6f}  0.00001 -6.7526
{bad if n == unconverged else good}

siesta: E_KS(eV) =              -9.0000

siesta: Atomic forces (eV/Ang):
     1    {n + 1:.6f}    0.000000    0.000000
     2   {-(n + 1):.6f}    0.000000    0.000000
----------------------------------------
"""
    rows = "".join(
        f"siesta:      {i + 1}   {3 * s:.6f}    0.0    0.0\n" for i, s in enumerate((1, -1))
    )
    return f"""{text}
outcoor: Relaxed atomic coordinates (Ang):
    9.00000000    2.50000000    2.50000000   1       1  H

siesta: Program's energy decomposition (eV):
siesta: FreeEng =        -3.000000

siesta: Final energy (eV):
siesta:         Total =      -9.000000

siesta: Atomic forces (eV/Ang):
{rows}
>> End of run:   7-SEP-2019  17:41:42
"""


def test_siesta(tmp_path: Path) -> None:
    (tmp_path / "out").write_text(siesta())
    taken, count = read(tmp_path / "out")
    check_steps(taken, [0, 1, 2], 1, 1)
    assert count.energies == {"free"}
    (tmp_path / "out").write_text(siesta(unconverged=1))
    taken, count = read(tmp_path / "out")
    check_steps(taken, [0, 2], 1, 1)
    assert count.left_out == {"not-converged": 1}


def test_siesta_without_positions_of_its_steps_says_what_prints_them(tmp_path: Path) -> None:
    (tmp_path / "out").write_text(siesta(moved=False))
    taken, count = read(tmp_path / "out")
    assert taken == []
    assert "WriteCoorStep T prints them" in count.examples["frame"]


# ------------------------------------------------------------------------------ Gaussian

RULE = " " + "-" * 69


def gaussian(unconverged: int | None = None, method: str = "", jobs: int = 1) -> str:
    text = " Entering Gaussian System, Link 0=g16\n" + " Initial command:\n" * jobs
    text += " Gaussian 16:  ES64L-G16RevA.03 25-Dec-2016\n"

    def orientation(shift: float) -> str:
        return f"""
                          Input orientation:
{RULE}
 Center     Atomic      Atomic             Coordinates (Angstroms)
 Number     Number       Type             X           Y           Z
{RULE}
      1          1           0        0.000000    0.000000    0.000000
      2          1           0        {1 + shift:.6f}    0.000000    0.000000
{RULE}
"""

    for n, shift in enumerate(SHIFTS):
        broken = " >>>>>>>>>> Convergence criterion not met.\n" if n == unconverged else ""
        text += f"""{orientation(shift)}
{broken} SCF Done:  E(RB3LYP) =  {-(n + 1):.10f}     A.U. after    8 cycles
{method}
 -------------------------------------------------------------------
 Center     Atomic                   Forces (Hartrees/Bohr)
 Number     Number              X              Y              Z
 -------------------------------------------------------------------
      1        1           {n + 1:.9f}    0.000000000    0.000000000
      2        1          {-(n + 1):.9f}    0.000000000    0.000000000
 -------------------------------------------------------------------
"""
    return f"""{text}
 Optimization completed.
{orientation(SHIFTS[-1])}
 Normal termination of Gaussian 16 at Tue Jun 25 00:14:07 2019.
"""


def test_gaussian(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text(gaussian())
    taken, count = read(tmp_path / "x.log")
    check_steps(taken, [0, 1, 2], HARTREE, HARTREE / BOHR)
    assert (count.found, taken[0].frame.cell) == (3, None)
    (tmp_path / "x.log").write_text(gaussian(unconverged=0))
    taken, count = read(tmp_path / "x.log")
    check_steps(taken, [1, 2], HARTREE, HARTREE / BOHR)
    assert count.left_out == {"not-converged": 1}


def test_gaussian_steps_beyond_scf_are_no_labels(tmp_path: Path) -> None:
    method = " E2 =    -0.1354D+00 EUMP2 =    -0.4035D+02"
    (tmp_path / "x.log").write_text(gaussian(method=method))
    taken, count = read(tmp_path / "x.log")
    assert (taken, count.left_out) == ([], {"frame": 3})
    assert "post-SCF" in count.examples["frame"]


def test_several_jobs_of_gaussian_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text(gaussian(jobs=2))
    taken, count = read(tmp_path / "x.log")
    assert (taken, count.left_out) == ([], {"one-energy": 1})


# ------------------------------------------------------------------------------ PWmat


def pwmat() -> str:
    text = ""
    for n, shift in enumerate(SHIFTS):
        energies = f"-9.0E+01  {-(n + 1):.10E}   0.0E+00"
        text += f"""   2 atoms,Iteration (fs) =  {n:.4E}, Etot,Ep,Ek (eV) =   {energies}, SCF = 25
 Lattice vector (Angstrom)
   5.0000000000E+00    0.0000000000E+00    0.0000000000E+00
   0.0000000000E+00    5.0000000000E+00    0.0000000000E+00
   0.0000000000E+00    0.0000000000E+00    5.0000000000E+00
 Position (normalized), move_x, move_y, move_z
   1     0.400000000000000     0.500000000000000     0.500000000000000     1  1  1
   1     {(3 + shift) / EDGE:.15f}     0.500000000000000     0.500000000000000     1  1  1
 Force (-force, eV/Angstrom)
   1        {-(n + 1):.15f}         0.000000000000000         0.000000000000000
   1         {n + 1:.15f}         0.000000000000000         0.000000000000000
 -------------------------------------------------
"""
    return text


def test_pwmat(tmp_path: Path) -> None:
    (tmp_path / "MOVEMENT").write_text(pwmat())
    reasons = [f" ending_scf_reason = {reason}\n" for reason in ("tol", "iter", "tol")]
    (tmp_path / "REPORT").write_text("".join(reasons))
    taken, count = read(tmp_path / "MOVEMENT")
    check_steps(taken, [0, 2], 1, 1)
    assert count.left_out == {"not-converged": 1}


def test_pwmat_steps_of_unknown_convergence_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "MOVEMENT").write_text(pwmat())
    (tmp_path / "REPORT").write_text(" ending_scf_reason = tol\n")
    taken, count = read(tmp_path / "MOVEMENT")
    assert (taken, count.left_out) == ([], {"frame": 3})
    assert "tells how 1 of 3 steps ended" in count.examples["frame"]
