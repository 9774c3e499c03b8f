"""The commands around a campaign, with real codes and models: label, doctor, init-*, test."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase import units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.io import read, write

import dpstream.commands.label
from dpstream.commands.doctor import doctor
from dpstream.inputs.read_labelled import read_labelled
from dpstream.properties.calculators import RecipeCalculator
from dpstream.running.label_here import frame_labeler
from dpstream.running.recipe_file import read_recipe
from dpstream.shared.errors import Permanent
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import Accepted, Rejected
from dpstream.terminal.console import console
from tests.support.command_line import run_command
from tests.support.workers.nvml import A100, DRIVER, H200, has_gpus

EMT_RECIPE = {"labels": {"code": "ase", "settings": {"calculator": "ase.calculators.emt.EMT"}}}
Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Call:
    """The command line in a folder with an EMT recipe; exit status and what was said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(console, "_width", None)  # that of the first test of this process
    (tmp_path / "emt.yaml").write_text(yaml.safe_dump(EMT_RECIPE))

    def called(*words: str) -> tuple[int, str]:
        status, out, err = run_command(monkeypatch, capfd, *words)
        return status, out + err

    return called


def rattled(count: int) -> list[Any]:
    frames = []
    for seed in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=seed)
        frames.append(atoms)
    return frames


# ------------------------------------------------------------------------------ label


def test_label_computes_once_lists_rejections_and_writes_a_dataset(
    call: Call, tmp_path: Path
) -> None:
    frames = rattled(3)
    close = bulk("Cu", cubic=True)
    close.positions[1] = close.positions[0] + [0.2, 0, 0]
    write("frames.extxyz", [*frames, close, frames[0]])
    status, said = call("label", "frames.extxyz", "--recipe", "emt.yaml", "--workers", "1")
    assert status == 1
    assert "5 frames, 4 of them unique: 3 computed, 0 cached, 1 rejected" in said
    assert "min-distance 1 3 atoms 0.200 Å apart, below 0.5 Å" in " ".join(said.split())
    kept = {path: path.stat().st_mtime_ns for path in Path("runs/labels").rglob("*.json")}
    status, said = call(
        "label", "frames.extxyz", "--recipe", "emt.yaml", "--retry", "--workers", "1"
    )
    assert "0 computed, 3 cached, 1 rejected" in said
    assert len(Path("labelled/rejected.jsonl").read_text().splitlines()) == 1
    assert kept == {path: path.stat().st_mtime_ns for path in Path("runs/labels").rglob("*.json")}
    imported = read_labelled(["labelled/deepmd"], tmp_path, ["Cu"], "initial.data").items
    expected = []
    for atoms in frames:
        atoms.calc = EMT()
        expected.append(atoms.get_potential_energy())
    assert [item.label.energy for item in imported] == pytest.approx(expected, abs=1e-5)
    stored = read("labelled/dataset.extxyz", ":")
    assert [atoms.get_potential_energy() for atoms in stored] == pytest.approx(expected, abs=1e-5)


def test_asked_to_stop_label_keeps_what_is_done(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("frames.extxyz", rattled(12))
    words = ("label", "frames.extxyz", "--recipe", "emt.yaml", "--workers", "1")
    hear = dpstream.commands.label.LabelJob._record

    def heard(job: dpstream.commands.label.LabelJob, verdict: Accepted | Rejected) -> None:
        hear(job, verdict)
        if len(job.accepted) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as changed:
        changed.setattr(dpstream.commands.label.LabelJob, "_record", heard)
        status, said = call(*words)
    assert status == 130
    done = len(list(Path("runs/labels").rglob("*.json")))
    assert 3 <= done < 12
    assert f"{done} computed" in said
    assert f"interrupted: {12 - done} frames are left" in said
    assert len(read("labelled/dataset.extxyz", ":")) == done
    status, said = call(*words)
    assert status == 0
    assert f"{12 - done} computed, {done} cached, 0 rejected" in said


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        ("lables: {code: tblite}", "bad.yaml: lables: unknown key; did you mean 'labels'?"),
        ("labels: {code: tblit}", "bad.yaml: labels.code: no labeling code 'tblit'; did you"),
        ("labels: {code: ase}", "bad.yaml: labels.settings.calculator: missing"),
        (
            "labels: {code: ase, settings: {calculator: no.such.Thing}}",
            "bad.yaml: labels.settings.calculator: no package 'no' is installed",
        ),
        (
            "labels: {code: ase, settings: {calculator: ase.calculators.emt.Thing}}",
            "labels: ase: AttributeError: module 'ase.calculators.emt' has no attribute 'Thing'",
        ),
    ],
)
def test_a_bad_recipe_is_one_line(call: Call, recipe: str, problem: str) -> None:
    write("frames.extxyz", rattled(1))
    Path("bad.yaml").write_text(recipe)
    status, said = call("label", "frames.extxyz", "--recipe", "bad.yaml")
    assert status == 2
    assert f"dpstream: {problem}" in said
    assert said.count("\n") == 1


