"""Files and keys of DP-GEN that a run does not use: they are named, and stop nothing."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from dpstream.commands.read_spec import prepared
from dpstream.dpgen.key_table import STRAY, read
from dpstream.dpgen.load import convert_file, load_campaign
from dpstream.dpgen.machines.here import COMMANDS, adopt, read_here
from dpstream.dpgen.machines.machine import read_machine
from dpstream.dpgen.machines.pools import Labels, read_pools
from dpstream.services.labeler.recipes import make_recipe
from dpstream.shared.errors import SpecError
from dpstream.terminal.plan import recipe_words
from tests.support.command_line import run_command
from tests.support.dpgen import dpgen_methane

DATA = os.environ.get("DPSTREAM_TEST_DATA")
GAUSSIAN: dict[str, Any] = {
    "fp_style": "gaussian",
    "fp_params": {"keywords": "force b3lyp/6-31g*", "npar": 4},
    "zzz": 1,
}
CUSTOM: dict[str, Any] = {
    "fp_style": "custom",
    "fp_params": {
        "input_fmt": "ase:extxyz",
        "input_fn": "in.xyz",
        "output_fmt": "ase:extxyz",
        "output_fn": "out.xyz",
    },
}


@pytest.fixture(autouse=True)
def no_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMANDS, "")


def machine(**fp: Any) -> dict[str, Any]:
    return {**dpgen_methane.MACHINE, "fp": [{**dpgen_methane.PART, **fp}]}


def written(folder: Path, param: dict[str, Any], fp: dict[str, Any] | None = None) -> Path:
    path = dpgen_methane.write_files(folder, dpgen_methane.param(**param))
    (folder / "machine.json").write_text(json.dumps(machine(**(fp or {}))))
    return path


# ------------------------------------------------------------------------------------- param.json


def test_stray_keys_and_those_of_other_styles_are_named(tmp_path: Path) -> None:
    said: list[str] = []
    path = written(tmp_path, GAUSSIAN)
    load_campaign(path, None, say=said.append)
    assert said == [
        f"{path}: ignored, as by DP-GEN: zzz, fp_pp_path, fp_pp_files, fp_incar, fp_params.npar; "
        "dpstream import explains all keys"
    ]
    found = {line.key: line.words for line in convert_file(path, tmp_path, None, None, None).lines}
    assert found["zzz"] == STRAY
    assert found["fp_pp_path"] == "fp_style gaussian has no such key"


@pytest.mark.parametrize("code", ["gaussian", "siesta"])
def test_user_fp_params_are_used_instead_of_fp_params(code: str, tmp_path: Path) -> None:
    own = {"keywords": "force pbepbe/6-31g*", "ecut": 300}
    path = written(tmp_path, {"fp_style": code, "user_fp_params": own, "fp_params": {}})
    settings = convert_file(path, tmp_path, None, None, None).document["labels"]["settings"]
    assert settings.get("keywords", own["keywords"]) == own["keywords"]
    assert settings.get("fdf", {"MeshCutoff": "300 Ry"})["MeshCutoff"] == "300 Ry"


def test_keys_of_other_engines_are_ignored(tmp_path: Path) -> None:
    jobs = [{**job, "PopSize": 5, "s_t": True} for job in dpgen_methane.PARAM["model_devi_jobs"]]
    own = {"vsc": False, "cutoff": 6.0, "fp_nbands_esti_data": "x", "model_devi_jobs": jobs}
    own |= {"training_reuse_decay_steps": 500}
    path = written(tmp_path, own)
    fates = {line.key: line.fate for line in convert_file(path, tmp_path, None, None, None).lines}
    keys = ("vsc", "cutoff", "training_reuse_decay_steps")
    assert [fates[key] for key in keys] == ["ignored"] * 3
    keys = ("model_devi_jobs[].PopSize", "model_devi_jobs[].s_t")
    assert [fates[key] for key in keys] == ["ignored", "unused"]
    assert fates["fp_nbands_esti_data"] == "unused", "DP-GEN: only with use_ele_temp"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"pick_data": "x"}, "a param.json of `dpgen simplify`; run: dpstream simplify"),
        ({"super_cell": [1, 1, 1], "md_nstep": 9}, "run: dpstream init-bulk"),
        ({"super_cell": [1, 1, 1], "millers": []}, "run: dpstream init-surf"),
        ({"train_machine": {}, "fp_machine": {}}, "run param.json"),
    ],
)
def test_files_of_other_commands_name_the_command(
    keys: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(keys))
    for load in (
        lambda: load_campaign(path, None),
        lambda: convert_file(path, tmp_path, None, None, None),
    ):
        with pytest.raises(SpecError, match=re.escape(words)):
            load()


def test_user_fp_params_of_pwmat(tmp_path: Path) -> None:
    own = {"node1": 4, "node2": 1, "job": "SCF", "in.atom": "atom.config", "in.psp1": "H.UPF"}
    own |= {"ecut": 50, "mp_n123": "2 2 2 0 0 0 2"}
    document = dpgen_methane.param(fp_style="pwmat", user_fp_params=own)
    del document["fp_incar"]
    path = dpgen_methane.write_files(tmp_path, document)
    settings = convert_file(path, tmp_path, None, None, None).document["labels"]["settings"]
    assert settings["parallel"] == [4, 1]
    assert settings["etot_input"] == {"ECUT": 50, "MP_N123": "2 2 2 0 0 0 2"}
    document["user_fp_params"] |= {"kspacing": 0.3, "flag_symm": 2}
    del document["user_fp_params"]["mp_n123"]
    path.write_text(json.dumps(document))
    settings = convert_file(path, tmp_path, None, None, None).document["labels"]["settings"]
    assert settings["etot_input"] == {"ECUT": 50}
    assert (settings["kspacing"], settings["symmetry"]) == (0.3, 2)
    del document["user_fp_params"]["kspacing"]
    path.write_text(json.dumps(document))
    with pytest.raises(SpecError, match=r"user_fp_params.kspacing: missing; give it, or mp_n123"):
        convert_file(path, tmp_path, None, None, None)


def test_null_is_the_default_of_resources() -> None:
    nothing = {"number_node": None, "cpu_per_node": None, "gpu_per_node": None}
    pools, _ = read_pools(read_machine(machine(resources=nothing))[0][2:], OWN)
    assert pools[0].settings["cpus"] == 1


# ----------------------------------------------------------------------------------- machine.json


def test_stray_keys_of_machines_are_in_the_account() -> None:
    stray = {"local_root": "./", "job_name": "train", "wall_time": "24:00:00"}
    part = {**dpgen_methane.PART, "calypso_path": "/x", "resources": {"group_size": 5, **stray}}
    document = {"api_version": "1.0", "my_note": 1, "fp": [part]}
    ignored = [line.key for line in read_machine(document)[1] if line.fate == "ignored"]
    assert ignored == ["my_note", "fp.calypso_path", *(f"fp.resources.{key}" for key in stray)]


def test_the_oldest_form_names_the_command_of_lammps() -> None:
    document = {
        "train_machine": {"batch": "shell"},
        "lmp_command": "/usr/bin/lmp_mpi",
        "model_devi_machine": {"batch": "shell"},
        "fp_command": "cp2k.ssmp",
        "fp_machine": {"batch": "shell"},
    }
    machines, lines = read_machine(document)
    assert [each.command for each in machines] == [None, "/usr/bin/lmp_mpi", "cp2k.ssmp"]
    assert not [line for line in lines if line.fate == "ignored"]


@pytest.mark.skipif(DATA is None, reason="DPSTREAM_TEST_DATA names no folder of recorded data")
def test_recorded_machine_files_with_stray_keys() -> None:
    for path in Path(DATA or "", "cases/machine-json-refused").glob("*.json"):
        machines, lines = read_machine(read(path))
        assert [each.service for each in machines] == ["trainer", "explorer", "labeler"]
        assert [each.command for each in machines][1:] in (
            ["/usr/bin/lmp_mpi", "cp2k.ssmp"],
            ["lmp", "cp2k.ssmp"],
        )
        ignored = [line.key for line in lines if line.fate == "ignored"]
        wanted = ["train.resources.local_root", "train.resources.job_name"]
        wanted.append("train.resources.wall_time")
        assert ignored == (wanted if "stray" in path.name else [])


def test_a_run_takes_a_machine_file_it_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The structures are missing, so that the command ends after the machine file."""
    path = written(tmp_path, {}, {"resources": {"cpu_per_nod": 4}})
    words = ("validate", path, tmp_path / "machine.json", "--code", "tblite")
    status, out, err = run_command(monkeypatch, capsys, *words)
    assert status == 2
    assert "machine.json: not used by workers on this machine (fp.resources.cpu_per_nod:" in out
    assert "POSCAR" in err
    (tmp_path / "machine.json").unlink()
    status, _, err = run_command(monkeypatch, capsys, *words)
    assert (status, "machine.json: cannot be read" in err) == (2, True)


