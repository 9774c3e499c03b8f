"""GROMACS as a source of frames: what a campaign may give it, and what dpstream writes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ase.build import molecule
from rich.console import Console

from dpstream.commands.read_spec import checked
from dpstream.inputs.check_installed import check_engines
from dpstream.inputs.gather import Gathered
from dpstream.report.page import render
from dpstream.services.explorer.engines.base import TrajectoryRequest
from dpstream.services.explorer.engines.check import check_engine
from dpstream.services.explorer.engines.gromacs import GromacsDynamics, gromacs_inputs
from dpstream.services.explorer.gromacs.child import reason
from dpstream.services.explorer.gromacs.inputs import (
    canonical_order,
    check_topology,
    gro_lines,
    mdp_text,
    parameters,
    room_for,
)
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.services.labeler.recipes import make_recipe
from dpstream.shared.atoms.frames import from_ase
from dpstream.shared.errors import SpecError
from dpstream.shared.runtime.device import Device, Gpu
from dpstream.shared.spec import Md, Spec, load_spec
from dpstream.shared.spec.engines import Gromacs
from dpstream.shared.spec.virial import uses_of_virial
from dpstream.shared.values import Condition
from dpstream.terminal.plan import plan
from tests.support.campaigns import sample_ledger
from tests.support.programs.gromacs import MDP, METHANE, gro_of_methane

COLD = Condition(system="s", temperature=200.0)
PRESSED = Condition(system="s", temperature=200.0, pressure=7.0)
NPT = MDP + "pcoupl = C-rescale\n"


def settings(mdp: str = MDP) -> Gromacs:
    return Gromacs(kind="gromacs", mdp=mdp, topologies={"s": METHANE})


def spec(**changes: Any) -> dict[str, Any]:
    stage = {
        "name": "gmx",
        "systems": ["s"],
        "temperatures": [200],
        "engine": {"kind": "gromacs", "mdp": MDP, "topologies": {"s": METHANE}},
    }
    return {
        "name": "c",
        "type_map": ["C", "H"],
        "systems": {"s": {"structures": ["a.gro"]}},
        "initial": {"perturb": {}},
        "stages": [{**stage, **changes}],
    }


# ----------------------------------------------------------------------------- run parameters


def written(mdp: str, md: Md, condition: Condition = COLD) -> dict[str, str]:
    return parameters_of(mdp_text(parameters(mdp), md, condition, 5))


def parameters_of(text: str) -> dict[str, str]:
    lines = (line.partition("=") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def test_the_stage_sets_steps_temperature_output_and_seeds() -> None:
    found = written(MDP, Md(timestep=0.0005, steps=40, every=8))
    assert (found["nsteps"], found["dt"], found["nstxout"]) == ("40", "0.0005", "8")
    assert (found["ref-t"], found["gen-temp"], found["gen-seed"]) == ("200", "200", "6")
    assert found["tcoupl"] == "v-rescale", "GROMACS ignores the case of names"
    assert found["cutoff-scheme"] == "Verlet", "and takes _ for -"
    assert "ref-p" not in found


def test_every_group_has_the_temperature_of_the_condition() -> None:
    two = MDP.replace("tc-grps = System", "tc-grps = Water Other\nref_t = 1 2")
    assert written(two, Md())["ref-t"] == "200 200"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("isotropic", "7"),
        ("semiisotropic", "7 7"),
        ("anisotropic", "7 7 7 0 0 0"),
    ],
)
def test_the_pressure_of_the_condition(kind: str, expected: str) -> None:
    mdp = NPT + f"pcoupltype = {kind}\nref-p = 1\n"
    assert written(mdp, Md(ensemble="npt"), PRESSED)["ref-p"] == expected


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("include = -I/etc", "line 1: .*include is not allowed"),
        ("density-guided-simulation-reference-density-filename = /etc/x", "is not allowed"),
        ("QMMM_CP2K_QMFilenames = x", "is not allowed"),
        ("tau-tt = 1", "did you mean 'tau-t'"),
        ("rvdw 1.0", "must be PARAMETER = VALUE"),
        ("define = -DX -I/etc", "must be numbers and names"),
        ("tc-grps = /etc/passwd", "must be numbers and names"),
        ("integrator = steep", "must be one of md, md-vv"),
        ("pull = yes", "must be no: a campaign runs plain dynamics"),
        ("annealing = no single", "must be no: a campaign runs plain dynamics"),
        ("nwall = 2", "nwall is not allowed in a campaign; it may name files"),
        ("electric-field-x = 1 0 0 0", "is not allowed"),
        ("energygrp-table = A B", "is not allowed in a campaign; it may name files"),
        ("acc-grps = A", "is not allowed in a campaign; it may name files"),
        ("rcoulomb = abc", "line 1: 'rcoulomb = abc': must be a number, nm"),
        ("rvdw =", "must be a number, nm"),
        ("rlist = inf", "must be a number, nm"),
    ],
)
def test_parameters_that_a_campaign_may_not_give(line: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parameters(line + "\n" + MDP)


WITHOUT_EFFECT = """
pull = no
pull-ncoords = 1
Free_Energy = no
init-lambda-state = -1
fep-lambdas =
annealing = no no
emtol = 10
nstcgsteep = 1000
QMMM = no
qmmm-cp2k-active = false
include =
nwall = 0
wall-type = 9-3
electric-field-x = 0 0 0 0
userreal1 = 0
dh_hist_size = 0
"""


def test_lines_without_effect_are_dropped() -> None:
    """A file that `gmx grompp` wrote (mdout.mdp) names every parameter."""
    assert parameters(MDP + WITHOUT_EFFECT) == parameters(MDP)


def test_names_are_read_as_gromacs_reads_them() -> None:
    assert parameters("vdw-type = Cut-off\nP_Coupl = no\n") == {
        "vdwtype": "Cut-off",
        "pcoupl": "no",
    }


@pytest.mark.parametrize(
    ("mdp", "ensemble", "said"),
    [
        (MDP, "npt", "make the ensemble nvt, md.ensemble is npt"),
        (NPT, "nvt", "make the ensemble npt, md.ensemble is nvt"),
        (MDP.replace("v-rescale", "no"), "nvt", "make the ensemble nve"),
        (NPT + "pcoupltype = surface-tension", "npt-iso", "pcoupltype: must be one of isotropic"),
        (NPT.replace("v-rescale", "no"), "npt", "mdp: pcoupl without tcoupl is nph"),
        (NPT, "npt-aniso", "pcoupltype is isotropic, but md.ensemble npt-aniso needs anisotropic"),
        (NPT, "npt-tri", "md.ensemble npt-tri needs anisotropic"),
        (NPT + "pcoupltype = semiisotropic", "npt-iso", "needs isotropic"),
    ],
)
def test_the_ensemble_is_that_of_the_stage(mdp: str, ensemble: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        written(mdp, Md(ensemble=ensemble))


@pytest.mark.parametrize("ensemble", ["npt-aniso", "npt-tri", "npt"])
def test_a_barostat_changes_the_shape_that_the_ensemble_says(ensemble: Any) -> None:
    mdp = NPT + "pcoupltype = Anisotropic\n"
    assert written(mdp, Md(ensemble=ensemble), PRESSED)["ref-p"] == "7 7 7 0 0 0"


def test_pbc_is_that_of_the_structure() -> None:
    def inputs(mdp: str, is_vacuum: bool) -> dict[str, str]:
        made = gromacs_inputs(settings(MDP + mdp), Md(), COLD, is_vacuum, 1)
        return parameters_of(made.files["md.mdp"])

    assert inputs("pbc = XYZ\n", is_vacuum=False)["pbc"] == "xyz"
    assert inputs("pbc = no\n", is_vacuum=True)["pbc"] == "xyz", "in a cell that dpstream makes"
    for pbc, is_vacuum in (("no", False), ("xy", False), ("xy", True), ("screw", True)):
        with pytest.raises(ValueError, match=f"mdp: pbc = {pbc}: must be xyz"):
            inputs(f"pbc = {pbc}\n", is_vacuum)
    frame = from_ase(molecule("CH4", vacuum=5.0, pbc=True))
    stage = Spec.model_validate(spec()).stages[0]
    engine = settings(MDP + "pbc = no\n")
    with pytest.raises(ValueError, match="because the structure has a cell"):
        check_engine(stage.model_copy(update={"engine": engine}), COLD, frame, trusting=False)


def test_the_cell_around_a_molecule_is_wider_than_its_cutoffs() -> None:
    positions = np.array([[0.0, 0, 0], [3, 0, 0]])
    assert room_for(positions, {})[0, 0] == pytest.approx(3 + 20 + 10)
    assert room_for(positions, {"rvdw": "1.4"})[0, 0] == pytest.approx(3 + 28 + 10)


@pytest.mark.parametrize(
    ("device", "expected"),
    [(None, False), (Device("cpu"), False), (Device("cuda", Gpu(0, "x", 1, "1")), True)],
)
def test_a_gpu_is_used_only_if_one_is_chosen(
    tmp_path: Path, device: Device | None, expected: bool
) -> None:
    class Recording(ExplorerResources):
        def call(self, operation: str, arguments: Any, context: Any) -> Any:
            raise LookupError(operation, arguments["on_gpu"])

    context: Any = SimpleNamespace(spec=lambda: Spec.model_validate(spec()), scratch=tmp_path)
    command: Any = SimpleNamespace(stage=0)
    committee: Any = None
    frame = from_ase(molecule("CH4"))
    resources = Recording(tmp_path, device=device)
    engine = GromacsDynamics(TrajectoryRequest(resources, command, context, frame, committee))
    with pytest.raises(LookupError) as asked:
        engine.advance(1, 0)
    assert asked.value.args == ("gromacs_run", expected)


def test_stochastic_dynamics_is_a_thermostat() -> None:
    mdp = MDP.replace("integrator = md", "integrator = sd").replace("Tcoupl = v-rescale", "")
    assert written(mdp, Md())["ref-t"] == "200"


# ---------------------------------------------------------------------------------- topology


@pytest.mark.parametrize(
    "line",
    [
        '#include "/etc/passwd"',
        '  # include "../secret.ff/x.itp"',
        '#include "mine.itp"',
        "#include <x.ff/y.itp>",
        '#INCLUDE "x"',
        "#define A \\",
        '#include "oplsaa.ff/../../x.itp"',
    ],
)
def test_a_topology_includes_nothing_but_force_fields(line: str) -> None:
    with pytest.raises(ValueError, match=r"line 2: .*only force fields of GROMACS"):
        check_topology(f"[ defaults ]\n{line}\n")


def test_what_a_topology_may_contain() -> None:
    check_topology(METHANE)
    check_topology('#include "oplsaa.ff/forcefield.itp" ; OPLS\n#ifdef X\n#define Y 1\n#endif\n')


def test_the_order_of_the_topology() -> None:
    atoms = [("H1", "H"), ("C", "C"), ("HX", "")]
    assert canonical_order(atoms, {"HX": "H"}, ("C", "H", "H")).tolist() == [1, 0, 2]
    with pytest.raises(ValueError, match=r"no element \(at.num\) of atom HX; add it to elements"):
        canonical_order(atoms, {}, ("C", "H", "H"))
    with pytest.raises(ValueError, match="the topology has C1 H2, the structure C1 H3"):
        canonical_order(atoms, {"HX": "H"}, ("C", "H", "H", "H"))


def test_coordinates_are_in_nm() -> None:
    cell = np.array([[12.0, 0, 0], [1, 11, 0], [2, 3, 10]])
    lines = list(gro_lines(["OW"], np.array([[1.234567, 2, 3]]), cell))
    assert lines[1:] == [
        "1",
        "    1MOL     OW    1   0.1234567   0.2000000   0.3000000",
        "1.2000000 1.1000000 1.0000000 0.0000000 0.0000000 0.1000000 0.0000000 0.2000000 0.3000000",
    ]


def test_the_first_error_of_gromacs_is_quoted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "NOTE 1 [file md.mdp]:\n  Fine\n\nERROR 1 [file topol.top, line 3]:\n  No such\n  type X\n"
        "\nFatal error:\nThere was 1 error\n\nFor more information\n"
    )
    assert reason(log, 1) == "No such type X"
    warned = "WARNING 1 [file topol.top]:\n  Odd names\n\n"
    log.write_text(warned + log.read_text())
    assert reason(log, 1) == "No such type X"
    where = "-----\nProgram:     gmx grompp, version 2022.5\nFunction:    void f()\n\n"
    log.write_text(f"{where}Internal error (bug):\nNo such moleculetype ETH\n\nFor more\n")
    assert reason(log, 1) == "No such moleculetype ETH"
    log.write_text(f"{warned}{where}Fatal error:\nToo many warnings (1).\nIf you\n\nFor more\n")
    assert reason(log, 1) == "Odd names"
    log.write_text("")
    assert reason(log, 4) == "ended with status 4"


# ---------------------------------------------------------------------------------- the spec


def test_files_travel_as_text(tmp_path: Path) -> None:
    (tmp_path / "md.mdp").write_text(MDP)
    (tmp_path / "s.top").write_text(METHANE)
    engine = {"kind": "gromacs", "mdp": "md.mdp", "topologies": {"s": "s.top"}}
    path = tmp_path / "campaign.json"
    path.write_text(json.dumps(spec(engine=engine)))
    assert load_spec(path).stages[0].engine == settings()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"topologies": {"t": METHANE}}, "topologies: has none of 's'; add s: FILE.top"),
        ({"topologies": {"s": METHANE, "t": METHANE}}, "topologies: 't' is not in systems"),
        ({"elements": {"OW": "O"}}, "elements: 'O' is not in type_map"),
    ],
)
def test_mistakes_in_the_spec(changes: dict[str, Any], said: str) -> None:
    engine = spec()["stages"][0]["engine"] | changes
    with pytest.raises(ValueError, match=said):
        Spec.model_validate(spec(engine=engine))


def test_its_barostat_needs_no_virial_of_the_committee() -> None:
    npt = {"pressures": [1.0], "md": {"ensemble": "npt"}}
    assert "stages.0.md.ensemble" not in uses_of_virial(Spec.model_validate(spec(**npt)))
    own = Spec.model_validate(spec(engine="md", **npt))
    assert "stages.0.md.ensemble" in uses_of_virial(own)


def test_validate_says_that_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPSTREAM_EXPLORER_GROMACS", "no-such-gmx")
    with pytest.raises(SpecError, match="needs GROMACS: no-such-gmx is not on PATH"):
        check_engines(Spec.model_validate(spec()))


def test_what_only_gromacs_can_compare_is_left_to_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.gro").write_text(gro_of_methane())
    monkeypatch.setenv("DPSTREAM_EXPLORER_GROMACS", "no-such-gmx")
    _, gathered, _ = checked(Spec.model_validate(spec()), tmp_path, engines=False)
    assert "the atoms of topologies and structures (no GROMACS here)" in gathered.warnings[-1]


def test_plan_and_report_say_what_moves_the_atoms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Spec.model_validate(spec())
    console = Console(width=200, record=True, file=io.StringIO())
    for part in plan(wanted, Gathered({"s": []}, [], [], [], []), make_recipe(wanted.labels)):
        console.print(part)
    text = " ".join(console.export_text().split())
    assert "gmx: GROMACS with the force field of the topology; the committee only judges" in text

    engine = settings().model_copy(update={"topologies": {"methane": METHANE}})
    (stage,) = sample_ledger.spec().stages
    stages = (stage.model_copy(update={"engine": engine}),)
    moved = sample_ledger.spec().model_copy(update={"stages": stages})
    monkeypatch.setattr(sample_ledger, "spec", lambda: moved)
    html = render(sample_ledger.write_beginning(tmp_path), sample_ledger.NAME)
    assert "moved by GROMACS with the force field of the topology, judged by the committee" in html