# ------------------------------------------------------------------------------ the calculator


def test_the_recipe_as_calculator_gives_what_the_code_gives_and_remembers(tmp_path: Path) -> None:
    """Atoms in any order, a cell in any orientation; each point is computed once."""
    (tmp_path / "emt.yaml").write_text(yaml.safe_dump(EMT_RECIPE))
    method, _ = read_recipe(tmp_path / "emt.yaml")
    atoms = bulk("Cu") * 2
    atoms.symbols[3] = "Au"
    atoms.rattle(0.1, seed=3)
    expected = atoms.copy()
    expected.calc = EMT()
    store = FolderStore(tmp_path / "root")
    with frame_labeler(method, store, "test", threading.Event()) as open_campaign:
        for reused in (False, True):
            calculator = RecipeCalculator(open_campaign)
            atoms.calc = calculator
            assert atoms.get_forces() == pytest.approx(expected.get_forces(), abs=1e-4)
            assert atoms.get_stress() == pytest.approx(expected.get_stress(), abs=1e-6)
            assert calculator.computed == (0 if reused else 1)
        atoms.positions[1] = atoms.positions[0] + [0.1, 0, 0]
        with pytest.raises(Permanent, match=r"min-distance: atoms 0.100 Å apart"):
            atoms.get_potential_energy()


# ------------------------------------------------------------------------------ doctor


def write_copper_spec(**changes: Any) -> None:
    """A spec with its structure, in the working folder."""
    write("Cu.xyz", rattled(1), format="extxyz")
    spec = {
        "name": "small",
        "type_map": ["Cu"],
        "systems": {"copper": {"structures": ["Cu.xyz"]}},
        "initial": {"perturb": {"copies": 2}},
        "stages": [{"name": "cold", "systems": ["copper"], "temperatures": [50]}],
        **EMT_RECIPE,
    }
    Path("spec.yaml").write_text(yaml.safe_dump({**spec, **changes}))


@pytest.mark.soak
def test_the_doctor_finds_everything_that_runs_here(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_copper_spec()
    status, said = call("doctor", "spec.yaml")
    assert status == 0, said
    rows = {line.split("  ")[0]: line for line in said.splitlines()}
    assert "packages COLVARS" in rows["LAMMPS"]
    assert "backends tensorflow" in rows["DeePMD-kit"]
    assert "Cu4: " in rows["labels: ase"]
    assert "H2: -26.7211 eV" in rows["labels: tblite"]
    assert said.splitlines()[-1] == "this machine meets all requirements of spec.yaml"


def test_one_label_shows_what_was_read(call: Call) -> None:
    write_copper_spec()
    status, said = call("doctor", "spec.yaml", "--label-one")
    assert status == 0, said
    atoms = rattled(1)[0]
    atoms.calc = EMT()
    rows = dict(line.split(maxsplit=1) for line in said.splitlines())
    energy, forces, pressure = (
        float(rows[name].split()[at]) for name, at in (("energy", 0), ("forces", 0), ("virial", -2))
    )
    assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
    assert forces == pytest.approx(np.sqrt((atoms.get_forces() ** 2).mean()), rel=1e-3)
    stress = np.trace(atoms.get_stress(voigt=False)) / 3 / units.GPa
    assert pressure == pytest.approx(-stress, abs=2e-3)
    assert rows["program"].startswith("ase ")
    write_copper_spec(labels={**EMT_RECIPE["labels"], "max_force": 1e-3})
    status, said = call("doctor", "spec.yaml", "--label-one")
    assert status == 1
    assert said.startswith("rejected: max-force: largest force")
    assert call("doctor", "--label-one") == (2, "dpstream: --label-one: needs a SPEC\n")


def test_the_doctor_names_the_gpus_and_what_pytorch_lacks_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: name == "torch" or None)
    monkeypatch.setattr(doctor, "cudart_folder", lambda: None)
    has_gpus(monkeypatch, H200, A100)
    monkeypatch.setenv("DPSTREAM_DEVICE", "cuda:1")
    found = [(each.part, each.state, each.detail) for each in doctor._gpus()]
    assert found[:2] == [
        ("GPU", "works", f"cuda:0: NVIDIA H200 143771 MiB driver {DRIVER}, CUDA 13.0; not used"),
        ("GPU", "works", f"cuda:1: {A100.name} 40960 MiB driver {DRIVER}, CUDA 13.0"),
    ]
    assert found[2][:2] == ("libcudart.so.12", "missing")
    monkeypatch.setenv("DPSTREAM_DEVICE", "cuda:2")
    (finding,) = doctor._gpus()
    assert finding.state == "missing"
    monkeypatch.delenv("DPSTREAM_DEVICE")
    has_gpus(monkeypatch, H200, visible="")
    assert [each.state for each in doctor._gpus()] == ["absent", "absent"]


