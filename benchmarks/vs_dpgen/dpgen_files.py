"""Builds DP-GEN's `param.json` and `machine.json` for the benchmark's campaign.

Keys: https://docs.deepmodeling.com/projects/dpgen, "dpgen run param parameters" and "machine
parameters", release 0.14.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.vs_dpgen.size import MEMBERS, TAU_T, TIMESTEP, TYPE_MAP, Size
from dpstream.services.trainer.training_input import TrainingRun, build_input
from dpstream.shared.runtime.child_process import PINNED
from dpstream.shared.spec import Training

Json = dict[str, Any]
PARALLEL = 2
"""Parallel jobs in every stage."""


def param(size: Size, training: Training, inputs: Path) -> Json:
    """`param.json`. `inputs`: the folder with `initial/<system>` and `structures/*.vasp`."""
    return {
        "type_map": list(TYPE_MAP),
        "mass_map": "auto",
        "init_data_prefix": str(inputs),
        "init_data_sys": ["initial/C1H4-nopbc"],
        "init_batch_size": ["auto"],
        "sys_configs_prefix": str(inputs),
        "sys_configs": [["structures/*.vasp"]],
        "sys_batch_size": ["auto"],
        "numb_models": MEMBERS,
        "default_training_param": training_param(size, training),
        **_reuse(size, training),
        "dp_compress": True,
        "model_devi_dt": TIMESTEP,
        "model_devi_skip": 1,  # dpstream does not check step 0 either
        "model_devi_f_trust_lo": size.low,
        "model_devi_f_trust_hi": size.high,
        "model_devi_nopbc": True,
        "model_devi_jobs": [_job(size, temperature) for temperature in size.temperatures],
        "shuffle_poscar": False,
        "fp_style": "custom",
        "fp_task_max": size.labels,
        "fp_task_min": 1,
        "fp_params": {
            "input_fmt": "deepmd/npy",
            "input_fn": "frame",
            "output_fmt": "deepmd/npy",
            "output_fn": "label",
        },
    }


def training_param(size: Size, training: Training) -> Json:
    """The `input.json` that dpstream writes, without the systems, batch sizes and seeds: DP-GEN
    fills these in, and draws a seed for every model."""
    run = TrainingRun(type_map=TYPE_MAP, systems=(), steps=size.train_steps, seed=1, member=0)
    return build_input(training, run)


def _reuse(size: Size, training: Training) -> Json:
    """Keys for trainings that start from the previous models. `auto:1` gives old and new frames the
    same weight, as in dpstream."""
    if not training.warm:
        return {}
    return {
        "training_reuse_iter": 1,
        "training_reuse_numb_steps": round(size.train_steps * training.warm),
        "training_reuse_start_lr": training.warm_start_lr,
        "training_reuse_old_ratio": "auto:1",
    }


def _job(size: Size, temperature: float) -> Json:
    return {
        "sys_idx": [0],
        "temps": [temperature],
        "press": [1.0],  # required; no effect at constant volume
        "trj_freq": size.every,
        "nsteps": size.md_steps,
        "ensemble": "nvt",
        "taut": TAU_T,
    }


def machine(size: Size, commands: Mapping[str, str]) -> Json:
    """`machine.json`: local shells, with each stage divided into two parallel jobs. `commands`: by
    stage (train, model_devi, fp)."""
    tasks = {"train": MEMBERS, "model_devi": size.structures, "fp": size.labels}
    return {
        "api_version": "1.0",
        "deepmd_version": "3.2.0",
        **{stage: [_stage(commands[stage], count)] for stage, count in tasks.items()},
    }


def _stage(command: str, tasks: int) -> Json:
    return {
        "command": command,
        "machine": {
            "batch_type": "Shell",
            "context_type": "LocalContext",
            "local_root": "./",
            "remote_root": "./remote",
        },
        "resources": {
            "number_node": 1,
            "cpu_per_node": 1,
            "gpu_per_node": 0,
            "queue_name": "",
            "group_size": -(-tasks // PARALLEL),
            "envs": dict.fromkeys(PINNED, "1"),
        },
    }
