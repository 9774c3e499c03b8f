"""Imported labels pass the tests of computed ones; what is left out is counted and told."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from dpstream.inputs.gather import repeated
from dpstream.inputs.read_labelled import Imported, SourceReport, read_here, read_labelled
from dpstream.inputs.reading.outputs import OUTCAR_FACTS
from dpstream.inputs.reading.sets import SetOptions, check_one_energy
from dpstream.shared.atoms.frames import FrameLabel, canonical, from_ase, to_ase
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import LabelledSet
from tests.support.programs.vasprun import EDGE, vasprun

pytestmark = pytest.mark.usefixtures("one_parser")

DATA = os.environ.get("DPSTREAM_TEST_DATA")
recorded = pytest.mark.skipif(DATA is None, reason="DPSTREAM_TEST_DATA names no recorded outputs")
OUTPUTS = Path(DATA or "") / "outputs"
ELEMENTS = ("H", "C", "O", "Ge", "Al")
FALLING = (5.0, 1.0, -3.0, -5.0)
"""Energies of an electronic loop that is far from converged."""
SETTLED = (5.0, -7.0, -7.5, -7.50000001)


def read(
    *paths: Path, columns: dict[str, str] | None = None, names: tuple[str, ...] = ELEMENTS
) -> tuple[SourceReport, list[Imported]]:
    options = SetOptions(columns=columns or {}, names=names)
    return read_here({path.name: path for path in paths}, options, "initial.data", "source")


def refusal(*paths: Path, **options: Any) -> str:
    with pytest.raises(SpecError) as refused:
        read(*paths, **options)
    text = str(refused.value)
    assert "\n" not in text
    assert text.startswith("initial.data: ")
    return text


def water(energy: float = -1.0, shift: float = 0.0) -> Atoms:
    positions = [[0.8, 0.6, 0], [-0.8, 0.6 + shift, 0], [0, 0, 0]]
    atoms = Atoms("HHO", positions, cell=np.eye(3) * 6, pbc=True)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.eye(3) * 0.1)
    return atoms


# ------------------------------------------------------------------------------ convergence


def test_steps_that_reached_nelm_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "vasprun.xml"
    path.write_text(vasprun(SETTLED, FALLING, SETTLED[:-1], nelm=4))
    report, items = read(path)
    assert [item.label.energy for item in items] == [-7.50000001, -7.5]
    assert (report.found, report.taken) == (3, 2)
    assert report.left_out == {"not-converged": 1}
    assert str(report).startswith(
        "source: 3 frames found (VASP vasprun.xml), 2 taken; 1 left out: 1 not converged "
        "(vasprun.xml: frame 1: the electronic iterations did not converge); free energy"
    )


def test_a_vasprun_without_a_converged_step_is_no_labelled_set(tmp_path: Path) -> None:
    path = tmp_path / "vasprun.xml"
    path.write_text(vasprun(FALLING, nelm=4))
    text = refusal(path)
    assert "contains no converged frame with energy and forces: 1 left out" in text
    assert "frame 0: the electronic iterations did not converge" in text


def test_a_file_without_a_valid_label_among_others_is_left_out(tmp_path: Path) -> None:
    for name, loop in (("a.xml", SETTLED), ("b.xml", FALLING)):
        (tmp_path / name).write_text(vasprun(loop, nelm=4))
    (tmp_path / "empty").mkdir()
    report, items = read(tmp_path / "a.xml", tmp_path / "b.xml", tmp_path / "empty")
    assert len(items) == 1
    assert (report.found, report.left_out) == (2, {"not-converged": 1})
    assert report.examples["not-converged"].startswith("b.xml: frame 0: ")
    assert "empty holds no labelled frame" in str(report)


def test_many_files_without_a_frame_are_one_remark(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(vasprun(SETTLED))
    empty = [tmp_path / f"empty{number}" for number in range(20)]
    for path in empty:
        path.mkdir()
    report, _ = read(tmp_path / "a.xml", *empty)
    assert list(report.told.values()) == [20]
    assert "empty0 holds no labelled frame" in str(report)
    assert str(report).endswith(" (20 times)")


@pytest.mark.parametrize(
    "start",
    [
        " vasp.6.3.2\n running on 4 total cores\n",
        '<?xml version="1.0"?>\n<modeling>\n <generator>',
        '<?xml version="1.0"?>\n<qes:espresso>\n <output>',
        "\n     Program PWSCF v.6.7 starts on\n",
        " Entering Gaussian System, Link 0=g16\n",
        "Siesta Version  : v4.0.2\n",
        " DBCSR| Multiplication driver\n CP2K| version\n",
        "   5 atoms,Iteration (fs) =   -0.1E+01, Etot,Ep,Ek (eV) =\n",
        "  Invoking FHI-aims ...\n",
        "\n.Version 9.6.2 of ABINIT\n",
    ],
)
def test_a_run_that_was_killed_at_once_is_left_out(start: str, tmp_path: Path) -> None:
    (tmp_path / "good.xml").write_text(vasprun(SETTLED))
    (tmp_path / "killed").write_text(start)
    report, items = read(tmp_path / "good.xml", tmp_path / "killed")
    assert len(items) == 1
    assert "killed" in str(report)


def test_a_folder_of_outputs_is_told_how_to_name_them(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "vasprun.xml").write_text(vasprun(SETTLED))
    assert "runs holds no labelled frame; name other files" in refusal(tmp_path / "runs")


@recorded
def test_an_abacus_log_is_read_with_its_inputs_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DPSTREAM_CONFINE_READ", raising=False)
    run = tmp_path / "run"
    shutil.copytree(OUTPUTS / "abacus" / "OUT.ch4", run / "OUT.ch4")
    shutil.copy(OUTPUTS / "abacus" / "INPUT.ok", run / "INPUT")
    shutil.copy(OUTPUTS / "abacus" / "STRU.ch4", run)
    (tmp_path / "spec").mkdir()
    name = str(run / "OUT.ch4" / "running_scf.log")
    (item,) = read_labelled([name], tmp_path / "spec", ["C", "H"], "initial.data").items
    assert item.label.energy == pytest.approx(-219.64991404)


def test_one_iteration_of_one_is_not_converged(tmp_path: Path) -> None:
    path = tmp_path / "vasprun.xml"
    path.write_text(vasprun((-7.5,), nelm=1))
    assert "did not converge" in refusal(path)


def test_a_vasprun_that_is_cut_off_gives_its_whole_steps(tmp_path: Path) -> None:
    text = vasprun(SETTLED, SETTLED, SETTLED)
    path = tmp_path / "vasprun.xml"
    path.write_text(text[: text.rindex('<varray name="forces">')])
    assert len(read(path)[1]) == 2


def test_energy_and_virial_are_those_of_the_forces(tmp_path: Path) -> None:
    path = tmp_path / "vasprun.xml"
    path.write_text(vasprun(SETTLED))
    report, (item,) = read(path)
    assert item.label.energy == -7.50000001  # not that of zero smearing
    assert report.energies == {"free": "vasprun.xml"}
    assert item.label.virial is not None
    kbar = 1 / 1602.176634
    np.testing.assert_allclose(
        np.diag(item.label.virial), np.array([5, 6, 7]) * kbar * EDGE**3, rtol=1e-6
    )


@pytest.mark.parametrize(("isif", "has_virial"), [(0, False), (1, False), (2, True), (3, True)])
def test_a_vasprun_has_a_virial_if_isif_asks_for_the_whole_stress(
    isif: int, has_virial: bool, tmp_path: Path
) -> None:
    path = tmp_path / "vasprun.xml"
    path.write_text(vasprun(SETTLED, isif=isif))
    (item,) = read(path)[1]
    assert (item.label.virial is not None) == has_virial


QE_HEADER = """
     Program PWSCF v.6.7MaX starts on 29Nov2026 at 23: 0:10
     scf convergence threshold =      1.0E-06
     Boundary Conditions: {boundary}
     lattice parameter (alat)  =       7.5589  a.u.
     number of atoms/cell      =            1
     number of atomic types    =            1
     celldm(1)=   7.558904  celldm(2)=   0.000000  celldm(3)=   0.000000
     celldm(4)=   0.000000  celldm(5)=   0.000000  celldm(6)=   0.000000
     crystal axes: (cart. coord. in units of alat)
               a(1) = (   1.000000   0.000000   0.000000 )
               a(2) = (   0.000000   1.000000   0.000000 )
               a(3) = (   0.000000   0.000000   1.000000 )

     site n.     atom                  positions (alat units)
         1           H   tau(   1) = (   0.0000000   0.0000000   0.0000000  )

     number of k points=     1
                       cart. coord. in units 2pi/alat
        k(    1) = (   0.0000000   0.0000000   0.0000000), wk =   2.0000000