def test_the_doctor_names_a_backend_that_leaves_the_gpu_unused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has_gpus(monkeypatch, H200)
    finding = doctor._backend("tensorflow")
    assert finding.detail.endswith("on the CPU: it cannot use the GPU")
    assert finding.fix == "pip install 'deepmd-kit[gpu,cu12]'"
    missing = doctor._backend("jax")
    assert (missing.state, missing.fix) == ("missing", "pip install 'dpstream[jax]'")


def test_the_doctor_finds_a_keyword_that_gives_no_label(call: Call) -> None:
    """As do the commands that label by a recipe."""
    keywords = {"FORCE_EVAL": {"STRESS_TENSOR": "NUMERICAL"}}
    labels = {"code": "cp2k", "version": "2023.1", "settings": {"keywords": keywords}}
    write_copper_spec(labels=labels)
    (finding,) = doctor._spec(Path("spec.yaml"))[2]
    words = "labels.settings.keywords: FORCE_EVAL.STRESS_TENSOR: NUMERICAL: use ANALYTICAL"
    assert (finding.state, finding.detail) == ("missing", f"spec.yaml: {words}")
    status, said = call("label", "Cu.xyz", "--recipe", "spec.yaml")
    assert (status, words in said) == (2, True)


def test_the_doctor_says_how_to_mend_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = doctor._missing("x", Permanent("tblite is not installed; pip install y"))
    assert (finding.detail, finding.fix) == ("tblite is not installed", "pip install y")
    works, said = doctor._probe("raise SystemExit('lacks the pair style deepmd')")
    assert (works, said) == (False, "lacks the pair style deepmd")
    (store,) = (doctor._place("DPSTREAM_SCRATCH", tmp_path / "none"),)
    assert (store.state, store.fix) == ("missing", "set DPSTREAM_SCRATCH")
    monkeypatch.setattr(doctor, "LEAST_FREE", 1e18)
    assert doctor._disk(str(tmp_path)).state == "missing"


# ------------------------------------------------------------------------------ initial data


def init_params(**changes: Any) -> str:
    document = {
        "elements": ["Al"],
        "cell_type": "fcc",
        "latt": 4.1,
        "super_cell": [1, 1, 1],
        "scale": [0.98, 1.0],
        "pert_numb": 1,
        "pert_box": 0.03,
        "pert_atom": 0.05,
        "coll_ndata": 100,
        "potcars": ["POTCAR"],
        **changes,
    }
    Path("param.json").write_text(json.dumps(document))
    return "param.json"


