"""Converts DP-GEN's training keys to the `training` section."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dpstream.dpgen.fp_style import Json
from dpstream.dpgen.param_model import RunParam
from dpstream.dpgen.stages import CARRIERS
from dpstream.services.trainer.training_input import merge
from dpstream.shared.errors import SpecError, errors_at
from dpstream.shared.spec.training import CPU_BATCH

DEEPMD: Json = {
    "model": {
        "descriptor": {
            "type": "se_e2_a",
            "rcut": 6.0,
            "rcut_smth": 0.5,
            "sel": "auto",
            "neuron": [10, 20, 40],
            "axis_neuron": 4,
            "type_one_side": False,
            "resnet_dt": False,
        },
        "fitting_net": {"type": "ener", "neuron": [120, 120, 120], "resnet_dt": True},
    },
    "learning_rate": {
        "type": "exp",
        "start_lr": 1e-3,
        "stop_lr": 5e-8,
        "smooth": False,
        "warmup_steps": 0,
    },
    "optimizer": {"type": "Adam", "adam_beta2": 0.999},
    "loss": {
        "type": "ener",
        "start_pref_e": 0.02,
        "limit_pref_e": 1.0,
        "start_pref_f": 1000.0,
        "limit_pref_f": 1.0,
        "start_pref_v": 0.0,
        "limit_pref_v": 0.0,
    },
}
"""DeePMD-kit's defaults where dpstream's defaults differ."""
STEPS = ("numb_steps", "stop_batch")
DEAD = {"coord_norm", "type_fitting_net", "numb_test", "load_ckpt"}
"""Keys of older DeePMD-kit versions that have no effect."""
SEEDS = ("seed", "sedd")
"""Seeds, also as misspelt in several of DP-GEN's examples; dpstream sets its own."""
FLAT = "stop_batch"
"""A key at the top of inputs of DeePMD-kit 0.x, which have no sections."""
MOVED = ("set_prefix", "systems", "batch_size", *STEPS)
"""Keys of `training` that are converted elsewhere, and those of DeePMD-kit 1.x."""
BACKENDS = ("tensorflow", "pytorch", "jax")


Place = Callable[[str], str]
"""Converts a path of the param file to one relative to the spec."""
Matching = Callable[[str], list[str]]
"""The paths that match a pattern, relative to the spec. Raises `SpecError` if there are none."""


def read_training(
    param: RunParam, place: Place, matching: Matching, differences: list[str]
) -> Json:
    """The training section. What differs from DP-GEN is appended to `differences`. Raises
    `SpecError`."""
    if param.train_backend not in BACKENDS:
        raise SpecError(
            f"train_backend: {param.train_backend!r}: must be one of {', '.join(BACKENDS)}"
        )
    written = [_sectioned(given, differences) for given in _inputs(param)]
    inputs = [merge(given, _shared(param)) for given in map(copy.deepcopy, written)]
    given = _repulsion(param, inputs, place) | _init(param, place, matching, differences)
    steps = _steps(inputs)
    batch = _batch_size(param, inputs, differences)
    cleaned = [_cleaned(given, batch, differences) for given in inputs]
    single = len(cleaned) == 1
    members = {} if single else dict(enumerate(cleaned))
    return {
        "members": param.numb_models,
        "backend": param.train_backend,
        "input": cleaned[0] if single else _shared(param),
        **_by_member(param, members),
        "batch_atoms": CPU_BATCH,  # a step keeps its meaning on every machine
        "min_steps": steps,
        "max_steps": steps,
        "decay": "fixed",
        "max_lengthen": 1.0,
        "compress": param.dp_compress,
        **_warm(param, steps, cleaned[0]),
        **given,
        "final": {"steps_factor": 1.0},
    }


def _inputs(param: RunParam) -> list[Json]:
    given = param.default_training_param
    if isinstance(given, dict):
        return [given]
    if len(given) != param.numb_models:
        raise SpecError(
            f"default_training_param: {len(given)} inputs for {param.numb_models} models; give one "
            "for each"
        )
    return list(given)


