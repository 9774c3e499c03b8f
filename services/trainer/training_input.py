"""Builds DeePMD-kit's `input.json` and the `dp` command lines from a campaign's training section.

Pure functions: nothing here reads or writes files.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dpstream.shared.spec import Training
from dpstream.shared.values import stable_seed

Json = dict[str, Any]

LCURVE = "lcurve.out"
INPUT = "input.json"
RESOLVED = "out.json"
"""The input as DeePMD-kit completed it: all defaults filled in, `sel` counted."""
CHECKPOINT = "model.ckpt"
TABLE = "repulsion.table"
ROWS = 100
"""Approximate number of lines of the loss curve."""

DEFAULTS: Json = {
    "model": {
        "type": "standard",
        "descriptor": {
            "type": "se_e2_a",
            "rcut": 6.0,
            "rcut_smth": 0.5,
            # Allows for denser neighbourhoods than those of the training set.
            "sel": "auto:1.2",
            "neuron": [10, 20, 40],
            "axis_neuron": 8,
            "type_one_side": True,
            "resnet_dt": False,
        },
        "fitting_net": {"type": "ener", "neuron": [64, 64, 64], "resnet_dt": False},
    },
    "learning_rate": {
        "type": "exp",
        "start_lr": 5e-3,
        "stop_lr": 1e-5,
        "smooth": True,
        "warmup_ratio": 0.05,
    },
    # A short average of squared gradients: on methane, after 1000 steps, it gives a sixth of the
    # force error of Adam's default 0.999 with a rate from 1e-3 to 1e-8.
    "optimizer": {"type": "Adam", "adam_beta2": 0.95},
    "loss": {
        "type": "ener",
        "start_pref_e": 0.02,
        "limit_pref_e": 1.0,
        "start_pref_f": 1000.0,
        "limit_pref_f": 1.0,
        "start_pref_v": 0.0,
        "limit_pref_v": 0.0,
    },
    "training": {"time_training": False},
}

ALIASES = {"se_a": "se_e2_a", "se_at": "se_e3", "se_a_3be": "se_e3", "se_r": "se_e2_r"}
EITHER_OR = (("stop_lr_ratio", "stop_lr"), ("warmup_steps", "warmup_ratio"))
"""Alternative keys of which DeePMD-kit accepts only one: the first removes a default second."""
NOT_THE_USERS = ("numb_epoch", "num_epoch", "numb_epochs", "validation_data", "stop_batch")


@dataclass(frozen=True)
class TrainingRun:
    """Parameters of one training that enter its input file. `warm`: starts from another model's
    weights; `checkpoint_every`: steps between checkpoints, None for one at the end; `model`: model
    section with which the starting weights were built; `batch_atoms`: what `auto` means, None: on a
    CPU; `rate`: factor on the learning rate."""

    type_map: tuple[str, ...]
    systems: tuple[str, ...]
    steps: int
    seed: int
    member: int
    warm: bool = False
    checkpoint_every: int | None = None
    model: Json | None = None
    batch_atoms: int | None = None
    rate: float = 1.0


def build_input(training: Training, run: TrainingRun) -> Json:
    """The complete `input.json`: defaults, overridden key by key by `training.input`, the member's
    own input and the input for warm starts, and then by the keys that dpstream sets (types,
    systems, seeds, steps, files).

    A section whose `type` differs from the default's replaces the whole section, because its keys
    have other meanings. Keys: https://docs.deepmodeling.com/projects/deepmd, "Training Parameters".
    """
    defaults = {k: v for k, v in DEFAULTS.items() if k not in BACKENDS[training.backend].lacks}
    document = merge(defaults, training.input)
    document = merge(document, training.member_input.get(run.member, {}))
    if run.warm:
        document = merge(document, training.warm_input)
    if run.model is not None:
        document["model"] = copy.deepcopy(run.model)
    _set_model(document["model"], training, run)
    document["learning_rate"] = _learning_rate(document["learning_rate"], training, run)
    document["training"] = _training(document["training"], training, run)
    return document


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Json:
    """`base` updated with `over`, section by section; neither is modified."""
    result = copy.deepcopy(dict(base))
    for key, value in over.items():
        mine = result.get(key)
        if isinstance(mine, dict) and isinstance(value, Mapping) and _same_kind(mine, value):
            result[key] = merge(mine, value)
        else:
            result[key] = copy.deepcopy(value)
    for key, alternative in EITHER_OR:
        if key in over and alternative not in over:
            result.pop(alternative, None)
    return result


def _same_kind(base: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    mine = base.get("type")
    kind = over.get("type", mine)
    return bool(ALIASES.get(str(kind), kind) == ALIASES.get(str(mine), mine))


def _set_model(model: Json, training: Training, run: TrainingRun) -> None:
    if run.model is None:  # a user's model may have more elements in another order
        model["type_map"] = list(run.type_map)
    if training.repulsion is not None:
        model |= {
            "use_srtab": TABLE,
            "smin_alpha": training.repulsion.smin_alpha,
            "sw_rmin": training.repulsion.inner,
            "sw_rmax": training.repulsion.outer,
        }
    _seed(model.get("descriptor"), run.seed, "descriptor")
    _seed(model.get("fitting_net"), run.seed, "fitting")
    _seed(model.get("type_embedding"), run.seed, "type embedding")


def _seed(section: Any, seed: int, *what: object) -> None:
    """Set a distinct seed for every network of `section`; a hybrid descriptor has several."""
    if not isinstance(section, dict):
        return
    parts = section.get("list")
    if isinstance(parts, list):
        # Separate copies: with YAML anchors the parts may be the same object.
        section["list"] = [copy.deepcopy(part) for part in parts]
        for number, part in enumerate(section["list"]):
            _seed(part, seed, *what, number)
    elif "type" in section or "neuron" in section:
        section["seed"] = stable_seed(seed, *what)


def _learning_rate(given: Mapping[str, Any], training: Training, run: TrainingRun) -> Json:
    rate = dict(given)
    if run.warm:
        rate["start_lr"] = training.warm_start_lr
        if rate.get("stop_lr", 0.0) >= rate["start_lr"]:
            rate["stop_lr"] = rate["start_lr"] * 0.1
    if "start_lr" in rate and run.rate != 1.0:
        rate["start_lr"] *= run.rate
    if training.decay == "scaled" and rate.get("type", "exp") == "exp":
        rate["decay_steps"] = _scaled_decay(rate, run.steps)
    return rate


def _scaled_decay(rate: Mapping[str, Any], steps: int) -> int:
    """`decay_steps` with which the rate reaches `stop_lr` at the last step. Without a `decay_rate`,
    DeePMD-kit derives one that does, for any number up to `steps`."""
    decay = rate.get("decay_rate")
    start, stop = rate.get("start_lr", 1e-3), rate.get("stop_lr")
    if decay is None or stop is None or not 0 < decay < 1 or not 0 < stop < start:
        return max(1, steps // ROWS)
    return max(1, round(steps * math.log(decay) / math.log(stop / start)))


def _training(given: Mapping[str, Any], training: Training, run: TrainingRun) -> Json:
    section = {key: value for key, value in given.items() if key not in NOT_THE_USERS}
    data = dict(section.get("training_data", {}))
    data.setdefault("batch_size", f"auto:{training.batch(run.batch_atoms)}")
    display = int(section.get("disp_freq", max(1, run.steps // ROWS)))
    every = run.steps if run.checkpoint_every is None else run.checkpoint_every
    return section | {
        "training_data": data | {"systems": list(run.systems)},
        "numb_steps": run.steps,
        "seed": stable_seed(run.seed, "batches"),
        "disp_file": LCURVE,
        "disp_freq": display,
        # DeePMD-kit writes checkpoints only at steps that are also displayed.
        "save_freq": max(1, math.ceil(every / display)) * display,
        "save_ckpt": CHECKPOINT,
        "max_ckpt_keep": 3,
    }


# ---------------------------------------------------------------------------------- command lines


Begin = Literal["restart", "init-model", "init-frz-model", "finetune"]
"""Ways to start from a model, as options of `dp train`: `restart` resumes the same training, the
others start from the weights of another model."""
SCRIPTED = ("init-model", "init-frz-model", "finetune")
"""Those that use the model's architecture only with `--use-pretrain-script`."""