def test_init_bulk_relaxes_perturbs_moves_and_collects(call: Call, tmp_path: Path) -> None:
    words = (
        "init-bulk",
        init_params(md_nstep=3, coll_ndata=11),
        "--recipe",
        "emt.yaml",
        "--workers",
        "1",
    )
    status, said = call(*words)
    assert status == 0, said
    assert "potcars: not used: the recipe determines the potentials" in said
    assert "bulk: relaxed, -0.0049 eV/atom" in said  # EMT's zero is fcc near its minimum
    assert "4 structures, at most 12 labels" in said
    assert "coll_ndata: 11 of 12 labelled frames are written" in said
    imported = read_labelled(["init-bulk/deepmd"], tmp_path, ["Al"], "initial.data").items
    assert len(imported) == 11
    assert all(item.label.virial is not None for item in imported)
    assert len({item.label.energy for item in imported}) == 11
    edge = imported[0].frame.cell
    assert edge is not None
    assert edge[0, 0] / 0.98 == pytest.approx(3.994, abs=0.01)  # relaxed, not as given
    labels = sorted(Path("runs/labels").rglob("*.json"))
    dataset = Path("init-bulk/dataset.extxyz").read_bytes()
    assert call(*words)[0] == 0
    assert sorted(Path("runs/labels").rglob("*.json")) == labels
    assert Path("init-bulk/dataset.extxyz").read_bytes() == dataset


def test_a_trajectory_that_breaks_down_keeps_its_frames(call: Call) -> None:
    recipe = {"labels": {**EMT_RECIPE["labels"], "max_force": 0.5}}
    Path("emt.yaml").write_text(yaml.safe_dump(recipe))
    still = {"pert_numb": 0, "pert_atom": 0.0, "pert_box": 0.0, "skip_relax": True}
    param = init_params(md_nstep=2, scale=[0.97, 0.8], **still)
    heat = ("--temperature", "2000", "--timestep", "20", "--workers", "1")
    words = (param, "--recipe", "emt.yaml", *heat)
    status, said = call("init-bulk", *words)
    assert status == 1
    assert "max-force: largest force" in said
    assert len(read("init-bulk/dataset.extxyz", ":")) == 2


def test_init_surf_labels_slabs_pulled_apart(call: Call) -> None:
    param = init_params(
        millers=[[1, 1, 1]], layer_numb=2, vacuum_max=5.0, vacuum_resol=[2.0], scale=[1.0]
    )
    status, said = call(
        "init-surf", param, "--recipe", "emt.yaml", "--fmax", "0.1", "--workers", "1"
    )
    assert status == 0, said
    assert "6 structures, at most 6 labels" in said
    slabs = read("init-surf/dataset.extxyz", ":")
    assert sorted({round(atoms.cell[2, 2] - slabs[0].cell[2, 2]) for atoms in slabs[::2]}) == [
        0,
        2,
        4,
    ]


# ------------------------------------------------------------------------------ test


@pytest.mark.soak
def test_a_model_beside_its_recipe(call: Call, periodic_committee: list[Path]) -> None:
    write("Al.cif", bulk("Al", cubic=True))
    words = ("--recipe", "emt.yaml", "--properties", "relaxation,eos", "--fmax", "0.02")
    status, said = call("test", str(periodic_committee[0]), "Al.cif", *words)
    assert status == 0, said
    found = json.loads(Path("properties/properties.json").read_text())
    eos = found["structures"]["Al.cif"]["eos"]
    moduli = [eos[side]["values"][2] for side in ("model", "recipe")]
    assert [m["name"] for m in moduli] == ["B", "B"]
    assert moduli[1]["number"] == pytest.approx(39.3, abs=1)  # EMT's
    assert 20 < moduli[0]["number"] < 90  # it was taught by EMT, a little
    assert moduli[0]["number"] != moduli[1]["number"]
    assert Path("properties/properties-0.png").read_bytes().startswith(b"\x89PNG")


def test_two_recipes_side_by_side_and_bad_words(call: Call) -> None:
    write("H2.xyz", molecule("H2"))
    status, said = call("test", "emt.yaml", "H2.xyz", "--recipe", "emt.yaml")
    assert status == 0, said
    assert "shortest distance" in said
    for words, problem in (
        (("--properties", "eoss"), "--properties: unknown property 'eoss'; did you mean 'eos'?"),
        (("--miller", "1,1"), "--miller: '1,1': must be three indices, not all zero"),
        (("--line", "1,1,1"), "--line: '1,1,1': must be a plane and a shift"),
    ):
        status, said = call("test", "emt.yaml", "H2.xyz", "--recipe", "emt.yaml", *words)
        assert (status, said.count("\n")) == (2, 1)
        assert problem in said
    Path("model.pb").write_text("no model")
    status, said = call("test", "gone.pb", "H2.xyz", "--recipe", "emt.yaml")
    assert (status, said) == (2, "dpstream: MODEL: gone.pb: no such file\n")
