"""From the campaign's training section to a complete DeePMD-kit `input.json` and the `dp` command
lines. Pure: nothing here touches a file."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dpstream.shared.spec import Training
from dpstream.shared.values import stable_seed

Json = dict[str, Any]

LCURVE = "lcurve.out"
INPUT = "input.json"
RESOLVED = "out.json"
"""What DeePMD-kit made of the input: every default filled in, `sel` counted."""
CHECKPOINT = "model.ckpt"
TABLE = "repulsion.table"
ROWS = 100
"""Lines of the loss curve, about."""

DEFAULTS: Json = {
    "model": {
        "type": "standard",
        "descriptor": {
            "type": "se_e2_a",
            "rcut": 6.0,
            "rcut_smth": 0.5,
            # Room for neighbourhoods denser than any the training set has seen.
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
    # A short memory of squared gradients: on methane, a sixth of the force error that Adam's own
    # 0.999 with a rate from 1e-3 to 1e-8 reaches in the same 1000 steps.
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
"""Two ways to say one thing, of which DeePMD-kit accepts one: the first silences the second."""
NOT_THE_USERS = ("numb_epoch", "num_epoch", "numb_epochs", "validation_data", "stop_batch")


@dataclass(frozen=True)
class TrainingRun:
    """One training, as far as its input file goes. `warm`: it begins from another model's
    weights; `checkpoint_every`: steps between checkpoints, None for one at the end;
    `model`: the section that the weights it begins with were made by."""

    type_map: tuple[str, ...]
    systems: tuple[str, ...]
    steps: int
    seed: int
    member: int
    warm: bool = False
    checkpoint_every: int | None = None
    model: Json | None = None


def build_input(training: Training, run: TrainingRun) -> Json:
    """The complete `input.json`: defaults, then `training.input`, then the member's own overrides,
    then those of warm starts, key by key; then what is dpstream's to say (types, systems, seeds,
    steps, files).

    A section whose `type` differs from the default's replaces it whole: its keys mean something
    else. Keys: https://docs.deepmodeling.com/projects/deepmd, "Training Parameters".
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
    """`over` on top of `base`, section by section; neither is changed."""
    result = copy.deepcopy(dict(base))
    for key, value in over.items():
        mine = result.get(key)
        if isinstance(mine, dict) and isinstance(value, Mapping) and _same_kind(mine, value):
            result[key] = merge(mine, value)
        else:
            result[key] = copy.deepcopy(value)
    for said, also in EITHER_OR:
        if said in over and also not in over:
            result.pop(also, None)
    return result