def starting_options(how: Begin | None, model: str, given: bool) -> dict[str, Any]:
    """Arguments of DeePMD-kit's `train` functions for a start from `model` as `how` says; `given`:
    a user's model, whose architecture is used."""
    start = {way.replace("-", "_"): model if way == how else None for way in get_args(Begin)}
    return {**start, "use_pretrain_script": given and how in SCRIPTED}


@dataclass(frozen=True)
class Backend:
    """One backend of DeePMD-kit: its `title`, the suffix of model files, the Python package it
    needs and how to `install` it, `on_gpu` with CUDA. `newest`: symbolic link that DeePMD-kit sets
    once a checkpoint is complete; `ending`: part of a checkpoint's name after its step; `given`:
    suffixes of files from which a training may start; `lacks`: sections of the input that it does
    not support; `compressed_only`: its models are correct only after compression."""

    title: str
    suffix: str
    package: str
    install: str
    on_gpu: str
    newest: str
    ending: str
    given: Mapping[Begin, tuple[str, ...]]
    lacks: tuple[str, ...] = ()
    compressed_only: bool = False

    def checkpoint(self, step: int) -> str:
        """Name of the checkpoint of `step`: for TensorFlow a prefix of several files, for JAX a
        folder."""
        return f"{CHECKPOINT}-{step}{self.ending}"


