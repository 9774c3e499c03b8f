"""Jobs of DP-GEN with a LAMMPS input of the user's own, and keys that are given twice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpstream.dpgen.key_table import without_comments
from dpstream.dpgen.load import convert_file, load_campaign, spec_of
from dpstream.dpgen.param import Begun, Converted, Places, convert
from dpstream.inputs.check_atom_order import misnumbered
from dpstream.services.explorer.engines.template import parse, plumed_text, standard_words
from dpstream.shared.atoms.frames import Frame, canonical
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Spec
from dpstream.shared.spec.engines import Template
from tests.support.dpgen import dpgen_methane

DATA = os.environ.get("DPSTREAM_TEST_DATA")
EXAMPLE = Path(DATA or "", "dpgen/examples/run/dp-lammps-enhance_sampling/param.json")
LAMMPS = """
pair_style deepmd
timestep 0.0005
velocity all create V_TEMP 1 dist gaussian
fix dpgen_plm
fix 1 all nvt temp V_TEMP V_TEMP V_TAU
dump dpgen_dump
run V_NSTEPS
"""
PLUMED = "d: DISTANCE ATOMS=1,5\nMETAD ARG=d SIGMA=V_TAU HEIGHT=0.1 PACE=V_PACE TEMP=V_TEMP\n"


def job(**changes: Any) -> dict[str, Any]:
    whole = {
        "sys_idx": [0, 1],
        "trj_freq": 10,
        "template": {"lmp": "lmp/in.lammps", "plm": "lmp/in.plumed"},
        "rev_mat": {
            "lmp": {"V_NSTEPS": [200], "V_TEMP": [300, 600]},
            "plm": {"V_TEMP": [300, 600], "V_PACE": [10, 20]},
        },
        "sys_rev_mat": {"1": {"lmp": {"V_TAU": [0.1, 0.2]}}, "0": {"lmp": {"V_TAU": [0.1]}}},
        **changes,
    }
    return {key: value for key, value in whole.items() if value is not ...}


def param(plumed: bool = True, **changes: Any) -> dict[str, Any]:
    return dpgen_methane.param(model_devi_plumed=plumed, model_devi_jobs=[job(**changes)])


def converted(plumed: bool = True, **changes: Any) -> Converted:
    here = Places(Path("/home/me/run"), Path("/home/me/run"))
    values = without_comments(param(plumed, **changes))
    return convert(values, "methane", here, None, Begun())


def refusal(plumed: bool = True, **changes: Any) -> str:
    with pytest.raises(SpecError) as refused:
        converted(plumed, **changes)
    said = str(refused.value)
    assert "\n" not in said
    return said


def test_a_job_with_a_template_is_a_stage_with_that_engine() -> None:
    (stage,) = Spec.model_validate(converted().document).stages
    assert stage.engine == Template(
        kind="template",
        lammps="lmp/in.lammps",
        plumed="lmp/in.plumed",
        revisions={"plumed": {"V_PACE": [10, 20]}},
        system_revisions={
            "sys-000": {"lammps": {"V_TAU": [0.1]}},
            "sys-001": {"lammps": {"V_TAU": [0.1, 0.2]}},
        },
    )
    assert (stage.md.steps, stage.md.every, stage.temperatures) == (200, 10, (300.0, 600.0))
    assert stage.pressures == ()
    conditions = list(stage.conditions())
    assert len(conditions) == 2 * 2 + 2 * 4, "temperatures times each system's own rows"


def test_without_plumed_its_words_are_told_as_unused() -> None:
    found = converted(plumed=False)
    (stage,) = Spec.model_validate(found.document).stages
    assert isinstance(stage.engine, Template)
    assert stage.engine.plumed is None
    assert stage.engine.revisions.rows() == (({}, {}),)
    fates = {line.key: line.fate for line in found.lines}
    assert fates["model_devi_jobs[].template.lmp"] == "mapped"
    assert fates["model_devi_jobs[].template.plm"] == "unused"
    assert fates["model_devi_jobs[].rev_mat.plm"] == "unused"


def test_what_a_template_says_itself_is_told() -> None:
    found = converted(ensemble="npt", press=[1.0], taut=0.1, nsteps=200, temps=[300, 600], dt=0.001)
    fates = {line.key.rpartition(".")[2]: line.fate for line in found.lines}
    assert (fates["ensemble"], fates["press"], fates["taut"]) == ("unused",) * 3
    assert (fates["nsteps"], fates["temps"], fates["dt"]) == ("mapped",) * 3
    assert found.document["stages"][0]["md"]["timestep"] == 0.001
    assert any("only the committee gives forces" in text for text in found.differences)


def test_steps_and_a_temperature_beside_a_template_without_their_words() -> None:
    (stage,) = converted(rev_mat=..., nsteps=100, temps=[300]).document["stages"]
    assert (stage["md"]["steps"], stage["temperatures"]) == (100, [300])


WORDS = {"V_NSTEPS": [9], "V_TEMP": [300]}
NATIVE = {"template": ..., "nsteps": 100, "temps": [300], "ensemble": "nvt"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rev_mat": {}}, "0.nsteps: missing; set it, or V_NSTEPS in rev_mat.lmp"),
        ({"rev_mat": {}, "nsteps": 9}, "0.temps: missing; set it, or V_TEMP in rev_mat.lmp"),
        (
            {"rev_mat": {}, "nsteps": 9, "temps": [1, 2]},
            "temps: [1.0, 2.0]: a template allows one value",
        ),
        (
            {"nsteps": 300},
            "0.nsteps: 300: contradicts V_NSTEPS ([200]), which DP-GEN uses; remove nsteps",
        ),
        (
            {"rev_mat": {"lmp": {"V_NSTEPS": [1, 2]}}},
            "nsteps: [1.0, 2.0]: a template allows one value",
        ),
        ({"rev_mat": {"lmp": {"V_NSTEPS": ["inf"]}}}, "lmp.V_NSTEPS: ['inf']: must be numbers"),
        ({"rev_mat": {"lmp": {"V_NSTEPS": [1.5]}}}, "0.nsteps: 1.5: must be a positive integer"),
        ({"rev_mat": {"lpm": {}}}, "0.rev_mat.lpm: unknown key"),
        ({"template": {"lmp": "a", "plm": "b", "pml": "c"}}, "0.template.pml: unknown key"),
        (
            {"template": {"lmp": "in.lammps"}},
            "0.template.plm: missing; model_devi_plumed requires it",
        ),
        ({"template": {"plm": "in.plumed"}}, "0.template.lmp: missing"),
        ({"sys_rev_mat": {"7": {}}}, "0.sys_rev_mat: '7' is not in sys_idx"),
        (
            {"rev_mat": {"lmp": {**WORDS, "A": [1]}, "plm": {"A": [2]}}},
            "0.rev_mat.plm.A: [2]: DP-GEN uses [1] instead; remove it",
        ),
        (
            {"rev_mat": {"lmp": {"V_NSTEPS": [9]}}, "sys_rev_mat": {"1": {"lmp": {"V_TEMP": [1]}}}},
            "0.sys_rev_mat: V_TEMP: differs between the systems of a job; split the job",
        ),
        (
            {"sys_rev_mat": {"1": {"lmp": {"V_PACE": [1]}}}},
            "0.sys_rev_mat.1.lmp.V_PACE: also in rev_mat.plm",
        ),
        ({**NATIVE, "rev_mat": ..., "sys_rev_mat": ...}, "0.template: missing; model_devi_plumed"),
        ({**NATIVE, "rev_mat": ...}, "0.sys_rev_mat: allowed only with a template; remove it"),
        ({**NATIVE, "nsteps": ..., "rev_mat": ...}, "0.nsteps: missing"),
        ({"nbeads": 4}, "0.nbeads: not supported together with a template"),
        (
            {"Ts": [300], "temps": [600]},
            "Ts: [300]: contradicts temps: [600], which is the same key",
        ),
        ({"t_freq": 5}, "0: t_freq: 5: contradicts trj_freq: 10, which is the same key; keep one"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(**changes)


def test_a_key_with_both_its_names_and_one_value_is_taken() -> None:
    assert converted(t_freq=10).document["stages"][0]["md"]["every"] == 10


def test_templates_are_read_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "lmp").mkdir()
    path = dpgen_methane.write_files(tmp_path, param())
    with pytest.raises(SpecError, match=r"lmp/in.lammps: cannot be read"):
        load_campaign(path, "tblite")
    (tmp_path / "lmp" / "in.lammps").write_text(LAMMPS)
    (tmp_path / "lmp" / "in.plumed").write_text(PLUMED)
    (stage,) = load_campaign(path, "tblite").stages
    assert isinstance(stage.engine, Template)
    assert (stage.engine.lammps, stage.engine.plumed) == (LAMMPS, PLUMED)
    for condition in stage.conditions():
        row = stage.engine.rows(condition.system)[condition.revision or 0]
        parsed = parse(stage.engine, standard_words(stage.md, condition, 1), row, stage.md)
        assert parsed.plumed == 0
        bias = plumed_text(stage.engine, standard_words(stage.md, condition, 1), row)
        assert f"SIGMA={row[0]['V_TAU']} HEIGHT=0.1 PACE={row[1]['V_PACE']} TEMP=" in bias
        assert bias.endswith(f"TEMP={condition.temperature}\n")
        assert f"temp {condition.temperature} {condition.temperature} 0." in parsed.setup[0]


def test_a_file_in_another_order_than_its_numbers_is_told(tmp_path: Path) -> None:
    (tmp_path / "lmp").mkdir()
    (tmp_path / "lmp" / "in.lammps").write_text(LAMMPS)
    (tmp_path / "lmp" / "in.plumed").write_text(PLUMED)
    spec = load_campaign(dpgen_methane.write_files(tmp_path, param()), "tblite")
    ours, theirs = (
        canonical(Frame(species, np.arange(6.0).reshape(2, 3), None))
        for species in (("C", "H"), ("H", "C"))
    )
    files = {"sys-000": [("a", ours)], "sys-001": [("a", ours), ("b", theirs)]}
    (said,) = misnumbered(spec, files.__getitem__)
    assert said.startswith(
        "stages.0.engine.plumed: b: atom numbers refer to atoms sorted by element"
    )
    (tmp_path / "lmp" / "in.plumed").write_text(PLUMED.replace("1,5", "@C1,@H4"))
    named = load_campaign(tmp_path / "param.json", "tblite")
    assert list(misnumbered(named, files.__getitem__)) == []


@pytest.mark.skipif(DATA is None, reason="DPSTREAM_TEST_DATA names no folder of recorded data")
def test_dpgens_own_example_of_enhanced_sampling() -> None:
    found = convert_file(EXAMPLE, EXAMPLE.parent, None, None, None)
    assert [stage.md.steps for stage in spec_of(found, EXAMPLE).stages] == [20000, 50000, 300000]
    spec = load_campaign(EXAMPLE, "tblite")
    for stage in spec.stages:
        assert isinstance(stage.engine, Template)
        assert stage.engine.rows("any") == (({"V_PRES": 1}, {"V_STRIDE": 10}),)
        (condition,) = stage.conditions()
        words = standard_words(stage.md, condition, 1)
        parsed = parse(stage.engine, words, stage.engine.rows(condition.system)[0], stage.md)
        assert parsed.plumed is not None
        assert "variable        TEMP            equal 300.0" in parsed.setup
