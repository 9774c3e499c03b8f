"""A dataset as a campaign whose frames are given: what is read, the spec, DP-GEN's parameters."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from dpstream import cli
from dpstream.commands.simplify import parse_columns
from dpstream.dpgen.simplify import TABLE, read_simplify
from dpstream.inputs.frames_as_given import runs
from dpstream.inputs.gather import Gathered, gather
from dpstream.inputs.systems import SystemStructures
from dpstream.running.submit import submit
from dpstream.services.labeler.recipes import make_recipe
from dpstream.shared import messages as m
from dpstream.shared.atoms.dataset import Labelled, write_deepmd
from dpstream.shared.atoms.frames import (
    Batch,
    Frame,
    FrameLabel,
    canonical,
    decode_labelled,
    frame_key,
    from_ase,
)
from dpstream.shared.errors import SpecError
from dpstream.shared.runtime.device import Device
from dpstream.shared.spec import Spec
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import Ref, Trust, campaign_uri, label_uri
from dpstream.simplify.campaign import campaign, trajectory_length
from dpstream.simplify.pool import SimplifyPool, read_pool
from dpstream.simplify.remainder import Remainder, measuring
from tests.support.campaigns.archived import frames_of
from tests.support.campaigns.campaign_simulator import CampaignSimulator, spec
from tests.support.campaigns.lossy_delivery import LossyDelivery
from tests.support.dpgen import dpgen_methane
from tests.support.workers.nvml import H200, has_gpus

pytestmark = pytest.mark.usefixtures("one_parser")


def shaken(formula: str = "CH4", count: int = 6) -> list[Any]:
    """Atoms with labels made up, the last one a copy of the first."""
    rng, found = np.random.default_rng(len(formula)), []
    for _ in range(count - 1):
        atoms = molecule(formula)
        atoms.rattle(0.05, rng=rng)
        forces = rng.normal(0, 1, atoms.positions.shape)
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=forces)
        found.append(atoms)
    return [*found, found[0]]


@pytest.fixture
def mixed(tmp_path: Path) -> SimplifyPool:
    write(tmp_path / "a.extxyz", [*shaken(count=6), *shaken("C2H6", 4)])
    return read_pool(["a.extxyz"], tmp_path, (), labelled=True)


# ------------------------------------------------------------------------------ the dataset


def test_each_frame_comes_in_once_with_its_label(tmp_path: Path, mixed: SimplifyPool) -> None:
    assert (len(mixed.frames), len(mixed.labels), mixed.elements) == (8, 8, ["C", "H"])
    assert sorted(number for each in mixed.numbers.values() for number in each) == [*range(10)]
    assert [0, 5] in mixed.numbers.values()
    turned = list(reversed(shaken()))[:5]
    write(tmp_path / "b.extxyz", [*turned, *shaken("C2H6", 4)])
    assert read_pool(["b.extxyz"], tmp_path, (), labelled=True).digest == mixed.digest
    plain = read_pool(["[ab].extxyz"], tmp_path, (), labelled=False)
    assert (plain.frames.keys(), plain.labels) == (mixed.frames.keys(), {})


def test_folders_of_deepmd_systems_are_read_labelled_or_not(tmp_path: Path) -> None:
    form = canonical(from_ase(molecule("CH4")))
    label = FrameLabel(-1.5, np.arange(15.0).reshape(5, 3), None)
    write_deepmd([Labelled(form.frame, label, {})], tmp_path / "set" / "deep", ["H", "C"])
    for labelled in (True, False):
        pool = read_pool(["set"], tmp_path, (), labelled)
        (key,) = pool.frames
        assert key == frame_key(form.frame)
    (system,) = (tmp_path / "set" / "deep").iterdir()
    (system / "type_map.raw").unlink()
    with pytest.raises(SpecError, match=r"type_map\.raw is missing; set type_map in --spec"):
        read_pool(["set"], tmp_path, (), labelled=True)
    assert read_pool(["set"], tmp_path, ("H", "C"), labelled=False).frames.keys() == {key}


def test_frames_that_are_left_out_keep_their_numbers_and_are_told(tmp_path: Path) -> None:
    frames = shaken(count=4)
    frames[1].calc.results["forces"][0, 0] = np.nan
    write(tmp_path / "a.extxyz", frames)
    write(tmp_path / "b.extxyz", shaken("C2H6", 2))
    pool = read_pool(["[ab].extxyz"], tmp_path, (), labelled=True)
    assert sorted(n for each in pool.numbers.values() for n in each) == [0, 2, 3, 4, 5]
    (report,) = pool.reports
    assert (report.found, report.taken, report.left_out) == (6, 5, {"forces": 1})


def test_columns_of_other_names(tmp_path: Path) -> None:
    atoms = shaken()[0]
    atoms.info["E"], atoms.arrays["F"] = -7.0, atoms.get_forces()
    atoms.calc = None
    write(tmp_path / "a.extxyz", atoms)
    columns = parse_columns("energy=E, forces=F")
    pool = read_pool(["a.extxyz"], tmp_path, (), labelled=True, columns=columns)
    assert [label.energy for label in pool.labels.values()] == [-7.0]
    for text in ("E", "energy", "enrgy=E"):
        with pytest.raises(SpecError, match=r"--columns: '.*': must be energy=NAME, forces=NAME"):
            parse_columns(text)


def test_a_set_without_labels_needs_a_code(tmp_path: Path) -> None:
    write(tmp_path / "a.xyz", molecule("CH4"))
    with pytest.raises(SpecError, match=r"energy missing.*give a --spec with labels\.code"):
        read_pool(["a.xyz"], tmp_path, (), labelled=True)


# ------------------------------------------------------------------------------ the campaign


def simplified(pool: SimplifyPool, **settings: Any) -> Spec:
    return campaign({"trust": {"low": 0.2, "high": 9}, **settings}, "small", ["a.extxyz"], pool)


def test_the_spec_looks_at_all_frames_until_none_is_a_candidate(mixed: SimplifyPool) -> None:
    made = simplified(mixed, selection={"per_round": 3}, initial={"pick": 2})
    (stage,) = made.stages
    assert (stage.engine.kind, stage.md.steps, stage.md.stop_after) == ("frames", 100, 101)
    assert (made.mode, made.convergence.accurate_ratio, made.audit.per_round) == ("lockstep", 1, 0)
    assert (made.budget.labels, made.budget.rounds) == (8, 20 + 3)
    assert (made.labels.code, made.labels.settings) == ("dataset", {"sha256": mixed.digest})
    assert made.selection.min_distance == dict.fromkeys(("C-C", "C-H", "H-H"), 0.5)
    assert simplified(mixed, labels={"code": "tblite"}).labels.code == "tblite"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stages": []}, "stages: not allowed, as the dataset's frames are explored; remove it"),
        ({"trust": {"target": 0.1}}, "trust: give levels"),
        ({"selektion": {}}, "selektion: unknown key; did you mean 'selection'?"),
        ({"selection": 5}, "selection: 5: must be a mapping"),
        ({"initial": {"pick": 0}}, "initial: give at least one of `data`, `perturb` and `pick`"),
    ],
)
def test_mistakes_are_one_line(mixed: SimplifyPool, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        simplified(mixed, **settings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def gathered(pool: SimplifyPool, made: Spec) -> Gathered:
    given = {"pool": list(pool.frames.values())}
    return gather(made, Path(), structures=SystemStructures(made, Path(), given))


@pytest.mark.slow
def test_every_frame_lies_in_the_batch_of_one_start(tmp_path: Path, mixed: SimplifyPool) -> None:
    made = simplified(mixed, initial={"pick": 2})
    found = gathered(mixed, made)
    assert len(found.initial) == 2
    assert found.starts("pool") == 2, "two compositions"
    store = FolderStore(tmp_path / "root")
    recipe = make_recipe(made.labels)
    event = submit(made, found, recipe, store, 0.0)
    batches = [Batch.loads(store.get(start.batch.uri)) for start in event.systems["pool"]]
    assert {frame_key(f) for batch in batches for f in batch} == mixed.frames.keys()
    assert [start.index for start in event.systems["pool"]] == [0, 0]
    mixed.keep_labels(store, recipe, ["a.extxyz"])
    for key, label in mixed.labels.items():
        frame, kept, about = decode_labelled(store.get(label_uri(recipe.digest, key)))
        assert (frame_key(frame), kept.energy) == (key, label.energy)
        assert about["sources"] == ["a.extxyz"]


def test_many_frames_are_few_trajectories() -> None:
    one = Frame(("H",), np.zeros((1, 3)))
    assert trajectory_length([one] * 100) == 100
    length = trajectory_length([one] * 50_000)
    assert (length, len(runs([one] * 50_000, length))) == (800, 63)


def test_rounds_leave_out_what_was_asked_for() -> None:
    stage = {"name": "pool", "systems": ["methane"], "temperatures": [1.0], "engine": "frames"}
    campaign = LossyDelivery(
        CampaignSimulator(ripe=3), spec(stages=[stage], audit={"per_round": 0})
    )
    state = campaign.run()
    assert state.finished is not None
    assert state.finished.verdict == "converged"
    commands = campaign.decisions(m.Explore)
    assert [command.version for command in commands] == [1, 2, 3], "one trajectory of one start"
    known = [json.loads(campaign.world.manifests[c.known.uri]) for c in commands if c.known]
    assert [len(keys) for keys in known] == [6, 8, 10], "initial ones, and the two of each round"
    assert set(known[-1]) == set(frames_of(state))


# ------------------------------------------------------------------------------ the last line


def test_what_is_said_at_the_end() -> None:
    found = Remainder(2000, 143, 0, Trust(low=0.1, high=5.0), deviation=0.0984, error=0.0312)
    assert str(found) == (
        "kept 143 of 2,000 frames; the remaining 1,857 are below the trust level (0.1 eV/Å): max "
        "deviation 0.0984 eV/Å, force RMSE of the final model on them 0.0312 eV/Å"
    )
    stuck = Remainder(10, 4, 1, Trust(low=0.1, high=5.0), above=2, deviation=0.4)
    assert "1 were rejected" in str(stuck)
    assert "2 of the remaining 5 are not below the trust level (0.1 eV/Å)" in str(stuck)
    assert str(Remainder(3, 3, 0, Trust(low=0.1, high=5.0))).endswith("none is left out")


# ------------------------------------------------------------------------------ DP-GEN's file


def param(**changes: Any) -> dict[str, Any]:
    """As DP-GEN's own examples are."""
    names = ("type_map", "mass_map", "numb_models", "default_training_param")
    document = {name: dpgen_methane.PARAM[name] for name in names}
    return document | {
        "pick_data": "frames",
        "init_data_prefix": "",
        "init_data_sys": [],
        "sys_configs": [],
        "sys_batch_size": ["auto"],
        "labeled": True,
        "init_pick_number": 100,
        "iter_pick_number": 30,
        "model_devi_f_trust_lo": 0.25,
        "model_devi_f_trust_hi": 0.45,
        "model_devi_e_trust_lo": 1e10,
        "fp_task_max": 1000,
        "fp_task_min": 10,
        **changes,
    }


