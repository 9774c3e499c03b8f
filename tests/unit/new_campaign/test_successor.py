"""`dpstream new --from`: a new campaign with the plan, structures and labels of an existing one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from dpstream.commands.read_spec import prepared
from dpstream.inputs.gather import Gathered
from dpstream.new_campaign.successor import without_defaults
from dpstream.running.submit import submit
from dpstream.services.coordinator.ledger.ledger import Ledger, LedgerEntry
from dpstream.services.trainer.repulsion import NEAREST
from dpstream.shared.atoms.frames import Frame, FrameLabel, frame_key
from dpstream.shared.spec import Spec, load_spec
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import Recipe
from tests.support.campaigns import sample_ledger
from tests.support.campaigns.small_campaign import write_spec
from tests.support.command_line import run_command

EXAMPLES = Path(__file__).parents[3] / "examples"


def labelled(atoms: Atoms, seed: int) -> Atoms:
    atoms = atoms.copy()
    atoms.rattle(0.05, seed=seed)
    forces = np.random.default_rng(seed).normal(size=(len(atoms), 3))
    atoms.calc = SinglePointCalculator(
        atoms, energy=-3.7 * len(atoms) + 1 / (seed + 3), forces=forces, stress=np.arange(6) / 700
    )
    return atoms


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spec that names every kind of file, and what a stage, a system and a recipe may have of
    their own. Its labeling code is not installed here."""
    monkeypatch.setenv("PATH", "")
    folder = tmp_path / "old"
    folder.mkdir()
    crystal = bulk("Al", cubic=True)
    write(folder / "al.vasp", crystal)
    write(folder / "al.extxyz", [labelled(crystal, seed) for seed in range(5)])
    write(folder / "test.extxyz", [labelled(crystal, seed) for seed in (7, 8)])
    (folder / "Al.upf").write_text("a pseudopotential")
    r = np.arange(1, 50) * NEAREST
    np.savetxt(folder / "close.table", np.column_stack([r, 1 - r / r[-1]]))
    document: dict[str, Any] = {
        "name": "old",
        "type_map": ["Al"],
        "systems": {
            "bulk": {"structures": ["al.vasp"], "supercell": [1, 1, 2]},
            "surface": {
                "structures": ["al.vasp"],
                "slabs": {"miller": [[1, 1, 1]], "layers": 3},
                "label": {"kpoints": [2, 2, 1]},
            },
            "given": {"structures": ["al.extxyz"]},
        },
        "initial": {
            "data": ["al.extxyz"],
            "perturb": {"copies": 2},
            "dimers": {"distances": [2.0, 3.0], "box": 8.0},
        },
        "training": {"repulsion": {"table": "close.table", "inner": 0.02, "outer": 0.04}},
        "md": {"every": 5, "timestep": 0.002},
        "stages": [
            {"name": "cold", "systems": ["bulk"], "temperatures": [300], "md": {"every": 10}},
            {"name": "all", "systems": ["given"], "temperatures": [1], "engine": "frames"},
            {"name": "edge", "systems": ["surface"], "temperatures": [500]},
        ],
        "labels": {
            "code": "qe",
            "version": "7.2",
            "settings": {
                "pseudopotentials": {"Al": "Al.upf"},
                "ecutwfc": 30,
                "kspacing": 0.2,
                "smearing": "marzari-vanderbilt",
                "degauss": 0.02,
            },
        },
        "verification": {"data": ["test.extxyz"], "max_drift": 0.01},
    }
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def begin(path: Path, root: Path) -> tuple[Spec, Gathered, Recipe]:
    """Submit a campaign, and let a coordinator take it in."""
    spec, gathered, recipe = found = prepared(path, None, None, engines=False)
    store = FolderStore(root)
    event = submit(spec, gathered, recipe, store, 100.0)
    ledger, _ = Ledger.open(store, spec.name)
    ledger.append([LedgerEntry(event)])
    return found


def by_key(labels: list[tuple[Frame, FrameLabel]]) -> dict[str, FrameLabel]:
    return {frame_key(frame): label for frame, label in labels}


def keys(frames: list[Frame]) -> list[str]:
    return [frame_key(frame) for frame in frames]


