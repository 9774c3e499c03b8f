"""CP2K's ionic steps: numbers of the output, positions and cells of the files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dpstream.services.labeler.units import BOHR, HARTREE
from tests.support.programs.ionic_steps import EDGE, SHIFTS, check_steps, read


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


def trajectory(
    steps: Sequence[int], first: float = 2.0, unit: float = 1.0, symbol: str = "H"
) -> str:
    """`unit`: that of the lengths, Å."""
    y = 2.5 / unit
    return "".join(
        f"       2\n i = {n:8d}, E = {-(n + 1):20.10f}\n"
        f"  H  {first / unit:.10f} {y:.10f} {y:.10f}\n"
        f"  {symbol}  {(first + 1 + SHIFTS[n]) / unit:.10f} {y:.10f} {y:.10f}\n"
        for n in steps
    )


def cells(steps: Sequence[int]) -> str:
    rows = [f"{n} 0.0 {EDGE + n} 0 0 0 {EDGE} 0 0 0 {EDGE} 130.0" for n in steps]
    return "\n".join(["# Step  Time [fs] Ax", *rows, ""])


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
    (tmp_path / "h2-1.cell").write_text(cells([1, 2]))
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


def test_a_run_of_cp2k_that_ended_before_its_first_step_is_incomplete(tmp_path: Path) -> None:
    (tmp_path / "out").write_text(cp2k().partition(" SCF WAVEFUNCTION")[0])
    taken, count = read(tmp_path / "out")
    assert (taken, count.left_out) == ([], {"end-marker": 1})
    assert count.examples["end-marker"].endswith(": the output is incomplete")


REPLAY = "MD\n MD_PAR| Ensemble type                                REFTRAJ"


def test_a_replayed_trajectory_has_its_own_positions_and_cells(tmp_path: Path) -> None:
    """Those that the output prints are of the input."""
    (tmp_path / "out").write_text(cp2k(run=REPLAY).replace(" 3.000000 ", " 3.300000 "))
    (tmp_path / "h2-pos-1.xyz").write_text(trajectory([0, 1, 2]))
    taken, count = read(tmp_path / "out")
    assert (taken, count.left_out) == ([], {"frame": 3})
    assert "h2-1.cell beside the output has no cell" in count.examples["frame"]
    (tmp_path / "h2-1.cell").write_text(cells([0, 1, 2]))
    taken, count = read(tmp_path / "out")
    check_steps(taken, [0, 1, 2], HARTREE, HARTREE / BOHR)
    assert [each.frame.cell[0, 0] for each in taken] == [5, 6, 7]  # type: ignore[index]


def test_a_written_cell_is_read_whatever_the_run(tmp_path: Path) -> None:
    (tmp_path / "out").write_text(cp2k(run="MD\n MD_PAR| Ensemble type    UNKNOWN"))
    (tmp_path / "h2-pos-1.xyz").write_text(trajectory([0, 1, 2]))
    (tmp_path / "h2-1.cell").write_text(cells([0, 1, 2]))
    taken, _ = read(tmp_path / "out")
    assert [each.frame.cell[0, 0] for each in taken] == [5, 6, 7]  # type: ignore[index]


@pytest.mark.parametrize("run", ["GEO_OPT", REPLAY], ids=["GEO_OPT", "REFTRAJ"])
@pytest.mark.parametrize("steps", [[0, 1, 2], [1, 2]])
def test_a_trajectory_of_cp2k_in_bohr_is_not_read(
    run: str, steps: Sequence[int], tmp_path: Path
) -> None:
    """Also without the first step, which an optimisation does not write."""
    (tmp_path / "out").write_text(cp2k(run=run))
    (tmp_path / "h2-pos-1.xyz").write_text(trajectory(steps, unit=BOHR))
    (tmp_path / "h2-1.cell").write_text(cells([0, 1, 2]))
    taken, count = read(tmp_path / "out")
    check_steps(taken, [] if run == REPLAY else [0], HARTREE, HARTREE / BOHR)
    assert "or is not in Å (MOTION/PRINT/TRAJECTORY/UNIT)" in count.examples["frame"]


def test_a_trajectory_of_another_run_of_cp2k_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "out").write_text(cp2k())
    (tmp_path / "h2-pos-1.xyz").write_text(trajectory([0, 1, 2], first=2.1))
    taken, count = read(tmp_path / "out")
    assert (len(taken), count.left_out) == (1, {"frame": 2})
    assert "it belongs to another run" in count.examples["frame"]
    (tmp_path / "h2-pos-1.xyz").write_text(trajectory([0, 1, 2], symbol="O"))
    taken, count = read(tmp_path / "out")
    assert (len(taken), count.left_out) == (1, {"frame": 2})
    assert "h2-pos-1.xyz beside the output has other atoms" in count.examples["frame"]


def test_blank_and_damaged_lines_of_a_trajectory_lose_no_other_step(tmp_path: Path) -> None:
    (tmp_path / "out").write_text(cp2k())
    one, two = trajectory([1]), trajectory([2])
    (tmp_path / "h2-pos-1.xyz").write_text(f"{one}\n\n{two}")
    check_steps(read(tmp_path / "out")[0], [0, 1, 2], HARTREE, HARTREE / BOHR)
    (tmp_path / "h2-pos-1.xyz").write_text(one.replace("2.0000000000", "************") + two)
    check_steps(read(tmp_path / "out")[0], [0, 2], HARTREE, HARTREE / BOHR)