def test_dp_gens_parameters_are_settings_and_every_key_has_a_line(mixed: SimplifyPool) -> None:
    found = read_simplify(param(), Path("/home/me"), None)
    assert found.sources == ("frames",)
    assert {line.key for line in found.lines} == param().keys()
    made = simplified(mixed, **found.settings)
    assert (made.trust.model_dump()["low"], made.selection.per_round) == (0.25, 30)
    assert (made.initial.pick, made.training.members, made.labels.code) == (100, 2, "dataset")
    assert (made.training.min_steps, made.training.max_steps) == (100, 100)
    assert made.budget.rounds == 21, "eight frames, thirty a round"
    assert read_simplify(param(stop_iter=7), Path(), None).settings["budget"] == {"rounds": 7}


def test_unlabelled_frames_are_labelled_by_fp_style_or_the_code_asked_for() -> None:
    gaussian = {"fp_style": "gaussian", "fp_params": {"keywords": "pbe force", "nproc": 4}}
    unlabelled = param(labeled=False, use_clusters=True, **gaussian)
    assert read_simplify(unlabelled, Path(), None).settings["labels"]["code"] == "gaussian"
    found = read_simplify(unlabelled, Path(), "tblite")
    assert found.settings["labels"] == {"code": "tblite"}
    assert {line.key.partition(".")[0] for line in found.lines} == unlabelled.keys()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"true_error_f_trust_lo": 0.1},
            "true_error_f_trust_lo: 0.1: the error on the frames left out",
        ),
        ({"model_devi_e_trust_lo": 0.01}, "model_devi_e_trust_lo: 0.01: energy deviations"),
        ({"iter_pik_number": 3}, "iter_pik_number: unknown key; did you mean 'iter_pick_number'?"),
        ({"init_pick_number": 0}, "init_pick_number: 0"),
        ({"fp_style": "vasp", "labeled": False}, "fp_incar: missing"),
    ],
)
def test_what_cannot_be_done_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_simplify(param(**changes), Path(), None)
    assert said in str(caught.value)


