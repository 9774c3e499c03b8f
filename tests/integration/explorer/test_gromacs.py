"""The programs of GROMACS on small boxes of water, without a committee."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule

from dpstream.services.explorer.gromacs.child import gromacs_atoms, gromacs_begin, gromacs_run
from dpstream.services.explorer.gromacs.inputs import (
    canonical_order,
    gro_lines,
    inputs_for_names,
    mdp_text,
    parameters,
)
from dpstream.services.explorer.gromacs.trial import try_inputs
from dpstream.shared.atoms.frames import Floats, Frame, canonical, from_ase, min_distance
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Md, Spec
from dpstream.shared.values import Condition
from tests.support.programs.gromacs import (
    MDP,
    METHANE,
    SPCE,
    canonical_box,
    needs_gromacs,
    water_box,
)

pytestmark = needs_gromacs
EDGE = 4
WATERS = EDGE**3
OPLS = '#include "oplsaa.ff/forcefield.itp"\n#include "oplsaa.ff/{model}.itp"\n[ system ]\nw\n'
MOLECULES = f"[ molecules ]\nSOL {WATERS}\n"


def write(folder: Path, topology: str, mdp: str = MDP, pressure: float | None = None) -> None:
    condition = Condition(system="s", temperature=300.0, pressure=pressure)
    md = Md(timestep=0.0005, steps=40, every=10, ensemble="nvt" if pressure is None else "npt")
    (folder / "md.mdp").write_text(mdp_text(parameters(mdp), md, condition, 3))
    (folder / "topol.top").write_text(topology)
    lines = gro_lines(["OW", "HW1", "HW2"] * WATERS, *_box())
    (folder / "conf.gro").write_text("\n".join(lines) + "\n")
    for name, text in inputs_for_names(3 * WATERS, parameters(mdp)).items():
        (folder / name).write_text(text)


def _box() -> tuple[Floats, Floats]:
    """Positions and cell, Å."""
    box = water_box(EDGE)
    assert box.cell is not None
    return box.positions, box.cell


def ran(folder: Path, *steps: int) -> Floats:
    """Positions of the checks, Å."""
    assert gromacs_begin("gmx", str(folder), 0) is None
    found = []
    for number, each in enumerate(steps):
        assert gromacs_run("gmx", str(folder), each, 1, goes_on=number > 0, on_gpu=False) is None
        found.append(np.load(folder / "frames.npz")["positions"])
    return np.concatenate(found)


def test_a_topology_of_gromacs_own_force_field_names_its_elements(tmp_path: Path) -> None:
    write(tmp_path, OPLS.format(model="spce") + MOLECULES)
    atoms = gromacs_atoms("gmx", str(tmp_path))["atoms"]
    assert atoms == [["OW", "O"], ["HW1", "H"], ["HW2", "H"]] * WATERS
    species = canonical_box(EDGE).species
    order = canonical_order([(a, b) for a, b in atoms], {}, species)
    frame = canonical(water_box(EDGE))
    np.testing.assert_array_equal(order, frame.order)


def test_names_of_five_characters(tmp_path: Path) -> None:
    write(
        tmp_path, SPCE.format(count=WATERS).replace("HW1", "HW1AB").replace("SOL OW", "SOL OWATR")
    )
    atoms = gromacs_atoms("gmx", str(tmp_path))["atoms"]
    assert atoms[:3] == [["OWATR", "O"], ["HW1AB", "H"], ["HW2", "H"]]
    lines = gro_lines([name for name, _ in atoms], *_box())
    (tmp_path / "conf.gro").write_text("\n".join(lines) + "\n")
    assert gromacs_begin("gmx", str(tmp_path), 0) is None, "names that differ are a warning"


def test_two_segments_are_one_trajectory_in_angstrom(tmp_path: Path) -> None:
    write(tmp_path, SPCE.format(count=WATERS))
    positions = ran(tmp_path, 20, 20)
    whole = tmp_path / "whole"
    whole.mkdir()
    write(whole, SPCE.format(count=WATERS))
    np.testing.assert_allclose(positions, ran(whole, 40), atol=2e-3)
    assert len(positions) == 4
    moved = positions[0] - water_box(EDGE).positions
    moved -= 3.1 * EDGE * np.rint(moved / (3.1 * EDGE))
    assert 0.001 < np.abs(moved).max() < 1.0, "Å in 5 fs"
    last = replace(water_box(EDGE), positions=positions[-1])
    assert 0.7 < min_distance(last) < 1.1, "Å: an O-H bond"


def test_a_barostat_changes_the_cell(tmp_path: Path) -> None:
    mdp = MDP + "pcoupl = C-rescale\ntau-p = 0.1\ncompressibility = 4.5e-5\n"
    write(tmp_path, SPCE.format(count=WATERS), mdp, pressure=20000.0)
    ran(tmp_path, 40)
    cells = np.load(tmp_path / "frames.npz")["cells"]
    widths = cells[:, 0, 0]
    assert len(set(widths.tolist())) > 1
    np.testing.assert_allclose(widths, 12.4, rtol=0.15)
    np.testing.assert_allclose(cells, widths[:, None, None] * np.eye(3), atol=1e-4)


def test_virtual_sites_are_named(tmp_path: Path) -> None:
    write(tmp_path, OPLS.format(model="tip4p") + "[ molecules ]\nSOL 48\n")
    atoms = gromacs_atoms("gmx", str(tmp_path))["atoms"]
    with pytest.raises(ValueError, match=r"no element \(at.num\) of atom MW"):
        canonical_order([(a, b) for a, b in atoms], {}, canonical_box(EDGE).species)


def test_warnings_are_counted_and_quoted(tmp_path: Path) -> None:
    charged = SPCE.format(count=WATERS).replace("-0.8476", "-0.7")
    write(tmp_path, charged, MDP.replace("reaction-field", "PME"))
    assert "net charge" in str(gromacs_begin("gmx", str(tmp_path), 0))
    assert gromacs_begin("gmx", str(tmp_path), 1) is None


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    found = gromacs_atoms("no-such-gmx", str(tmp_path))
    assert "install GROMACS, or set DPSTREAM_EXPLORER_GROMACS" in found["error"]


def test_what_blows_up_has_a_reason_and_the_frames_before_it(tmp_path: Path) -> None:
    write(tmp_path, SPCE.format(count=WATERS).replace("345000", "34500000000000"))
    assert gromacs_begin("gmx", str(tmp_path), 9) is None
    error = gromacs_run("gmx", str(tmp_path), 400, 1, goes_on=False, on_gpu=False)
    assert str(error).startswith("Step 0: The total potential energy is")
    assert len(np.load(tmp_path / "frames.npz")["positions"]) < 40


def tried(topology: str, *frames: Frame, structures: str = "box.extxyz") -> None:
    engine = {"kind": "gromacs", "mdp": MDP, "topologies": {"water": topology}}
    document = {
        "name": "c",
        "type_map": ["H", "O"],
        "systems": {"water": {"structures": [structures]}},
        "initial": {"perturb": {}},
        "stages": [{"name": "s", "systems": ["water"], "temperatures": [300], "engine": engine}],
    }
    given = {"water": frames or (canonical_box(EDGE),)}
    try_inputs(Spec.model_validate(document), given, "gmx")


def test_inputs_that_gromacs_refuses_are_an_error_before_anything_starts() -> None:
    tried(SPCE.format(count=WATERS))
    with pytest.raises(SpecError, match=r"stages.0.engine: water 300 K: gromacs: No such molecule"):
        tried(SPCE.format(count=WATERS).replace("SOL 64", "SOX 64"))
    other = SPCE.format(count=WATERS).replace("2 HW 1", "2 OW 1")
    with pytest.raises(SpecError, match=r"the topology has H64 O128, .* element$"):
        tried(other)
    with pytest.raises(SpecError, match=r"H128 O64; .* \(elements in .gro .*: write Cl, not CL\)"):
        tried(other, structures="box.gro")


def test_every_composition_is_compared_with_the_topology() -> None:
    right = canonical_box(EDGE)
    wrong = replace(right, species=("H",) * 120 + ("O",) * 72)
    with pytest.raises(SpecError, match="the structure H120 O72"):
        tried(SPCE.format(count=WATERS), right, right, wrong)


def test_what_grompp_writes_is_accepted(tmp_path: Path) -> None:
    write(tmp_path, SPCE.format(count=WATERS))
    assert gromacs_begin("gmx", str(tmp_path), 0) is None
    whole = (tmp_path / "mdout.mdp").read_text()
    assert "emtol" in whole
    given = parameters(whole)
    assert {name: given[name] for name in ("rcoulomb", "tcoupl")} == {
        "rcoulomb": "0.45",
        "tcoupl": "v-rescale",
    }
    (tmp_path / "again").mkdir()
    write(tmp_path / "again", SPCE.format(count=WATERS), whole)
    assert gromacs_begin("gmx", str(tmp_path / "again"), 0) is None


def test_a_gpu_is_used_only_if_allowed_and_the_version_asked_once(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    program = tmp_path / "gmx"
    program.write_text(f'#!/bin/sh\necho "$*" >> {calls}\nexec gmx "$@"\n')
    program.chmod(0o755)
    write(tmp_path, SPCE.format(count=WATERS))
    assert gromacs_begin("gmx", str(tmp_path), 0) is None
    for goes_on in (False, True):
        assert gromacs_run(str(program), str(tmp_path), 10, 1, goes_on, on_gpu=goes_on) is None
    lines = calls.read_text().splitlines()
    without, allowed = (line for line in lines if line.startswith("mdrun"))
    assert "-nb cpu -pme cpu -bonded cpu -update cpu" in without
    assert " cpu" not in allowed
    assert lines.count("--version") == 1


def test_a_killed_program_is_no_fault_of_the_files(tmp_path: Path) -> None:
    killed = tmp_path / "gmx"
    killed.write_text("#!/bin/sh\nkill -KILL $$\n")
    killed.chmod(0o755)
    with pytest.raises(RuntimeError, match="was killed, probably because it ran out of memory"):
        gromacs_begin(str(killed), str(tmp_path), 0)


def test_a_molecule_in_vacuum_may_have_no_pbc() -> None:
    engine = {"kind": "gromacs", "mdp": MDP + "pbc = no\n", "topologies": {"s": METHANE}}
    document = {
        "name": "c",
        "type_map": ["C", "H"],
        "systems": {"s": {"structures": ["a.gro"], "periodic": False}},
        "initial": {"perturb": {}},
        "stages": [{"name": "s", "systems": ["s"], "temperatures": [300], "engine": engine}],
    }
    spec = Spec.model_validate(document)
    try_inputs(spec, {"s": [canonical(from_ase(molecule("CH4"))).frame]}, "gmx")
    boxed = canonical(from_ase(molecule("CH4", vacuum=8.0, pbc=True))).frame
    with pytest.raises(SpecError, match="pbc = no: must be xyz, because the structure has a cell"):
        try_inputs(spec, {"s": [boxed]}, "gmx")
