"""The texts of a recipe lead no program outside the folder of its run."""

from __future__ import annotations

from typing import Any

import pytest

from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.recipes import make_recipe
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import LabelSettings
from dpstream.shared.spec.errors import validated
from tests.support.programs.code_settings import SETTINGS, TEMPLATE

UPF = {"file": "Al.upf", "sha256": "0" * 64, "size": 1}
NEEDED: dict[str, dict[str, Any]] = {
    **SETTINGS,
    "qe": {"pseudopotentials": {"Al": UPF}, "ecutwfc": 40, "kpoints": [1, 1, 1]},
    "gaussian": {"keywords": "force b3lyp/6-31g(d,p) nosymm"},
    "ase": {"calculator": "ase.calculators.emt.EMT"},
}


def accept(code: str, **changes: Any) -> None:
    settings = {**NEEDED.get(code, {}), **changes}
    validated(CODES[code].settings, settings, "labels.settings.")


def cp2k(*lines: str) -> dict[str, Any]:
    return {"template": "\n".join([*lines, TEMPLATE])}


def dft(**keywords: Any) -> dict[str, Any]:
    return {"keywords": {"FORCE_EVAL": {"DFT": keywords}}}


ESCAPES: list[tuple[str, dict[str, Any]]] = [
    ("cp2k", {"keywords": {"GLOBAL": {"PROJECT": "/tmp/x"}}}),
    ("cp2k", {"keywords": {"GLOBAL": {"PROJECT": "a/../../x"}}}),
    ("cp2k", dft(PRINT={"MO": {"FILENAME": "=/tmp/x"}})),
    ("cp2k", dft(WFN_RESTART_FILE_NAME="/home/other/secret")),
    ("cp2k", dft(WFN_RESTART_FILE_NAME='"../x"')),
    ("cp2k", dft(PRINT={"MO": {"FILENAME": "${HOME}/x"}})),
    ("cp2k", {"basis": {"H": "DZVP\n@INCLUDE '/etc/passwd'"}}),
    ("cp2k", {"potential": {"H": "GTH\n&PRINT"}}),
    ("cp2k", cp2k("@SET A /")),
    ("cp2k", cp2k("@SET A .")),
    ("cp2k", cp2k("@INCLUDE other.inp")),
    ("cp2k", cp2k("  @include 'other.inp'")),
    ("cp2k", cp2k("@XCTYPE other")),
    ("cp2k", {"template": TEMPLATE.replace("PROJECT mine", "PROJECT /tmp/x")}),
    ("cp2k", {"template": TEMPLATE.replace("PROJECT mine", "PROJECT =/tmp/x # mine")}),
    ("cp2k", {"template": TEMPLATE.replace("PROJECT mine", "PROJECT ${A-/}tmp")}),
    ("qe", {"control": {"wfcdir": "x"}}),
    ("qe", {"control": {"outdir": "x"}}),
    ("qe", {"control": {"title": "/tmp/x"}}),
    ("qe", {"system": {"input_dft": "'/tmp/x'"}}),
    ("vasp", {"incar": "ENCUT = 400\nKSPACING = 0.3\nX = /tmp/x"}),
    ("vasp", {"incar": "KSPACING = 0.3; PLUGINS/MACHINE_LEARNING = T"}),
    ("vasp", {"kpoints": "../KPOINTS"}),
    ("vasp", {"retries": [{"ALGO": "Normal\n X = ~/x"}]}),
    ("abacus", {"input": "basis_type pw\nkspacing 0.3\nread_file_dir /home/x"}),
    ("abacus", {"input": {"kspacing": 0.3, "read_file_dir": "../x"}}),
    ("siesta", {"fdf": "MeshCutoff 300 Ry\n%include /etc/passwd"}),
    ("siesta", {"fdf": "MeshCutoff 300 Ry\n%include other.fdf"}),
    ("siesta", {"fdf": "Lua.Script x.lua"}),
    ("siesta", {"fdf": "Master.Address example.org"}),
    ("siesta", {"fdf": "  SystemLabel=x"}),
    ("siesta", {"fdf": "PAO.Basis < /home/x"}),
    ("gaussian", {"keywords": "force external='/tmp/x'"}),
    ("gaussian", {"keywords": "force External=run"}),
    ("gaussian", {"keywords": "#p force oniom(hf:external)"}),
    ("gaussian", {"extra": "%chk=x.chk"}),
    ("gaussian", {"extra": "@basis.gbs"}),
    ("gaussian", {"extra": "C 0\n\n--Link1--\n# force"}),
    ("gaussian", {"extra": "/tmp/x.wfn"}),
    ("pwmat", {"etot_input": "ECUT = 50\nIN.WG = /home/x"}),
    ("pyscf", {"basis": "/home/x/secret"}),
    ("pyscf", {"ecp": "~/secret"}),
    ("ase", {"arguments": {"label": "/tmp/x"}}),
    ("ase", {"arguments": {"inner": [{"command": "../x"}]}}),
    ("vasp", {"incar": "KSPACING = 0.3\x0bX"}),
]


@pytest.mark.parametrize(("code", "changes"), ESCAPES, ids=lambda value: str(value)[:60])
def test_what_may_lead_outside_is_refused(code: str, changes: dict[str, Any]) -> None:
    accept(code)
    with pytest.raises(SpecError, match=r"labels\.settings\.") as caught:
        accept(code, **changes)
    assert "\n" not in str(caught.value)


def test_submission_and_every_labeler_make_the_recipe_of_checked_settings() -> None:
    with pytest.raises(SpecError, match=r"labels\.settings\.basis: '/home/x' may be outside"):
        make_recipe(LabelSettings(code="pyscf", settings={"basis": "/home/x"}))


HARMLESS: list[tuple[str, dict[str, Any]]] = [
    ("cp2k", dft(PRINT={"MO": {"FILENAME": "=mo"}}, WFN_RESTART_FILE_NAME="mine-RESTART.wfn")),
    ("cp2k", {"keywords": {"GLOBAL": {"PROJECT": "mine"}}}),
    ("cp2k", {"basis": {"H": "ORB DZVP-MOLOPT-SR-GTH-q1"}}),
    ("cp2k", cp2k("# from /home/me/old", "@SET SCALE 1.000", "@SET JOB mine.1")),
    ("cp2k", {"template": TEMPLATE.replace("METHOD QS", "METHOD QS ! see below ...")}),
    ("qe", {"system": {"input_dft": "pbe", "vdw_corr": "dft-d3"}}),
    ("vasp", {"incar": "SYSTEM = Al/Cu, 1..2 ...\n# /home/me\nKSPACING = 0.3"}),
    ("abacus", {"input": "basis_type pw\nkspacing 0.3 # mine"}),
    ("siesta", {"fdf": "DM.Tolerance 1.d-6\nMD.MaxForceTol 0.01 eV/Ang\n# /home/me"}),
    ("gaussian", {"keywords": "#p force b3lyp/6-31g(d,p)/auto extrabasis", "extra": "C 0\n6-31g"}),
    ("pyscf", {"basis": "6-311++g(2d,2p)", "xc": ".2*HF + .08*LDA + .72*B88, .81*LYP"}),
]


@pytest.mark.parametrize(("code", "changes"), HARMLESS, ids=lambda value: str(value)[:60])
def test_what_stays_inside_is_accepted(code: str, changes: dict[str, Any]) -> None:
    accept(code, **changes)
