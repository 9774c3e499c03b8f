"""Outputs with several ionic steps: each converged step is a label, with its own atoms."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpstream.services.labeler.units import BOHR
from tests.support.programs.ionic_steps import EDGE, SHIFTS, check_steps, read

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


def test_abacus_that_ended_before_its_first_step_has_no_positions(tmp_path: Path) -> None:
    (tmp_path / "running_relax.log").write_text(ABACUS_HEADER)
    taken, count = read(tmp_path / "running_relax.log")
    assert (taken, count.found) == ([], 1)
    assert count.examples["frame"].endswith(": the log has no positions of atoms")


# ------------------------------------------------------------------------------ SIESTA

SIESTA_HEADER = """Siesta Version : v4.1
initatom: Reading input for the pseudopotentials and atomic orbitals ----------
 Species number:            1  Label: H Atomic number:           1
"""


def siesta(unconverged: int | None = None, moved: bool = True, after: str = "") -> str:
    """`after`: the lines that follow the positions of steps after the first."""
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
{after if n else ""}
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


def test_siesta_s_positions_end_with_the_last_atom(tmp_path: Path) -> None:
    mesh = "k-point displ. along   1 input, could be:     0.00    0.50"
    (tmp_path / "out").write_text(siesta(after=mesh))
    taken, count = read(tmp_path / "out")
    check_steps(taken, [0, 1, 2], 1, 1)
    assert count.left_out == {}


def test_siesta_that_does_not_state_its_convergence_is_not_called_unconverged(
    tmp_path: Path,
) -> None:
    """As those before version 4.0."""
    old = siesta().replace("SCF cycle converged after   12 iterations", "")
    (tmp_path / "out").write_text(old)
    taken, count = read(tmp_path / "out")
    assert (taken, count.left_out) == ([], {"not-converged": 3})
    assert count.examples["not-converged"].endswith("does not state that the iterations converged")


def test_siesta_without_positions_of_its_steps_says_what_prints_them(tmp_path: Path) -> None:
    (tmp_path / "out").write_text(siesta(moved=False))
    taken, count = read(tmp_path / "out")
    assert taken == []
    assert "WriteCoorStep T prints them" in count.examples["frame"]


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