"""
QE_LOOP = """
     iteration #  1     ecut=    12.00 Ry     beta= 0.70
     estimated scf accuracy    <          4.2E-11 Ry
     End of self-consistent calculation

          k = 0.0000 0.0000 0.0000 (   920 PWs)   bands (ev):

   -10.7563

     highest occupied level (ev):   -10.7563

!    total energy              =      -2.18617926 Ry
     estimated scf accuracy    <          4.2E-11 Ry

     convergence has been achieved in   9 iterations

     Forces acting on atoms (cartesian axes, Ry/au):

     atom    1 type  1   force =     0.00100000    0.00000000    0.00000000

     Total force =     0.001000     Total SCF correction =     0.000001

     total   stress  (Ry/bohr**3)                   (kbar)     P=       -1.00
  -0.00000100   0.00000000   0.00000000           -0.15        0.00        0.00
   0.00000000  -0.00000100   0.00000000            0.00       -0.15        0.00
   0.00000000   0.00000000   0.00000000            0.00        0.00        0.00

"""
QE_STEPS = (
    QE_HEADER
    + QE_LOOP
    + """
ATOMIC_POSITIONS (angstrom)
H  0.1 0.0 0.0

"""
    + QE_LOOP
    + """
     JOB DONE.
"""
)


@pytest.mark.parametrize(
    ("boundary", "has_virial"), [("Ordinary", True), ("Vacuum-Slab-Vacuum", False)]
)
def test_no_step_of_a_screened_slab_has_a_virial(
    boundary: str, has_virial: bool, tmp_path: Path
) -> None:
    path = tmp_path / "pw.out"
    path.write_text(QE_STEPS.format(boundary=boundary))
    items = read(path)[1]
    assert [item.label.virial is not None for item in items] == [has_virial] * 2


QE_XML = """<?xml version="1.0"?>
<qes:espresso xmlns:qes="http://www.quantum-espresso.org/ns/qes/qes-1.0">
<input>
 <electron_control><conv_thr>1e-6</conv_thr></electron_control>
 <boundary_conditions><assume_isolated>{isolated}</assume_isolated><esm><bc>{bc}</bc></esm>
 </boundary_conditions>