def _sectioned(given: Json, differences: list[str]) -> Json:
    """`given`, or its form with sections if it is an input of DeePMD-kit 0.x."""
    if FLAT not in given:
        return given
    try:
        from deepmd.utils.compat import convert_input_v0_v1  # deferred: not needed to submit

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the keys that it converts
            converted: Json = convert_input_v0_v1(dict(given), warning=False)
    except (ImportError, KeyError, AssertionError) as error:
        raise SpecError(
            f"default_training_param.{FLAT}: the format of DeePMD-kit 0.x, which cannot be "
            f"converted here ({error}); write the sections model, learning_rate, loss and training"
        ) from error
    differences.append("default_training_param: converted from the format of DeePMD-kit 0.x")
    return converted


def _shared(param: RunParam) -> Json:
    """The electron temperature as the only frame or atomic parameter of all models."""
    if not param.use_ele_temp:
        return {}
    numbers = {f"numb_{name}": int(n == param.use_ele_temp) for n, name in CARRIERS.items()}
    return {"model": {"fitting_net": numbers}}


def _repulsion(param: RunParam, inputs: Sequence[Json], place: Place) -> Json:
    """The repulsion section; its keys are removed from `inputs`."""
    section: Json = {}
    for given in inputs:
        model = _section(given, "model")
        own = {ours: model.pop(key, None) for key, ours in TABLE_KEYS.items()}
        if model.pop("use_srtab", None) is not None or param.srtab_file_path is not None:
            if param.srtab_file_path is None:
                raise SpecError("srtab_file_path: missing; use_srtab requires it")
            table = {"table": place(param.srtab_file_path)}
            section["repulsion"] = table | {k: v for k, v in own.items() if v is not None}
    return section


def _init(param: RunParam, place: Place, matching: Matching, differences: list[str]) -> Json:
    """The init section: models to start from."""
    section: Json = {}
    for key, how, models in _given_models(param, place, matching, differences):
        if section:
            raise SpecError(f"{key}: another key already gives models to start from; keep one")
        section = {"init": {"model": models, "how": how}}
        differences.append(f"{key}: every cold training starts from these models")
    return section


def _given_models(
    param: RunParam, place: Place, matching: Matching, differences: list[str]
) -> Iterator[tuple[str, str, list[str]]]:
    """Yield key, `how` of training.init, and the models."""
    for key, how in FROZEN.items():
        models = getattr(param, key)
        if models:
            yield key, how, [place(model) for model in models]
    if not param.training_iter0_model_path:
        return
    key = "training_iter0_model_path"
    if not (param.training_init_model or param.training_reuse_iter == 0):
        differences.append(f"{key}: not used without training_init_model, as in DP-GEN")
        return
    yield key, "init-model", _checkpoints(param, matching, key)


def _checkpoints(param: RunParam, matching: Matching, key: str) -> list[str]:
    """The newest checkpoint in each model's folder, to which DeePMD-kit keeps a link."""
    with errors_at(key, SpecError):
        folders = [f for given in param.training_iter0_model_path for f in matching(given)]
    if len(folders) != param.numb_models:
        raise SpecError(
            f"{key}: {len(folders)} folders for {param.numb_models} models; give one for each"
        )
    newest = "model.ckpt.pt" if param.train_backend == "pytorch" else "model.ckpt"
    return [f"{folder}/{newest}" for folder in folders]


FROZEN = {"training_init_frozen_model": "init-frz-model", "training_finetune_model": "finetune"}
TABLE_KEYS = {"sw_rmin": "inner", "sw_rmax": "outer", "smin_alpha": "smin_alpha"}


def _steps(inputs: Sequence[Json]) -> int:
    values = [_section(given, "training").get(key) for given in inputs for key in STEPS]
    steps = {value for value in values if value is not None}
    if len(steps) != 1 or not all(isinstance(n, int) and n > 0 for n in steps):
        what = "missing" if not steps else f"{sorted(map(str, steps))}: must be one integer"
        raise SpecError(f"default_training_param.training.numb_steps: {what}")
    return int(steps.pop())


def _section(given: Mapping[str, Any], name: str) -> Json:
    value: Any = given.get(name, {})
    if not isinstance(value, dict):
        raise SpecError(f"default_training_param.{name}: {value!r}: must be a mapping")
    return value


