"""DP-GEN's param file with `model_devi_engine: gromacs`, and the folders of its systems."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpstream.dpgen.load import convert_file, load_campaign
from dpstream.inputs.gather import gather
from dpstream.shared.errors import SpecError
from dpstream.shared.spec.engines import Gromacs
from tests.support.dpgen import dpgen_methane
from tests.support.programs.gromacs import MDP, METHANE, gro_of_methane
from tests.support.workers.explorer import CH4

FILES = {
    "md.mdp": MDP,
    "processed.top": METHANE,
    "npt.gro": gro_of_methane(),
    "type.raw": "0 0 1 0 0\n",
}
SETTINGS = {
    "mdp_filename": "md.mdp",
    "topol_filename": "processed.top",
    "conf_filename": "npt.gro",
    "index_filename": "index.raw",
    "ref_filename": "em.tpr",
    "traj_filename": "deepmd_traj.gro",
    "group_name": "Other",
}
JOB = {"sys_idx": [0, 1], "temps": [250.0], "trj_freq": 5, "nsteps": 100, "lambdas": [1.0]}


def write(folder: Path, **changes: Any) -> Path:
    for name in ("a", "b"):
        (folder / "sys" / name).mkdir(parents=True)
        for file, text in FILES.items():
            (folder / "sys" / name / file).write_text(text)
    own: dict[str, Any] = {
        "model_devi_engine": "gromacs",
        "gromacs_settings": SETTINGS,
        "sys_configs_prefix": "sys",
        "sys_configs": [["a"], ["b"]],
        "sys_charges": [0, 1],
        "sys_format": "gromacs/gro",
        "model_devi_nopbc": True,
        "model_devi_jobs": [JOB],
    }
    dpgen_methane.write_structures(folder / "data")
    return dpgen_methane.write_files(folder, {**dpgen_methane.param(**own), **changes})


def test_it_becomes_a_source_of_frames(tmp_path: Path) -> None:
    path = write(tmp_path)
    spec = load_campaign(path, "tblite")
    (stage,) = spec.stages
    assert isinstance(stage.engine, Gromacs)
    assert (stage.engine.mdp, stage.engine.max_warnings) == (MDP, 1)
    assert stage.engine.topologies == {"sys-000": METHANE, "sys-001": METHANE}
    assert stage.engine.elements == {"C": "C", "H1": "H", "H2": "H", "H3": "H", "H4": "H"}
    assert (stage.md.steps, stage.md.every, stage.md.ensemble) == (100, 5, "nvt")
    assert stage.temperatures == (250.0,)
    label = spec.systems["sys-001"].label
    assert label is not None
    assert label.charge == 1
    (tmp_path / "data" / "init").mkdir()
    dpgen_methane.write_labels(tmp_path / "data" / "init", 1)
    (found,) = gather(spec, tmp_path).systems["sys-000"]
    assert found.species == CH4.species
    assert found.cell is not None, "DP-GEN ignores model_devi_nopbc with GROMACS"
    np.testing.assert_allclose(found.cell, 20 * np.eye(3))
    moved = found.positions - CH4.positions
    np.testing.assert_allclose(moved - 20 * np.rint(moved / 20), 0, atol=0.006)


def test_every_key_has_its_account(tmp_path: Path) -> None:
    lines = {
        line.key: line for line in convert_file(write(tmp_path), tmp_path, None, None, None).lines
    }
    assert lines["sys_charges"].words == "systems.*.label.charge"
    assert lines["gromacs_settings.index_filename"].fate == "unused"
    assert lines["model_devi_jobs[].lambdas"].fate == "unused"
    converted = convert_file(tmp_path / "param.json", tmp_path, None, None, None)
    assert any("without the models" in text for text in converted.differences)


def test_a_barostat_has_the_pressure_of_its_run_parameters(tmp_path: Path) -> None:
    path = write(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "sys" / name / "md.mdp").write_text(MDP + "Pcoupl = C-rescale\nref_p = 5 5\n")
    stage = convert_file(path, tmp_path, None, None, None).document["stages"][0]
    assert (stage["md"]["ensemble"], stage["pressures"]) == ("npt", [5.0])


GAUSSIAN = {"fp_style": "gaussian", "fp_params": {"keywords": "force b3lyp/6-31g*", "nproc": 1}}


@pytest.mark.parametrize(
    ("changes", "code", "dropped", "said"),
    [
        ({}, "tblite", False, "not used with model_devi_engine gromacs"),
        (GAUSSIAN, None, True, "molecules in vacuum, because gaussian computes no periodic"),
        (
            {**GAUSSIAN, "use_clusters": True, "cluster_cutoff": 3.0},
            None,
            False,
            "not used with model_devi_engine gromacs",
        ),
    ],
)
def test_the_cell_is_dropped_only_for_codes_of_molecules(
    tmp_path: Path, changes: dict[str, Any], code: str | None, dropped: bool, said: str
) -> None:
    converted = convert_file(write(tmp_path, **changes), tmp_path, None, code, None)
    system = converted.document["systems"]["sys-000"]
    assert ("periodic" in system) == dropped
    assert any(
        text.startswith("model_devi_nopbc") and said in text for text in converted.differences
    )


def test_a_barostat_without_cell_names_the_keys(tmp_path: Path) -> None:
    path = write(tmp_path, **GAUSSIAN)
    for name in ("a", "b"):
        (tmp_path / "sys" / name / "md.mdp").write_text(MDP + "pcoupl = C-rescale\n")
    with pytest.raises(SpecError, match=r"md\.mdp: pcoupl: a barostat.*but model_devi_nopbc"):
        convert_file(path, tmp_path, None, None, None)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("pcoupltype = semiisotropic\nref-p = 1 2\n", "ref-p = 1 2: a stage has one pressure"),
        ("pcoupltype = anisotropic\nref-p = 1 1 100 0 0 0\n", "a stage has one pressure"),
        ("pcoupltype = anisotropic\nref-p = 1 1 1 0 5 0\n", "and zeros off the diagonal"),
        ("ref-p = P\n", r"md\.mdp: mdp: ref-p = P: must be numbers, bar"),
        ("ref_p =\n", "must be numbers, bar"),
    ],
)
def test_a_stage_has_one_pressure(tmp_path: Path, lines: str, said: str) -> None:
    path = write(tmp_path, sys_configs=[["a"], ["a"]])
    (tmp_path / "sys" / "a" / "md.mdp").write_text(f"{MDP}pcoupl = C-rescale\n{lines}")
    with pytest.raises(SpecError, match=said):
        convert_file(path, tmp_path, None, None, None)


def test_blank_lines_after_the_cell_are_no_atoms(tmp_path: Path) -> None:
    path = write(tmp_path, sys_configs=[["a"], ["a"]])
    gro = tmp_path / "sys" / "a" / "npt.gro"
    gro.write_text(gro_of_methane() + "\n\n")
    engine = convert_file(path, tmp_path, None, None, None).document["stages"][0]["engine"]
    assert engine["elements"] == {"C": "C", "H1": "H", "H2": "H", "H3": "H", "H4": "H"}
    gro.write_text("methane\nfive\n")
    with pytest.raises(SpecError, match=r"npt\.gro: line 2: 'five': must be the number of atoms"):
        convert_file(path, tmp_path, None, None, None)


def test_only_dynamics_of_the_committee_needs_an_ensemble(tmp_path: Path) -> None:
    job = {**dpgen_methane.PARAM["model_devi_jobs"][0], "ensemble": None}
    param = dpgen_methane.param(model_devi_jobs=[job])
    path = dpgen_methane.write_files(tmp_path, param)
    with pytest.raises(SpecError, match=r"model_devi_jobs\.0\.ensemble: missing"):
        convert_file(path, tmp_path, None, "tblite", None)


def test_temperatures_are_dpgens_by_default(tmp_path: Path) -> None:
    job = {key: value for key, value in JOB.items() if key != "temps"}
    path = write(tmp_path, model_devi_jobs=[job])
    stage = convert_file(path, tmp_path, None, None, None).document["stages"][0]
    assert stage["temperatures"] == [298.0]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("type.raw", "0 0 1\n", "3 types, but npt.gro has 5 atoms; whole systems are judged"),
        ("type.raw", "0 0 9 0 0\n", "'9': must be an index of type_map"),
        ("md.mdp", MDP + "nstlist = 5\n", "md.mdp differs between the systems; split the job"),
        ("md.mdp", "include = -I/etc\n" + MDP, "differs between"),
    ],
)
def test_what_the_folders_must_contain(tmp_path: Path, file: str, text: str, said: str) -> None:
    path = write(tmp_path)
    (tmp_path / "sys" / "b" / file).write_text(text)
    with pytest.raises(SpecError, match=said):
        convert_file(path, tmp_path, None, None, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sys_charges": [0]}, "sys_charges: 1 for 2 sys_configs; give one for each"),
        ({"sys_configs": [["a"], ["c"]]}, "sys_configs.1: c: no such folder"),
        (
            {"sys_configs": [["a"], ["?"]], "gromacs_settings": {"conf_filename": "no.gro"}},
            "no.gro",
        ),
        ({"model_devi_jobs": [{**JOB, "temps": []}]}, "model_devi_jobs.0.temps"),
        ({"model_devi_jobs": [{**JOB, "nbeads": 4}]}, "do not go with model_devi_engine gromacs"),
    ],
)
def test_refusals_name_the_key(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        convert_file(write(tmp_path, **changes), tmp_path, None, None, None)


def test_folders_of_a_system_have_the_same_files(tmp_path: Path) -> None:
    path = write(tmp_path, sys_configs=[["?"], ["b"]])
    convert_file(path, tmp_path, None, None, None)
    (tmp_path / "sys" / "a" / "processed.top").write_text(METHANE + "; other\n")
    with pytest.raises(SpecError, match=r"processed\.top differs between its folders"):
        convert_file(path, tmp_path, None, None, None)