</input>
<output>
 <convergence_info><scf_conv><convergence_achieved>true</convergence_achieved>
  <scf_error>1e-9</scf_error></scf_conv></convergence_info>
 <atomic_structure nat="1"><atomic_positions><atom name="H">0 0 0</atom></atomic_positions>
  <cell><a1>9 0 0</a1><a2>0 9 0</a2><a3>0 0 9</a3></cell></atomic_structure>
 <total_energy><etot>-1.0</etot></total_energy>
 <forces rank="2" dims="3 1">0.1 0 0</forces>
 <stress rank="2" dims="3 3">-1e-4 0 0 0 -1e-4 0 0 0 0</stress>
</output>
</qes:espresso>
"""


@pytest.mark.parametrize(
    ("isolated", "bc", "has_virial"),
    [("none", "bc1", True), ("esm", "pbc", True), ("esm", "bc1", False), ("esm", "bc3", False)],
)
def test_the_xml_of_a_screened_slab_has_no_virial(
    isolated: str, bc: str, has_virial: bool, tmp_path: Path
) -> None:
    path = tmp_path / "pw.xml"
    path.write_text(QE_XML.format(isolated=isolated, bc=bc))
    (item,) = read(path)[1]
    assert (item.label.virial is not None) == has_virial


OUTCAR = """ vasp.5.4.4 of a run
   VRHFIN =H: ultrasoft test
   TITEL  = PAW_PBE H 15Jun2001
   ions per type =               1
   NELM   =     60;   NELMIN=  2; NELMDL= -5     # of ELM steps
   EDIFF  = 0.1E-03   stopping-criterion for ELM
   ISIF   = {isif:>6}    stress and relaxation