def _batch_size(param: RunParam, inputs: Sequence[Json], differences: list[str]) -> Any:
    """The batch size of all sets. DP-GEN's lists take precedence, as in DP-GEN."""
    data = _section(_section(inputs[0], "training"), "training_data")
    own = data.get("batch_size")
    if isinstance(own, str) and own.startswith("mixed:"):
        return own
    listed = {str(size) for size in _sizes(param.init_batch_size) + _sizes(param.sys_batch_size)}
    if len(listed) > 1:
        differences.append(
            "init_batch_size, sys_batch_size: different batch sizes "
            f"({', '.join(sorted(listed))}) are replaced by auto:32 (32 atoms or more)"
        )
    size = listed.pop() if len(listed) == 1 else "auto"
    return int(size) if size.isdigit() else "auto:32"


def _sizes(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [] if given is None else [given]


def _cleaned(given: Json, batch: Any, differences: list[str]) -> Json:
    """One input.json without the keys that dpstream sets, merged over DeePMD-kit's defaults."""
    document = given
    model = _section(document, "model")
    training = document["training"] = _section(document, "training")
    model.pop("type_map", None)
    for name, section in (("fitting_net", model.get("fitting_net", {})), ("training", training)):
        dead = [key for key in (*DEAD, *MOVED) if section.pop(key, None) is not None]
        differences += [
            f"{name}.{key}: omitted; only older DeePMD-kit versions use it"
            for key in set(dead) & DEAD
        ]
    data = _section(training, "training_data")
    data.pop("systems", None)
    training["training_data"] = {**data, "batch_size": batch}
    cleaned: Json = _without_seeds(merge(_defaults(document), document))
    return cleaned


def _defaults(document: Json) -> Json:
    """DeePMD-kit's defaults, without those that contradict a key of the file."""
    rate = dict(DEEPMD["learning_rate"])
    if "warmup_ratio" in _section(document, "learning_rate"):
        del rate["warmup_steps"]
    return {**DEEPMD, "learning_rate": rate}


def _without_seeds(value: Any) -> Any:
    """Remove seeds: dpstream sets one per member and version."""
    if isinstance(value, dict):
        return {k: _without_seeds(v) for k, v in value.items() if k not in SEEDS}
    if isinstance(value, list):
        return [_without_seeds(item) for item in value]
    return value


def _by_member(param: RunParam, members: dict[int, Json]) -> Json:
    functions = param.model_devi_activation_func
    if functions is not None and len(functions) != param.numb_models:
        raise SpecError(
            f"model_devi_activation_func: {json.dumps(functions)}: must have one entry for each "
            f"of the {param.numb_models} models"
        )
    for member, names in enumerate(functions or ()):
        embedding, fitting = names if isinstance(names, list) else (names, names)
        own = {
            "model": {
                "descriptor": {"activation_function": embedding},
                "fitting_net": {"activation_function": fitting},
            }
        }
        members[member] = merge(members.get(member, {}), own)
    return {"member_input": members} if members else {}


def _warm(param: RunParam, steps: int, document: Json) -> Json:
    """Warm starts from the weights of the newest models, with the steps of DP-GEN's reuse."""
    if not param.training_init_model and param.training_reuse_iter is None:
        return {"warm": 0.0}
    reuse, reuse_steps = param.training_reuse_iter is not None, param.training_reuse_numb_steps
    fewer = reuse_steps if reuse and reuse_steps is not None else steps
    if fewer > steps:
        raise SpecError(f"training_reuse_numb_steps: {fewer}: must not exceed numb_steps ({steps})")
    rate = param.training_reuse_start_lr if reuse else None
    prefactors = {
        "start_pref_e": param.training_reuse_start_pref_e,
        "start_pref_f": param.training_reuse_start_pref_f,
    }
    loss = {key: value for key, value in prefactors.items() if reuse and value is not None}
    return {
        "warm": fewer / steps,
        "warm_start_lr": rate or document["learning_rate"].get("start_lr", 1e-3),
        **({"warm_input": {"loss": loss}} if loss else {}),
        "cold_every": len(param.model_devi_jobs) + 2,
    }