@pytest.mark.slow
def test_nothing_of_a_campaign_is_lost(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, gathered, recipe = begin(old, tmp_path / "runs")
    shutil.rmtree(old.parent)
    monkeypatch.chdir(tmp_path)
    status, out, err = run_command(monkeypatch, capsys, "new", "next", "--from", "old")
    assert (status, err) == (0, "")
    assert "next: edit the spec, then run: dpstream validate next/campaign.yaml" in out
    new = prepared(tmp_path / "next" / "campaign.yaml", None, None, engines=False)
    assert new[2] == recipe, "labels are shared"
    assert {k: keys(v) for k, v in new[1].systems.items()} == {
        k: keys(v) for k, v in gathered.systems.items()
    }
    assert keys(new[1].initial) == keys(gathered.initial), "none of them is labelled yet"
    for before, after in ((gathered.labelled, new[1].labelled), (gathered.test, new[1].test)):
        assert by_key(before).keys() == by_key(after).keys()
        for key, label in by_key(before).items():
            now = by_key(after)[key]
            assert now.energy == label.energy
            assert np.array_equal(now.forces, label.forces)
            assert label.virial is not None
            assert now.virial is not None
            assert np.allclose(now.virial, label.virial, rtol=0, atol=1e-12)
    assert new[1].files == gathered.files
    assert new[1].attachments == gathered.attachments
    changed = {"name", "systems", "initial", "verification", "training", "labels"}
    assert new[0].model_dump(exclude=changed) == spec.model_dump(exclude=changed)
    assert new[0].labels == spec.labels
    assert new[0].verification.max_drift == spec.verification.max_drift


def test_labels_of_trained_models_replace_the_initial_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sample_ledger.write_sample(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    assert run_command(monkeypatch, capsys, "new", "next", "--from", sample_ledger.NAME)[0] == 0
    path = tmp_path / "next" / "campaign.yaml"
    _, gathered, _ = prepared(path, None, None, engines=False)
    learned = {sample_ledger.KEYS[n] for n in (sample_ledger.INITIAL, sample_ledger.TRAINED)}
    assert by_key(gathered.labelled).keys() == learned
    assert gathered.initial == []
    document = yaml.safe_load(path.read_text())
    assert document["initial"] == {"data": ["dataset/deepmd"]}
    assert document["labels"] == {"code": "tblite", "settings": {}}
    assert "begins with plan 1 of told and its 2 labels" in path.read_text()
    assert "# The labels in dataset/ are by GFN2-xTB with tblite 0.8.0.\n" in path.read_text()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/*.yaml")), ids=str)
def test_keys_at_their_defaults_may_be_left_out(path: Path) -> None:
    if path.parent.name == "recipes":
        return
    spec = load_spec(path)
    assert Spec.model_validate(without_defaults(spec)) == spec


def test_a_stage_keeps_what_differs_from_the_general_dynamics(tmp_path: Path) -> None:
    spec = load_spec(write_spec(tmp_path, md={"every": 20, "steps": 200}, trust={"target": 0.1}))
    stage = spec.stages[0].model_copy(update={"md": spec.md.model_copy(update={"every": 10})})
    spec = spec.model_copy(update={"stages": (stage,)})
    document = without_defaults(spec)
    assert document["stages"] == [
        {"name": "cold", "systems": ["methane"], "temperatures": [50.0], "md": {"every": 10}}
    ]
    assert Spec.model_validate(document) == spec


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--from", "tolled"], "no campaign 'tolled'; did you mean 'told'?"),
        (["--from", "told", "--code", "vasp"], "--code: leave it out with --from; edit the spec"),
        (["--from", "told", "--full"], "--full: leave it out with --from; edit the spec"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    error: str,
) -> None:
    sample_ledger.write_sample(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    status, out, err = run_command(monkeypatch, capsys, "new", "next", *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert error in err
    assert not (tmp_path / "next").exists()


def test_a_campaign_that_has_not_begun_has_nothing_to_take_over(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, gathered, recipe = prepared(old, None, None, engines=False)
    submit(spec, gathered, recipe, FolderStore(tmp_path / "runs"), 100.0)
    monkeypatch.chdir(tmp_path)
    status, _, err = run_command(monkeypatch, capsys, "new", "next", "--from", "old")
    assert (status, err) == (2, "dpstream: --from: old: has not begun; copy its spec instead\n")
