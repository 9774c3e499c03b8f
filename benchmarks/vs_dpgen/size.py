"""Sizes of the benchmark. The same numbers go into DP-GEN's files and into dpstream's spec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TYPE_MAP = ("C", "H")
MEMBERS = 4
TIMESTEP = 0.0005
"""Time step, ps."""
TAU_T = 0.05
"""Time constant of the thermostat, ps."""
REUSE = 0.25
"""Steps of a training that starts from the previous models, relative to one from scratch."""
REUSE_LR = 1e-3
"""Initial learning rate of such a training."""
SETTINGS = {"xc": "PBE", "basis": "def2-svp"}
"""Settings of PySCF; `pyscf_fp.py` repeats them and dpstream's defaults for the others."""
NETWORK = {
    "model": {
        "descriptor": {
            "type": "se_e2_a",
            "rcut": 5.0,
            "rcut_smth": 0.5,
            "sel": [1, 4],
            "neuron": [10, 20, 40],
            "axis_neuron": 8,
        },
        "fitting_net": {"neuron": [64, 64, 64]},
    },
    "learning_rate": {"start_lr": 0.005, "stop_lr": 1.0e-5},
}


@dataclass(frozen=True)
class HeldOut:
    """Reference dynamics for the held-out set, per temperature: `trajectories` independent ones of
    `frames` frames, `spacing` ps apart. `driver`: the method whose forces move the atoms; the
    frames are labelled by PySCF's full settings in any case."""

    trajectories: int
    frames: int
    spacing: float
    driver: Literal["pyscf", "tblite"]


@dataclass(frozen=True)
class Size:
    """One iteration explores at one of `temperatures` (K) from `structures` starting structures.

    low, high: trust levels, eV/Å; labels: limit per iteration; md_steps: steps of 0.5 fs, with a
    check every `every` steps.
    """

    name: str
    temperatures: tuple[float, ...]
    train_steps: int
    initial: int
    structures: int
    md_steps: int
    every: int
    labels: int
    low: float
    high: float
    held_out: HeldOut


FULL = Size(
    name="full",
    temperatures=(50.0, 300.0, 600.0),
    train_steps=4000,
    initial=10,
    structures=20,
    md_steps=2000,
    every=20,
    labels=60,
    low=0.015,
    high=5.0,
    held_out=HeldOut(trajectories=10, frames=3, spacing=0.1, driver="pyscf"),
)
MEDIUM = Size(
    name="medium",
    temperatures=(50.0, 300.0, 600.0),
    train_steps=1500,
    initial=12,
    structures=10,
    md_steps=1000,
    every=20,
    labels=20,
    low=0.03,
    high=5.0,
    held_out=HeldOut(trajectories=10, frames=2, spacing=0.1, driver="tblite"),
)
QUICK = Size(
    name="quick",
    temperatures=(50.0, 300.0),
    train_steps=300,
    initial=8,
    structures=4,
    md_steps=200,
    every=20,
    labels=6,
    low=0.02,
    high=20.0,
    held_out=HeldOut(trajectories=4, frames=1, spacing=0.1, driver="tblite"),
)
SIZES = (QUICK, MEDIUM, FULL)
