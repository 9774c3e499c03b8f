"""A training that starts from one branch of a multitask model, which DeePMD-kit itself trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpstream.inputs.training_files import given_files
from dpstream.shared.atoms.dataset import load_dataset, write_deepmd
from dpstream.shared.errors import Permanent, SpecError
from dpstream.shared.values import given_model
from tests.support.workers.trainer import TrainerHarness, spec_of

pytestmark = [
    pytest.mark.soak,
    pytest.mark.pytorch,
]
BRANCHES = {"Molecules": [8], "Metals": [12]}
"""Sizes of the fitting nets."""
DESCRIPTOR = {"type": "se_e2_a", "sel": [4, 1], "rcut": 4.0, "neuron": [4, 8], "axis_neuron": 2}


def multitask_input(systems: list[str]) -> dict[str, Any]:
    data = {"training_data": {"systems": systems, "batch_size": 4}}
    models = {
        name: {"type_map": "elements", "descriptor": "nets", "fitting_net": {"neuron": neuron}}
        for name, neuron in BRANCHES.items()
    }
    return {
        "model": {
            "shared_dict": {"elements": ["H", "C"], "nets": DESCRIPTOR},
            "model_dict": models,
        },
        "learning_rate": {"type": "exp", "start_lr": 1e-3, "stop_lr": 1e-5, "decay_steps": 5},
        "loss_dict": {name: {"type": "ener"} for name in BRANCHES},
        "training": {
            "model_prob": dict.fromkeys(BRANCHES, 0.5),
            "data_dict": dict.fromkeys(BRANCHES, data),
            "numb_steps": 10,
            "disp_freq": 10,
            "save_ckpt": "model.ckpt",
        },
    }


@pytest.fixture(scope="module")
def pretrained(trainer: TrainerHarness) -> Path:
    """A checkpoint with two branches."""
    folder = trainer.root / "multitask"
    items = load_dataset(lambda ref: trainer.store.get(ref.uri), trainer.dataset)
    systems = [str(path) for path in write_deepmd(items, folder / "data", ["H", "C"])]
    (folder / "input.json").write_text(json.dumps(multitask_input(systems)))
    trainer.resources.engine("pytorch").call("train", {"folder": str(folder)})
    return folder / "model.ckpt-10.pt"


def tuned(trainer: TrainerHarness, model: Path, branch: str) -> dict[str, Any]:
    """Weights after one step with a vanishing learning rate."""
    import torch

    files = {given_model(0): trainer.put("campaigns/t/inputs/given.pt", model.read_bytes())}
    init = {"model": "given", "how": "finetune", "branch": branch}
    settings = {"backend": "pytorch", "compress": False, "init": init, "warm_start_lr": 1e-12}
    member = trainer.train(settings, steps=1, files=files, max_seconds=600.0)
    checkpoint = trainer.root / f"{branch}.zip"
    checkpoint.write_bytes(trainer.store.get(member.checkpoint.uri))
    from zipfile import ZipFile

    with ZipFile(checkpoint) as archive, archive.open("model.ckpt-1.pt") as file:
        state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")["model"]
    return state


@pytest.mark.parametrize("branch", BRANCHES)
def test_the_weights_are_those_of_the_branch(
    trainer: TrainerHarness, pretrained: Path, branch: str
) -> None:
    import torch

    before = torch.load(pretrained, weights_only=True, map_location="cpu")["model"]
    after = tuned(trainer, pretrained, branch)
    nets = [key for key in after if "fitting_net" in key and key.endswith("layers.0.matrix")]
    assert nets, "the fitting net has no first layer"
    for key in nets:
        old = before[key.replace("model.Default.", f"model.{branch}.")]
        assert after[key].shape[-1] == BRANCHES[branch][0]
        torch.testing.assert_close(after[key], old, rtol=1e-6, atol=1e-8)


def test_the_branches_are_named_where_the_wrong_one_is_given(pretrained: Path) -> None:
    init = {"model": pretrained.name, "how": "finetune", "branch": "Water"}
    wrong = spec_of(backend="pytorch", init=init)
    with pytest.raises(SpecError) as caught:
        given_files(wrong, pretrained.parent)
    says = f"training.init.branch: Water: not in {pretrained}: it has Metals, Molecules"
    assert str(caught.value) == says


def test_a_worker_names_them_too(trainer: TrainerHarness, pretrained: Path) -> None:
    with pytest.raises(Permanent, match=r"Water.*Molecules.*Metals"):
        tuned(trainer, pretrained, "Water")
