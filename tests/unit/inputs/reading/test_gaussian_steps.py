"""Gaussian's ionic steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpstream.services.labeler.units import BOHR, HARTREE
from tests.support.programs.ionic_steps import SHIFTS, check_steps, read

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


@pytest.mark.parametrize(
    "method",
    [
        " E2 =    -0.1354D+00 EUMP2 =    -0.4035D+02",
        " E2(B2PLYPD3) =    -0.6465D-01 E(B2PLYPD3) =    -0.7635D+02",
        " E2(DSDPBEP86) =    -0.6465D-01 E(DSDPBEP86) =    -0.7635D+02",
        " DE(Corr)= -0.21314     E(CORR)=     -76.2267    ",
        " Total Energy, E(CIS) =  -76.1",
        " Total Energy, E(CIS/TDA) =  -76.1",
        " Total Energy, E(TD-HF/TD-DFT) =  -76.1",
    ],
)
def test_gaussian_steps_beyond_scf_are_no_labels(method: str, tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text(gaussian(method=method))
    taken, count = read(tmp_path / "x.log")
    assert (taken, count.left_out) == ([], {"energy": 3})
    assert "post-SCF" in count.examples["energy"]


def test_several_inputs_of_gaussian_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text(gaussian(jobs=2))
    taken, count = read(tmp_path / "x.log")
    assert (taken, count.left_out) == ([], {"one-energy": 1})


def test_of_the_jobs_of_one_input_gaussian_s_first_is_read(tmp_path: Path) -> None:
    """The frequencies that follow an optimisation are those of its last geometry."""
    text = gaussian()
    again = text[text.rindex("Input orientation:", 0, text.rindex(" SCF Done:")) :]
    link = " Link1:  Proceeding to internal job step number  2.\n"
    (tmp_path / "x.log").write_text(f"{text}{link}{again}")
    taken, count = read(tmp_path / "x.log")
    check_steps(taken, [0, 1, 2], HARTREE, HARTREE / BOHR)
    assert count.left_out == {"frame": 1}
    assert "a further job of the same input" in count.examples["frame"]


def test_steps_of_gaussian_without_input_orientation_say_what_prints_it(tmp_path: Path) -> None:
    """As of all with symmetry, and of the first point of dynamics."""
    none = gaussian().replace("Input orientation:", "Standard orientation:")
    first = gaussian().replace("Input orientation:", "Z-Matrix orientation:", 1)
    for text, steps in ((none, []), (first, [1, 2])):
        (tmp_path / "x.log").write_text(text)
        taken, count = read(tmp_path / "x.log")
        gaps = [t.frame.positions[1, 0] - t.frame.positions[0, 0] for t in taken]
        assert gaps == pytest.approx([1 + SHIFTS[step] for step in steps])
        assert (count.found, count.left_out) == (3, {"frame": 3 - len(steps)})
        assert "Geom=PrintInputOrient prints them" in count.examples["frame"]


def test_cell_vectors_of_gaussian_are_not_taken_for_atoms(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text(
        gaussian().replace("2          1           0", "2         -2           0")
    )
    taken, count = read(tmp_path / "x.log")
    assert (taken, count.left_out) == ([], {"frame": 3})
    assert "cell vectors" in count.examples["frame"]