def _same_kind(base: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    mine = base.get("type")
    kind = over.get("type", mine)
    return bool(ALIASES.get(str(kind), kind) == ALIASES.get(str(mine), mine))


def _set_model(model: Json, training: Training, run: TrainingRun) -> None:
    if run.model is None:  # a given model may know more elements, in an order of its own
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
    """A seed of its own for every network of `section`; a hybrid descriptor has several."""
    if not isinstance(section, dict):
        return
    parts = section.get("list")
    if isinstance(parts, list):
        # Separate copies: with YAML anchors the parts may be one and the same object.
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
    if training.decay == "scaled" and rate.get("type", "exp") == "exp":
        rate["decay_steps"] = _scaled_decay(rate, run.steps)
    return rate


def _scaled_decay(rate: Mapping[str, Any], steps: int) -> int:
    """`decay_steps` with which the rate is at `stop_lr` when the last step is done. Without a
    `decay_rate` DeePMD-kit derives one that ends there, for any number not above `steps`."""
    decay = rate.get("decay_rate")
    start, stop = rate.get("start_lr", 1e-3), rate.get("stop_lr")
    if decay is None or stop is None or not 0 < decay < 1 or not 0 < stop < start:
        return max(1, steps // ROWS)
    return max(1, round(steps * math.log(decay) / math.log(stop / start)))


def _training(given: Mapping[str, Any], training: Training, run: TrainingRun) -> Json:
    section = {key: value for key, value in given.items() if key not in NOT_THE_USERS}
    data = dict(section.get("training_data", {}))
    data.setdefault("batch_size", f"auto:{training.batch_atoms}")
    display = int(section.get("disp_freq", max(1, run.steps // ROWS)))
    every = run.steps if run.checkpoint_every is None else run.checkpoint_every
    return section | {
        "training_data": data | {"systems": list(run.systems)},
        "numb_steps": run.steps,
        "seed": stable_seed(run.seed, "batches"),
        "disp_file": LCURVE,
        "disp_freq": display,
        # Checkpoints are written on steps that are also displayed.
        "save_freq": max(1, math.ceil(every / display)) * display,
        "save_ckpt": CHECKPOINT,
        "max_ckpt_keep": 3,
    }


# ---------------------------------------------------------------------------------- command lines


Begin = Literal["restart", "init-model", "init-frz-model", "finetune"]
"""Ways not to begin from scratch, as `dp train` calls them: from a checkpoint of the same training
(`restart`), or in the weights of another model."""
SCRIPTED = ("init-model", "init-frz-model")
"""Of these, the ones that take a given model's architecture only if they are told to."""


@dataclass(frozen=True)
class Backend:
    """How one backend of DeePMD-kit is called: its own `title`, the flag of `dp`, the ending of
    model files, the Python package it needs and how to get that. `newest` is the symbolic link that
    DeePMD-kit sets once a checkpoint is complete; `ending` is what a checkpoint's name has after
    its step; `given` are the endings of files that a training may begin in; `lacks` are sections of
    the input that it does not have; `compressed_only`: its models are right only when
    compressed."""

    title: str
    flag: str
    suffix: str
    package: str
    install: str
    newest: str
    ending: str
    given: Mapping[Begin, tuple[str, ...]]
    lacks: tuple[str, ...] = ()
    compressed_only: bool = False

    def checkpoint(self, step: int) -> str:
        """What `dp` calls the checkpoint of `step`; for TensorFlow a prefix of several files, for
        JAX a folder."""
        return f"{CHECKPOINT}-{step}{self.ending}"


BACKENDS: dict[str, Backend] = {
    "tensorflow": Backend(
        title="TensorFlow",
        flag="--tf",
        suffix=".pb",
        package="tensorflow",
        install="dpstream[trainer]",
        newest=f"{CHECKPOINT}.index",
        ending="",
        given={"init-frz-model": (".pb",), "finetune": (".pb",)},
    ),
    "pytorch": Backend(
        title="PyTorch",
        flag="--pt",
        suffix=".pth",
        package="torch",
        install="dpstream[pytorch]",
        newest=f"{CHECKPOINT}.pt",
        ending=".pt",
        given={"init-frz-model": (".pth",), "finetune": (".pt",)},
    ),
    # Explored with and handed out as a TensorFlow model, because LAMMPS loads no file of JAX's.
    "jax": Backend(
        title="JAX",
        flag="--jax",
        suffix=".pb",
        package="jax",
        install="dpstream[jax]",
        newest=f"{CHECKPOINT}.jax",
        ending=".jax",
        given={},
        lacks=("optimizer",),  # Adam as it is
        compressed_only=True,
    ),
}
CONVERTED = "se_e2_a"
"""The descriptor with which JAX models are converted to TensorFlow. (Of others DeePMD-kit 3.2 turns
`se_e3` into a model that says something else, and refuses `dpa2`.)"""


def train_line(
    backend: Backend, how: Begin | None = None, model: str = "", given: bool = False
) -> list[str]:
    """`dp train` in the folder of its input file: from scratch, or begun in `model`; `given`: the
    user gave that, so its architecture counts."""
    options = [] if how is None else [f"--{how}", model]
    if given and how in SCRIPTED:
        options.append("--use-pretrain-script")
    return [*_dp(backend), "train", INPUT, "--output", RESOLVED, *options]


def freeze_line(backend: Backend, checkpoint: str, model: str) -> list[str]:
    return [*_dp(backend), "freeze", "--checkpoint-folder", checkpoint, "--output", model]


def compress_line(backend: Backend, frozen: str, model: str) -> list[str]:
    return [*_dp(backend), "compress", "--input", frozen, "--output", model]


def _dp(backend: Backend) -> list[str]:
    return [sys.executable, "-I", "-m", "deepmd", backend.flag]