# --------------------------------------------------------------------------- the command of labels


def test_the_command_of_fp_labels_on_this_machine(tmp_path: Path) -> None:
    written(tmp_path, {}, {"command": "sh label.sh > log"})
    given = read_here(tmp_path / "machine.json")
    assert "labels with the command of fp: custom=sh label.sh;" in adopt(given, OWN)
    assert os.environ[COMMANDS] == "custom=sh label.sh"
    os.environ[COMMANDS] = "custom=sh other.sh"
    assert "not used by workers on this machine;" in adopt(given, OWN)
    assert os.environ[COMMANDS] == "custom=sh other.sh"


def test_workers_that_join_a_deployment_do_not_get_the_command(tmp_path: Path) -> None:
    """`prepared` stops at the missing structures, after the machine file."""
    path = written(tmp_path, CUSTOM, {"command": "sh label.sh"})
    given = read_here(tmp_path / "machine.json")
    for engines, command in ((False, ""), (True, "custom=sh label.sh")):
        with pytest.raises(SpecError, match="POSCAR"):
            prepared(path, None, None, engines, machine=given)
        assert os.environ[COMMANDS] == command


OWN = Labels("custom", is_own=True)


@pytest.mark.parametrize(
    ("fp", "why"),
    [
        ({"command": "no-such-program x"}, "(fp.command: no-such-program: no such program on this"),
        ({"machine": {"batch_type": "Slurm", "context_type": "LocalContext"}}, "machine; dpstream"),
        ({"resources": {"cpu_per_node": "many"}}, "(fp.resources.cpu_per_node: 'many': must be"),
    ],
)
def test_commands_that_do_not_start_here_are_not_used(
    fp: dict[str, Any], why: str, tmp_path: Path
) -> None:
    written(tmp_path, {}, {"command": "sh x.sh", **fp})
    assert why in adopt(read_here(tmp_path / "machine.json"), OWN)
    assert os.environ[COMMANDS] == ""