def test_keys_are_listed_once() -> None:
    names = [key.name for key in TABLE]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gone.xyz"], "DATASET: no file matches 'gone.xyz'"),
        (
            ["campaign.json"],
            "campaign.json: not a param.json of `dpgen simplify`: the key pick_data is missing",
        ),
        (["a.xyz", "--code", "tblite"], "--code: allowed only with DP-GEN's param.json"),
        (
            ["a.xyz", "--root", "s3://bucket"],
            "--store: s3://bucket: must be a folder on this machine for simplify",
        ),
        (["param.json", "m.json", "b"], "b: unexpected; only a machine.json may follow param.json"),
    ],
)
def test_bad_words_on_the_command_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("campaign.json").write_text("{}")
    Path("param.json").write_text(json.dumps(param()))
    monkeypatch.setattr(sys, "argv", ["dpstream", "simplify", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code, said in capfd.readouterr().err) == (2, True)
    assert not Path("runs").exists()


@pytest.mark.parametrize(("backend", "suffix"), [("pytorch", ".pth"), ("tensorflow", ".pb")])
def test_the_models_of_the_campaigns_backend_measure_what_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, suffix: str
) -> None:
    has_gpus(monkeypatch, H200)
    monkeypatch.setenv("DPSTREAM_DEVICE", "cpu")
    store = FolderStore(tmp_path)
    store.put(campaign_uri("c", "committees", "1.json"), b"{}")
    results: Any = SimpleNamespace(
        campaign="c",
        store=store,
        spec=spec(training={"backend": backend}),
        spec_bytes=b"{}",
        committee=[SimpleNamespace(version=1)],
    )
    with measuring(results, Trust(low=0.1, high=0.2)) as (resources, _):
        assert resources.lacks(Ref.to(f"results/model{suffix}", b"")) is None
        assert resources.device == Device("cpu")
