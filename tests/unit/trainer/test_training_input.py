"""What DeePMD-kit is told: defaults, overrides by section and member, seeds, schedules, lines."""

from __future__ import annotations

import copy
import io
import math
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dpstream.services.trainer import checkpoints
from dpstream.services.trainer.training_input import (
    BACKENDS,
    DEFAULTS,
    TABLE,
    TrainingRun,
    build_input,
    jax_line,
    merge,
)
from dpstream.shared.errors import Permanent
from dpstream.shared.runtime.scratch import STEM
from dpstream.shared.spec import Training


def run(**changes: Any) -> TrainingRun:
    settings: dict[str, Any] = {
        "type_map": ("H", "C"),
        "systems": ("train/C1H4-nopbc",),
        "steps": 1000,
        "seed": 7,
        "member": 0,
    }
    return TrainingRun(**{**settings, **changes})


def build(training: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return build_input(Training.model_validate(training or {}), run(**changes))


def test_defaults_are_complete() -> None:
    document = build()
    assert document["model"]["type_map"] == ["H", "C"]
    assert document["model"]["descriptor"]["type"] == "se_e2_a"
    assert document["training"]["training_data"]["systems"] == ["train/C1H4-nopbc"]
    assert document["training"]["training_data"]["batch_size"] == "auto:32"
    assert document["training"]["numb_steps"] == 1000
    assert document["training"]["save_freq"] == 1000


def test_defaults_are_never_changed() -> None:
    before = copy.deepcopy(DEFAULTS)
    build({"input": {"model": {"descriptor": {"neuron": [2, 4]}}}}, warm=True)
    assert before == DEFAULTS


def test_overrides_merge_key_by_key_and_the_member_comes_last() -> None:
    training = {
        "input": {"model": {"descriptor": {"rcut": 5.0}, "fitting_net": {"neuron": [32, 32]}}},
        "member_input": {1: {"model": {"fitting_net": {"neuron": [16, 16]}}}},
    }
    mine, other = build(training, member=0), build(training, member=1)
    assert mine["model"]["descriptor"]["rcut"] == 5.0
    assert mine["model"]["descriptor"]["axis_neuron"] == 8
    assert mine["model"]["fitting_net"]["neuron"] == [32, 32]
    assert other["model"]["fitting_net"]["neuron"] == [16, 16]
    assert other["model"]["descriptor"]["rcut"] == 5.0


def test_section_of_another_type_replaces_the_default_whole() -> None:
    descriptor = {"type": "se_atten", "sel": 40, "rcut": 5.0}
    document = build({"input": {"model": {"descriptor": descriptor}}})
    assert "type_one_side" not in document["model"]["descriptor"]
    assert document["model"]["descriptor"]["sel"] == 40


def test_alias_of_the_default_type_merges() -> None:
    document = build({"input": {"model": {"descriptor": {"type": "se_a", "rcut": 4.0}}}})
    assert document["model"]["descriptor"]["axis_neuron"] == 8


def test_what_is_not_the_users_to_say() -> None:
    given = {
        "model": {"type_map": ["X"], "descriptor": {"seed": 1}, "fitting_net": {"seed": 1}},
        "training": {
            "numb_steps": 5,
            "seed": 1,
            "validation_data": {"systems": ["/elsewhere"]},
            "training_data": {"systems": ["/elsewhere"], "batch_size": 2},
            "save_ckpt": "/elsewhere/model",
            "disp_file": "/elsewhere/curve",
        },
    }
    document = build({"input": given})
    assert document["model"]["type_map"] == ["H", "C"]
    assert document["training"]["numb_steps"] == 1000
    assert document["training"]["training_data"] == {
        "systems": ["train/C1H4-nopbc"],
        "batch_size": 2,
    }
    assert "elsewhere" not in str(document)
    assert 1 not in seeds(document)


def seeds(document: dict[str, Any]) -> list[int]:
    model = document["model"]
    return [section["seed"] for section in (model["descriptor"], model["fitting_net"])] + [
        document["training"]["seed"]
    ]


def test_seeds_follow_the_command_and_differ_by_network() -> None:
    assert seeds(build()) == seeds(build())
    assert len(set(seeds(build()))) == 3
    assert not set(seeds(build())) & set(seeds(build(seed=8)))


def test_every_part_of_a_hybrid_descriptor_is_seeded() -> None:
    part = {"type": "se_e2_a", "sel": "auto", "rcut": 4.0, "neuron": [2, 4]}
    descriptor = {"type": "hybrid", "list": [part, part]}
    parts = build({"input": {"model": {"descriptor": descriptor}}})["model"]["descriptor"]["list"]
    assert parts[0]["seed"] != parts[1]["seed"]


def test_scaled_decay_ends_with_the_last_step() -> None:
    """Also for a decay rate of the user's own: rate ** (steps / decay_steps) = stop / start."""
    rate = build(steps=4000)["learning_rate"]
    assert rate["decay_steps"] <= 4000
    assert "decay_rate" not in rate
    own = {"decay_rate": 0.95, "start_lr": 1e-3, "stop_lr": 1e-6, "decay_steps": 7}
    rate = build({"input": {"learning_rate": own}}, steps=4000)["learning_rate"]
    reached = 1e-3 * 0.95 ** (4000 / rate["decay_steps"])
    assert math.log(reached / 1e-6) == pytest.approx(0, abs=0.1)


def test_fixed_decay_is_left_as_given() -> None:
    own = {"decay": "fixed", "input": {"learning_rate": {"decay_steps": 2000}}}
    assert build(own, steps=400)["learning_rate"]["decay_steps"] == 2000
    assert "decay_steps" not in build({"decay": "fixed"})["learning_rate"]


def test_cosine_schedule_has_no_decay_steps() -> None:
    own = {"type": "cosine", "start_lr": 1e-3, "stop_lr": 1e-6}
    assert build({"input": {"learning_rate": own}})["learning_rate"] == own


def test_two_ways_to_say_one_thing_do_not_meet() -> None:
    own = {"stop_lr_ratio": 1e-3, "warmup_steps": 10}
    rate = build({"input": {"learning_rate": own}})["learning_rate"]
    assert "stop_lr" not in rate
    assert "warmup_ratio" not in rate


def test_warm_start_begins_at_its_own_rate() -> None:
    rate = build({"warm_start_lr": 2e-4}, warm=True)["learning_rate"]
    assert rate["start_lr"] == 2e-4
    assert rate["stop_lr"] < 2e-4
    low = build({"warm_start_lr": 1e-6}, warm=True)["learning_rate"]
    assert low["stop_lr"] == pytest.approx(1e-7)


def test_the_model_begun_from_is_built_as_it_was() -> None:
    """Its neighbour numbers, its networks, its order of elements; not its seeds."""
    model = build()["model"]
    model["descriptor"] |= {"sel": [8, 4], "neuron": [3, 6]}
    model["type_map"] = ["C", "H", "O"]
    again = build({"warm": 0.5}, model=model, seed=8)["model"]
    assert again["descriptor"].pop("seed") != model["descriptor"].pop("seed")
    assert again["fitting_net"].pop("seed") != model["fitting_net"].pop("seed")
    assert again == model
    assert str(build()["model"]["descriptor"]["sel"]).startswith("auto")


def test_repulsion_tells_where_the_table_is_and_where_it_takes_over() -> None:
    model = build({"repulsion": {"inner": 0.5, "outer": 0.9}})["model"]
    assert model["use_srtab"] == TABLE
    assert (model["sw_rmin"], model["sw_rmax"], model["smin_alpha"]) == (0.5, 0.9, 0.1)
    assert "use_srtab" not in build()["model"]


@pytest.mark.parametrize(("steps", "every"), [(1000, 300), (4000, 1000), (7, 1), (100_000, 999)])
def test_checkpoints_fall_on_displayed_steps(steps: int, every: int) -> None:
    section = build(steps=steps, checkpoint_every=every)["training"]
    assert section["save_freq"] % section["disp_freq"] == 0
    assert every <= section["save_freq"] < every + section["disp_freq"]


def test_merge_leaves_both_sides_alone() -> None:
    base, over = {"a": {"b": 1}}, {"a": {"c": [1]}}
    merged = merge(base, over)
    merged["a"]["c"].append(2)
    assert (base, over) == ({"a": {"b": 1}}, {"a": {"c": [1]}})


@pytest.mark.parametrize(
    ("name", "checkpoint", "model"),
    [
        ("tensorflow", "model.ckpt-500", "frozen.pb"),
        ("pytorch", "model.ckpt-500.pt", "frozen.pth"),
        ("jax", "model.ckpt-500.jax", "frozen.pb"),
    ],
)
def test_names_of_files(name: str, checkpoint: str, model: str) -> None:
    backend = BACKENDS[name]
    assert backend.checkpoint(500) == checkpoint
    assert f"frozen{backend.suffix}" == model


def test_command_line_of_jax() -> None:
    dp = [sys.executable, "-I", "-m", "deepmd", "--jax"]
    scratch = [*dp, "train", "input.json", "--output", "out.json"]
    assert jax_line() == scratch
    assert jax_line("restart", "x.jax") == [*scratch, "--restart", "x.jax"]
    assert jax_line("init-model", "start/x") == [*scratch, "--init-model", "start/x"]
    for how in ("init-model", "init-frz-model", "finetune"):
        given = [*scratch, f"--{how}", "m", "--use-pretrain-script"]
        assert jax_line(how, "m", given=True) == given


def write_checkpoint(folder: Path, names: list[str], link: tuple[str, str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / link[0]).symlink_to(link[1])
    (folder / "lcurve.out").write_text("# step\n 500 1 2\n 600 1 2\n")
    (folder / "out.json").write_text('{"model": {"descriptor": {"sel": [8, 4]}}}')


CHECKPOINTS = {
    "tensorflow": (
        [f"model.ckpt-{n}.{e}" for n in (50, 500) for e in ("index", "meta", "data-00000-of-1")],
        ("model.ckpt.index", "model.ckpt-500.index"),
    ),
    "pytorch": (
        ["model.ckpt-50.pt", "model.ckpt-500.pt"],
        ("model.ckpt.pt", "model.ckpt-500.pt"),
    ),
    "jax": (
        ["model.ckpt-50.jax/d/a", "model.ckpt-500.jax/d/a", "model.ckpt-500.jax/b"],
        ("model.ckpt.jax", "model.ckpt-500.jax"),
    ),
}


@pytest.mark.parametrize("name", list(CHECKPOINTS))
def test_checkpoints_pack_and_unpack(name: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    backend, (names, link) = BACKENDS[name], CHECKPOINTS[name]
    here.mkdir()
    assert checkpoints.newest_step(here, backend) is None
    write_checkpoint(here, names, link)
    assert checkpoints.newest_step(here, backend) == 500
    packed = checkpoints.pack(here, backend, 500)
    assert packed == checkpoints.pack(here, backend, 500)
    assert checkpoints.unpack(packed, there) == 500
    found = {p.relative_to(there).as_posix() for p in there.rglob("*") if p.is_file()}
    assert found == {n for n in names if "-500." in n} | {"lcurve.out", "out.json"}
    assert (there / "lcurve.out").read_text() == "# step\n 500 1 2\n"
    assert checkpoints.model_section(there) == {"descriptor": {"sel": [8, 4]}}


@pytest.mark.parametrize("name", list(CHECKPOINTS))
@pytest.mark.parametrize("replaced", ["lcurve.out", "weights", "folder"])
def test_a_checkpoint_holds_no_file_of_another_folder(
    name: str, replaced: str, tmp_path: Path
) -> None:
    here, secret = tmp_path / f"{STEM}here" / "task", tmp_path / "secret"
    names, link = CHECKPOINTS[name]
    here.mkdir(parents=True)
    write_checkpoint(here, names, link)
    secret.write_text("secret")
    if replaced == "folder":
        here.symlink_to(here.rename(tmp_path / "elsewhere"))
    else:
        path = here / ("lcurve.out" if replaced == "lcurve.out" else names[-1])
        path.unlink()
        path.symlink_to(secret)
    with pytest.raises(Permanent, match="leads out of its folder"):
        checkpoints.pack(here, BACKENDS[name], 500)


@pytest.mark.parametrize("name", list(CHECKPOINTS))
def test_a_users_own_checkpoint_is_packed_as_of_step_0(name: str, tmp_path: Path) -> None:
    backend, (names, link) = BACKENDS[name], CHECKPOINTS[name]
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    write_checkpoint(here, names, link)
    packed = checkpoints.pack_given(here / backend.checkpoint(500), backend)
    assert packed == checkpoints.pack_given(here / "model.ckpt-500", backend), "without its ending"
    assert checkpoints.unpack(packed, there) == 0
    found = {p.relative_to(there).as_posix() for p in there.rglob("*") if p.is_file()}
    assert found == {n.replace("-500", "-0") for n in names if "-500" in n}
    with pytest.raises(ValueError, match="no checkpoint has this name"):
        checkpoints.pack_given(here / "elsewhere", backend)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a packed checkpoint"):
        checkpoints.unpack(b"nothing of the kind", tmp_path)


@pytest.mark.parametrize("name", ["input.json", "../model.ckpt-5", "/tmp/model.ckpt-5", "x/y"])
def test_a_checkpoint_holds_its_own_files_only(name: str, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("model.ckpt-5.index", b"")
        archive.writestr(name, b"")
    with pytest.raises(ValueError, match="not a packed checkpoint: it contains"):
        checkpoints.unpack(packed.getvalue(), tmp_path)
    assert not any(tmp_path.iterdir())


def test_old_names_of_types_are_the_same_types() -> None:
    """A member's override of one key keeps the rest of a section whose type is an alias."""
    descriptor = {"type": "se_a", "rcut": 4.0, "sel": [4], "neuron": [4, 8]}
    document = build(
        {
            "input": {"model": {"descriptor": descriptor}},
            "member_input": {0: {"model": {"descriptor": {"activation_function": "gelu"}}}},
        }
    )
    found = document["model"]["descriptor"]
    assert (found["neuron"], found["activation_function"]) == ([4, 8], "gelu")