"""


def test_the_step_of_an_outcar_knows_isif() -> None:
    header = OUTCAR.format(isif=1)
    assert "ISIF   =      1" in "\n".join(OUTCAR_FACTS.findall(header))


@recorded
def test_an_outcar_with_isif_1_has_no_virial(tmp_path: Path) -> None:
    text = (OUTPUTS / "vasp/OUTCAR.h2o.md").read_text()
    path = tmp_path / "OUTCAR"
    for isif, has_virial in (("1", False), ("2", True)):
        path.write_text(re.sub(r"(ISIF +=\s*)\d", rf"\g<1>{isif}", text))
        items = read(path)[1]
        assert {item.label.virial is not None for item in items} == {has_virial}


@recorded
@pytest.mark.parametrize(
    ("name", "energies", "left_out"),
    [
        ("vasp/OUTCAR.ch4.unconverged", [-23.98587286, -23.94711384], 1),
        ("vasp/OUTCAR.h2o.md", [-28.38622624, -28.43874406, -28.46657862], 0),
        ("vasp/vasprun.h2o.md.xml", [-28.38622624, -28.43874406, -28.46657862], 0),
        ("vasp/OUTCAR.Ge.vdw", [-33.36815582], 0),
        ("qe/Al.out", [-296.0835], 0),
        ("gaussian/methane.gaussianlog", [-1102.7146], 0),
        ("siesta/scf/siesta_output", [-219.164027], 0),
        ("cp2k/cp2k_normal_output/cp2k_output", [-48061.4485], 0),
    ],
)
def test_outputs_of_programs_are_read_by_content(
    name: str, energies: list[float], left_out: int, tmp_path: Path
) -> None:
    path = tmp_path / "some.thing"
    shutil.copy(OUTPUTS / name, path)
    report, items = read(path)
    assert [item.label.energy for item in items] == pytest.approx(energies, abs=5e-4)
    assert report.found - report.taken == left_out
    assert list(report.energies) == ["free"]


@recorded
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vasp/OUTCAR.ch4.1step", "does not state that the iterations converged"),
        ("gaussian/noncoveraged.gaussianlog", "the electronic iterations did not converge"),
        ("gaussian/largeforce.gaussianlog", "the electronic iterations did not converge"),
        ("cp2k/cp2k_nocon_output", "the electronic iterations did not converge"),
    ],
)
def test_unconverged_outputs_are_no_labels(name: str, reason: str) -> None:
    assert reason in refusal(OUTPUTS / name)


@recorded
def test_an_outcar_that_is_cut_off_gives_its_whole_steps(tmp_path: Path) -> None:
    text = (OUTPUTS / "vasp/OUTCAR.h2o.md").read_text()
    (tmp_path / "OUTCAR").write_text(text[: text.rindex("TOTAL-FORCE")])
    report, items = read(tmp_path / "OUTCAR")
    assert [item.label.energy for item in items] == [-28.38622624, -28.43874406]
    assert report.left_out == {"frame": 1} or report.left_out == {"end-marker": 1}


@recorded
def test_an_outcar_that_is_cut_off_within_its_last_number(tmp_path: Path) -> None:
    text = (OUTPUTS / "vasp/OUTCAR.h2o.md").read_text()
    number = [*re.finditer(r"free  energy   TOTEN  = +(\S+) eV", text)][-1]
    for end in (number.start(1) + 4, number.end(1) - 1, number.end(1)):
        (tmp_path / "OUTCAR").write_text(text[:end])
        report, items = read(tmp_path / "OUTCAR")
        assert len(items) == 2
        assert report.left_out == {"end-marker": 1}


@recorded
def test_outcar_and_vasprun_of_one_run_give_one_training_set() -> None:
    outcar = read(OUTPUTS / "vasp/OUTCAR.h2o.md")[1]
    xml = read(OUTPUTS / "vasp/vasprun.h2o.md.xml")[1]
    for one, other in zip(outcar, xml, strict=True):
        assert one.label.energy == other.label.energy
        np.testing.assert_allclose(one.label.forces, other.label.forces, atol=1e-6)
        assert one.label.virial is not None
        np.testing.assert_allclose(one.label.virial, other.label.virial, atol=1e-4)


@recorded
@pytest.mark.parametrize(
    "name",
    [
        "vasp/OUTCAR.ch4.unconverged",
        "vasp/vasprun.h2o.md.xml",
        "qe/Al.out",
        "gaussian/methane.gaussianlog",
        "siesta/scf/siesta_output",
        "cp2k/cp2k_normal_output/cp2k_output",
    ],
)
def test_an_output_that_is_cut_off_gives_no_other_labels(name: str, tmp_path: Path) -> None:
    text = (OUTPUTS / name).read_text(errors="replace")
    whole = {item.label.energy: item.label for item in read(OUTPUTS / name)[1]}
    (tmp_path / "good.xml").write_text(vasprun(SETTLED))
    for part in np.linspace(0.005, 0.995, 25):
        (tmp_path / "cut").write_text(text[: int(part * len(text))])
        items = read(tmp_path / "good.xml", tmp_path / "cut")[1][1:]
        for item in items:
            label = whole[item.label.energy]
            np.testing.assert_array_equal(item.label.forces, label.forces)
            assert (item.label.virial is None) == (label.virial is None)


# ------------------------------------------------------------------------------ other rules


def test_numbers_that_are_not_finite_are_left_out_and_told(tmp_path: Path) -> None:
    bad_forces, bad_energy = water(), water(np.nan)
    bad_forces.calc.results["forces"][0, 0] = np.inf
    energy_only = water()
    del energy_only.calc.results["forces"]
    path = tmp_path / "set.extxyz"
    ase.io.write(path, [water(), bad_forces, bad_energy, energy_only])
    report, items = read(path)
    assert len(items) == 1
    assert report.left_out == {"forces": 2, "one-energy": 1}
    assert report.examples["one-energy"] == "set.extxyz: frame 2: the energy is nan"
    assert report.is_worth_a_warning


def test_flat_cells_and_slabs_without_a_third_vector_are_left_out(tmp_path: Path) -> None:
    slab = water()
    slab.pbc = (True, True, False)
    path = tmp_path / "set.extxyz"
    ase.io.write(path, [water(), slab])
    report, _ = read(path)
    assert "periodic along x, y only" in report.examples["frame"]


def test_free_and_internal_energies_do_not_mix(tmp_path: Path) -> None:
    both = water()
    both.calc.results["free_energy"] = -1.5
    ase.io.write(tmp_path / "both.extxyz", both)
    report, (item,) = read(tmp_path / "both.extxyz")
    assert (item.label.energy, list(report.energies)) == (-1.5, ["free"])
    report, (item,) = read(tmp_path / "both.extxyz", columns={"energy": "energy"})
    assert (item.label.energy, list(report.energies)) == (-1.0, ["internal"])
    with pytest.raises(SpecError, match=r"b has the free energy and a the internal energy"):
        check_one_energy({"internal": "a", "free": "b", "": "c"}, "initial.data")
    check_one_energy({"internal": "a", "": "c"}, "initial.data")


def test_frames_with_another_energy_in_one_file_are_a_question(tmp_path: Path) -> None:
    both = water()
    both.calc.results["free_energy"] = -1.5
    ase.io.write(tmp_path / "set.extxyz", [both, water(shift=0.1)])
    text = refusal(tmp_path / "set.extxyz")
    assert "frame 1 has energy but no free_energy, which other frames have" in text
    assert "{file: …, energy: energy}" in text


def test_frames_that_come_again_are_told_and_so_are_other_labels() -> None:
    item = Imported(read_water(), FrameLabel(-1.0, np.zeros((3, 3))), "a")
    assert list(repeated([item])) == []
    again = Imported(item.frame, item.label, "b")
    (line,) = repeated([item, again])
    assert line.startswith("initial.data: 1 of 2 frames are duplicates")
    other = Imported(item.frame, FrameLabel(-1.3, np.zeros((3, 3))), "c")
    _, line = repeated([item, other])
    assert "has two labels, which differ by 0.1 eV/atom and 0 eV/Å: in a and c" in line


def read_water() -> Any:
    return canonical(from_ase(water())).frame


# ------------------------------------------------------------------------------ extended xyz


def extxyz(path: Path, columns: str, info: str, row: str = "0.1 0 0") -> Path:
    lattice = 'Lattice="6 0 0 0 6 0 0 0 6" pbc="T T T"'
    atoms = "".join(f"{symbol} {x} 0 0 {row}\n" for symbol, x in (("H", 0), ("C", 1.5)))
    path.write_text(f"2\n{lattice} Properties=species:S:1:pos:R:3:{columns} {info}\n{atoms}")
    return path


TENSOR = '"1 0 0 0 2 0 0 0 3"'


@pytest.mark.parametrize(
    ("columns", "info", "said"),
    [
        ("force:R:3", f"energy=-1.0 virial={TENSOR}", "energy, forces force, virial"),
        ("forces:R:3", f"energy=-1.0 virials={TENSOR}", ""),
        ("dft_forces:R:3", f"dft_energy=-1.0 dft_virial={TENSOR}", "forces dft_forces"),
        ("REF_forces:R:3", f"REF_energy=-1.0 REF_virials={TENSOR}", "energy REF_energy"),
        ("forces:R:3", 'energy=-1.0 virials="1 2 3 0 0 0"', ""),
    ],
)
def test_known_names_are_read(columns: str, info: str, said: str, tmp_path: Path) -> None:
    report, (item,) = read(extxyz(tmp_path / "a.xyz", columns, info))
    assert item.label.energy == -1.0
    assert item.label.virial is not None
    np.testing.assert_allclose(np.diag(item.label.virial), [1, 2, 3])
    np.testing.assert_allclose(item.label.forces, [[0.1, 0, 0]] * 2)
    assert said in str(report)


def test_a_stress_is_a_virial_of_the_other_sign(tmp_path: Path) -> None:
    info = 'REF_energy=-1.0 REF_stress="0.01 0 0 0 0.02 0 0 0 0.03"'
    _, (item,) = read(extxyz(tmp_path / "a.xyz", "REF_forces:R:3", info))
    assert item.label.virial is not None
    np.testing.assert_allclose(np.diag(item.label.virial), np.array([-1, -2, -3]) * 2.16)


def test_two_candidates_are_a_question(tmp_path: Path) -> None:
    path = extxyz(
        tmp_path / "a.xyz",
        "REF_forces:R:3:forces:R:3",
        f"REF_energy=-1.0 energy=-77 stress={TENSOR}",
        "0.1 0 0 9 9 9",
    )
    text = refusal(path)
    assert "a.xyz: energy may be REF_energy or energy; name it in the spec" in text
    text = refusal(path, columns={"energy": "REF_energy"})
    assert "forces may be REF_forces or forces" in text
    named = {"energy": "REF_energy", "forces": "REF_forces"}
    report, (item,) = read(path, columns=named)
    assert item.label.energy == -1.0
    assert item.label.virial is None, "the stress is that of the other forces"
    assert "stress is not read: it belongs to other forces" in str(report)


def test_unknown_names_are_listed_and_can_be_named(tmp_path: Path) -> None:
    path = extxyz(tmp_path / "a.xyz", "F_pbe:R:3", "E_pbe=-1.0")
    text = refusal(path)
    assert "energy missing; a labelled set needs energy and forces. It has E_pbe, F_pbe" in text
    _, (item,) = read(path, columns={"energy": "E_pbe", "forces": "F_pbe"})
    assert item.label.energy == -1.0
    assert "has no 'E_scan' (energy); it has E_pbe, F_pbe" in refusal(
        path, columns={"energy": "E_scan"}
    )


def test_the_virial_of_a_molecule_is_told(tmp_path: Path) -> None:
    path = extxyz(tmp_path / "a.xyz", "forces:R:3", f"energy=-1.0 virial={TENSOR}")
    path.write_text(path.read_text().replace("T T T", "F F F"))
    report, (item,) = read(path)
    assert item.label.virial is None
    assert "the virial of a frame without periodic cell is not read" in str(report)


def test_a_virial_and_a_stress_of_one_sign_contradict_each_other(tmp_path: Path) -> None:
    stress = '"{} 0 0 0 {} 0 0 0 {}"'
    for sign in (1, -1):
        same = stress.format(*(sign * n / 216 for n in (1, 2, 3)))
        path = extxyz(tmp_path / "a.xyz", "forces:R:3", f"energy=-1 virial={TENSOR} stress={same}")
        if sign == 1:
            assert "virial and stress have opposite signs" in refusal(path)
        else:
            assert read(path)[1][0].label.virial is not None


def test_names_of_columns_do_not_apply_to_outputs(tmp_path: Path) -> None:
    (tmp_path / "vasprun.xml").write_text(vasprun(SETTLED))
    assert "energy: not allowed" in refusal(tmp_path / "vasprun.xml", columns={"energy": "x"})


# ------------------------------------------------------------------------------ formats, names


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
@pytest.mark.parametrize("name", ["set.extxyz", "run-1", "OUTCAR.labelled"])
def test_compressed_files_under_any_name(
    name: str, suffix: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    extxyz(tmp_path / "plain", "forces:R:3", "energy=-1.0")
    packed = tmp_path / f"{name}{suffix}"
    packed.write_bytes(pack((tmp_path / "plain").read_bytes()))
    report, items = read(packed)
    assert len(items) == 1
    assert report.formats == {"extxyz": 1}
    packed.write_bytes(pack(b"2\nProperties=species:S:1:pos:R:3 energy=1\nH 0 0 0\n"))
    assert f"{name}{suffix}: " in refusal(packed)
    assert "/tmp" not in refusal(packed).replace(str(tmp_path), "")


def system(folder: Path, energy: float = -1.0, types: str = "0\n0\n1\n") -> Path:
    (folder / "set.000").mkdir(parents=True)
    (folder / "type.raw").write_text(types)
    (folder / "type_map.raw").write_text("H\nO\n")
    coord = water(shift=0.01 * energy).positions.reshape(1, 9)
    box = np.eye(3).reshape(1, 9) * 6
    values = {"coord": coord, "box": box, "energy": [energy], "force": np.ones((1, 9)) * 0.1}
    for name, array in values.items():
        np.save(folder / "set.000" / f"{name}.npy", np.array(array))
    return folder


def test_systems_behind_links_are_read_each_folder_once(tmp_path: Path) -> None:
    system(tmp_path / "data/bulk", -1.0)
    system(tmp_path / "scratch/surface", -2.0)
    (tmp_path / "data/surface").symlink_to(tmp_path / "scratch/surface")
    (tmp_path / "data/again").symlink_to(tmp_path / "data")
    system(tmp_path / "data/.ipynb_checkpoints/bulk", -3.0)
    report, items = read(tmp_path / "data")
    assert sorted(item.label.energy for item in items) == [-2.0, -1.0]
    assert report.formats == {"DeePMD-kit, 2 systems": 1}


@pytest.mark.parametrize("name", ["run[1]", "a#b", "what*", "set of 2"])
def test_any_name_of_a_folder(name: str, tmp_path: Path) -> None:
    system(tmp_path / name / "inner[2]")
    assert len(read(tmp_path / name)[1]) == 1


def test_an_hdf5_file_with_brackets_and_a_hash(tmp_path: Path) -> None:
    path = tmp_path / "data[1]#2"
    write_hdf5(path, mixed=False)
    assert [item.frame.formula for item in read(path)[1]] == ["H2O1"] * 2


def write_hdf5(path: Path, mixed: bool) -> None:
    with h5py.File(path, "w") as file:
        group = file.create_group("water")
        group["type.raw"] = np.zeros(3, dtype=int) if mixed else np.array([0, 0, 1])
        group["type_map.raw"] = np.array([b"H", b"O"])
        positions = np.stack([water().positions, water(shift=0.1).positions])
        group["set.000/coord.npy"] = positions.reshape(2, 9)
        group["set.000/box.npy"] = np.tile((np.eye(3) * 6).ravel(), (2, 1))
        group["set.000/energy.npy"] = np.array([-1.0, -2.0])
        group["set.000/force.npy"] = np.arange(18.0).reshape(2, 9) / 10
        if mixed:
            group["set.000/real_atom_types.npy"] = np.array([[0, 0, 1], [1, 1, 0]])


def test_mixed_types_in_hdf5_are_read_as_mixed(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "mixed.hdf5", mixed=True)
    items = read(tmp_path / "mixed.hdf5")[1]
    assert sorted(item.frame.formula for item in items) == ["H1O2", "H2O1"]
    for item in items:
        rows = sorted(item.label.forces[:, 0])
        assert rows == pytest.approx(
            [0, 0.3, 0.6] if item.label.energy == -1.0 else [0.9, 1.2, 1.5]
        )


def test_arrays_that_are_not_read_are_told(tmp_path: Path) -> None:
    folder = system(tmp_path / "data")
    assert "not read" not in str(read(folder)[0])
    np.save(folder / "set.000" / "spin.npy", np.zeros((1, 9)))
    write_hdf5(tmp_path / "a.hdf5", mixed=False)
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["water/set.000/dipole.npy"] = np.zeros((2, 3))
    report, _ = read(folder, tmp_path / "a.hdf5")
    assert "not read: spin; not read: dipole" in str(report)


def test_types_without_names_are_told_or_refused(tmp_path: Path) -> None:
    folder = system(tmp_path / "data")
    (folder / "type_map.raw").unlink()
    report, (item,) = read(folder, names=("O", "H"))
    assert item.frame.formula == "H1O2"
    assert "no type_map.raw, so types 0, 1, … are read as O, H" in str(report)
    assert "has atoms of type 1, but type_map has only O; give" in refusal(folder, names=("O",))
    (folder / "type_map.raw").write_text("H\n")
    assert "has atoms of type 1, but type_map.raw names only H" in refusal(folder)


def test_a_set_with_types_of_its_own_is_given_elements(tmp_path: Path) -> None:
    folder = system(tmp_path / "data")
    (folder / "type_map.raw").write_text("H_wat\nO_wat\n")
    write_hdf5(tmp_path / "mixed.hdf5", mixed=True)
    with pytest.raises(SpecError, match=r"element H_wat is not in type_map .*type_map: \[…\]"):
        read_labelled(["data"], tmp_path, ["H", "O"], "initial.data")
    for name, formulas in (("data", ["C2O1"]), ("mixed.hdf5", ["C1O2", "C2O1"])):
        source = LabelledSet(file=name, type_map=("C", "O"))
        items = read_labelled([source], tmp_path, ["C", "O"], "initial.data").items
        assert sorted(item.frame.formula for item in items) == formulas


def test_left_handed_cells_are_turned_and_told(tmp_path: Path) -> None:
    swapped = water()
    swapped.set_cell(swapped.cell[[1, 0, 2]])
    ase.io.write(tmp_path / "set.extxyz", [water(), swapped])
    report, items = read(tmp_path / "set.extxyz")
    assert all(item.frame.cell is not None for item in items)
    distances = [to_ase(item.frame).get_all_distances(mic=True) for item in items]
    np.testing.assert_allclose(distances[0], distances[1], atol=1e-6)
    assert "a left-handed cell inverted (−a, −b, −c: the same lattice" in str(report)


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "set.xyz").symlink_to("gone.xyz")
    assert "set.xyz: " in refusal(tmp_path / "set.xyz")