def test_a_launcher_alone_is_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mpirun", "label"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    written(tmp_path, {}, {"command": "mpirun -n 4 /opt/vasp_std"})
    why = "fp.command: /opt/vasp_std: no such program on this machine"
    assert why in adopt(read_here(tmp_path / "machine.json"), OWN)
    assert os.environ[COMMANDS] == ""
    written(tmp_path, {}, {"command": "mpirun -n 4 label"})
    adopt(read_here(tmp_path / "machine.json"), OWN)
    assert os.environ[COMMANDS] == "custom=mpirun -n 4 label"


# ---------------------------------------------------------------------------------- custom program


def test_a_custom_program_needs_no_version(tmp_path: Path) -> None:
    (tmp_path / "label.sh").write_text("echo")
    (tmp_path / "model.bin").write_bytes(b"\xff")
    files = {"command": "sh label.sh", "user_forward_files": ["label.sh", "model.bin"]}
    path = written(tmp_path, CUSTOM, files)
    machines = read_here(tmp_path / "machine.json").machines
    said: list[str] = []
    spec = load_campaign(path, None, None, machines, said.append)
    assert [line for line in said if "model.bin: not a UTF-8 text file" in line]
    assert spec.labels.settings["files"] == {"label.sh": "echo"}
    recipe = make_recipe(spec.labels)
    assert recipe.version.startswith("custom unversioned ")
    assert "the program has no stated version: labels are not shared" in recipe_words(recipe)

    def version(name: str | None, *given: Any) -> str | None:
        return load_campaign(path, None, name, *given).labels.version

    assert version(None, machines) == spec.labels.version
    assert version("other", machines) != spec.labels.version
    assert version(None) != spec.labels.version
    notes = convert_file(path, tmp_path, None, None, None, machines).differences
    assert any("model.bin: not a UTF-8 text file" in note for note in notes)
    assert any("its labels are not shared with other campaigns" in note for note in notes)


def test_a_forwarded_file_that_labelers_refuse_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "label.py").write_text("#!/usr/bin/env python3\nprint(7 // 2)\n")
    path = written(tmp_path, CUSTOM, {"user_forward_files": ["label.py"]})
    machines = read_here(tmp_path / "machine.json").machines
    with pytest.raises(SpecError, match=r"label.py: '//' may be .*; remove it .* by its full path"):
        load_campaign(path, None, None, machines)
    (tmp_path / "label.py").write_text("#!/usr/bin/env python3\nprint(7)\n")
    assert load_campaign(path, None, None, machines).labels.settings["files"]


def test_a_misspelt_key_that_matters_is_refused(tmp_path: Path) -> None:
    params = {**CUSTOM["fp_params"], "output_fnn": "x"}
    path = written(tmp_path, {**CUSTOM, "fp_params": params})
    with pytest.raises(SpecError, match=r"fp_params.output_fnn: unknown key; did you mean"):
        load_campaign(path, None)