BACKENDS: dict[str, Backend] = {
    "tensorflow": Backend(
        title="TensorFlow",
        suffix=".pb",
        package="tensorflow",
        install="dpstream[trainer]",
        on_gpu="deepmd-kit[gpu,cu12]",
        newest=f"{CHECKPOINT}.index",
        ending="",
        given={"init-frz-model": (".pb",), "finetune": (".pb",)},
    ),
    "pytorch": Backend(
        title="PyTorch",
        suffix=".pth",
        package="torch",
        install="dpstream[pytorch]",
        on_gpu="dpstream[pytorch]",
        newest=f"{CHECKPOINT}.pt",
        ending=".pt",
        given={"init-frz-model": (".pth",), "finetune": (".pt",)},
    ),
    # Converted to a TensorFlow model, because LAMMPS cannot load JAX models.
    "jax": Backend(
        title="JAX",
        suffix=".pb",
        package="jax",
        install="dpstream[jax]",
        on_gpu="dpstream[jax-cuda]",
        newest=f"{CHECKPOINT}.jax",
        ending=".jax",
        given={},
        lacks=("optimizer",),  # always the default Adam
        compressed_only=True,
    ),
}
CONVERTED = "se_e2_a"
"""The only descriptor with which JAX models can be converted to TensorFlow. (DeePMD-kit 3.2
converts `se_e3` to a wrong model and refuses `dpa2`.)"""


def jax_line(how: Begin | None = None, model: str = "", given: bool = False) -> list[str]:
    """`dp --jax train` in the folder of its input file, from scratch or from `model`; `given`: a
    user's model, whose architecture is used."""
    options = [] if how is None else [f"--{how}", model]
    if given and how in SCRIPTED:
        options.append("--use-pretrain-script")
    dp = [sys.executable, "-I", "-m", "deepmd", "--jax"]
    return [*dp, "train", INPUT, "--output", RESOLVED, *options]
