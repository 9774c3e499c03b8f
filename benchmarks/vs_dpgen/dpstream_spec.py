"""Builds the benchmark's campaign as a dpstream spec.

Each stage corresponds to an iteration of DP-GEN and ends after one round. A last stage with one
short trajectory that finds no candidate makes dpstream train a committee on all labels, as DP-GEN
does when its list of jobs has ended.
"""

from __future__ import annotations

from typing import Any, Literal

from benchmarks.vs_dpgen.size import (
    MEMBERS,
    NETWORK,
    REUSE,
    REUSE_LR,
    SETTINGS,
    TAU_T,
    TIMESTEP,
    TYPE_MAP,
    Size,
)
from dpstream.shared.spec import Spec

Mode = Literal["lockstep", "streaming"]
Beginning = Literal["scratch", "reuse"]
"""Whether every training starts from scratch, or all but the first from the previous models."""
UNREACHABLE = {"low": 1e6, "high": 2e6}
"""Trust levels that no frame reaches, eV/Å."""
FINAL_STEPS = 10
"""Steps of dpstream's final training, which is not part of the comparison."""


def spec(size: Size, mode: Mode, seed: int, beginning: Beginning) -> Spec:
    """The spec. Paths are relative to the folder that contains `initial/` and `structures/`."""
    return Spec.model_validate(
        {
            "name": f"vs-dpgen-{mode}",
            "seed": seed,
            "mode": mode,
            "type_map": TYPE_MAP,
            "systems": {"methane": {"structures": ["structures/*.vasp"], "periodic": False}},
            "initial": {"data": ["initial/C1H4-nopbc"]},
            "training": _training(size, beginning),
            "md": {
                "ensemble": "nvt",
                "timestep": TIMESTEP,
                "tau_t": TAU_T,
                "every": size.every,
                "steps": size.md_steps,
                "trajectories": size.structures,
                "stop_after": size.md_steps // size.every,  # DP-GEN stops no trajectory early
            },
            "trust": {"low": size.low, "high": size.high},
            "stages": _stages(size),
            "selection": _selection(size),
            "labels": {"code": "pyscf", "settings": SETTINGS, "bundle": 3},
            "audit": {"per_round": 0},
            "streaming": {"retrain_after": size.labels},
            "verification": {"nve_ps": 0},
        }
    )


def _training(size: Size, beginning: Beginning) -> dict[str, Any]:
    return {
        "members": MEMBERS,
        "input": NETWORK,
        "min_steps": size.train_steps,
        "max_steps": size.train_steps,
        "warm": REUSE if beginning == "reuse" else 0,
        "warm_start_lr": REUSE_LR,
        "cold_every": len(size.temperatures) + 1,
        "max_lengthen": 1,
        "checkpoint_steps": size.train_steps,
        "final": {"steps_factor": FINAL_STEPS / size.train_steps},
    }


def _selection(size: Size) -> dict[str, Any]:
    """DP-GEN's selection: random candidates up to the limit."""
    return {
        "policy": "random",
        "per_round": size.labels,
        "per_trajectory": size.md_steps // size.every,
        "min_separation": 0,
        "time_bins": 1,
    }


def _stages(size: Size) -> list[dict[str, Any]]:
    plan = {
        "timestep": TIMESTEP,
        "tau_t": TAU_T,
        "every": size.every,
        "stop_after": size.md_steps // size.every,
    }
    explore = {**plan, "steps": size.md_steps, "trajectories": size.structures}
    stages: list[dict[str, Any]] = [
        {
            "name": f"{temperature:g}-k",
            "systems": ["methane"],
            "temperatures": [temperature],
            "md": explore,
            "repeat": False,
        }
        for temperature in size.temperatures
    ]
    last = {**plan, "steps": size.every, "trajectories": 1}
    ending = {"name": "ending", "systems": ["methane"], "temperatures": [50.0]}
    return [*stages, {**ending, "md": last, "trust": UNREACHABLE, "repeat": False}]
