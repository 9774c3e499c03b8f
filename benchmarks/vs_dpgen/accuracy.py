"""The true error of a committee on the held-out set, and what a ratio of two errors is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from shared.engine import Engine
from shared.frames import Batch, Floats, Ints

RESAMPLES = 10_000
LIMIT = 1.05
"""A speed is claimed only where the error ratio's upper bound is below this."""

Errors = Mapping[str, Floats]
"""By temperature: mean square error of a force component, (eV/Å)², of every held-out trajectory
`(n_trajectories,)`, mean over its frames and the committee's models."""


def measure(models: Sequence[str], test: Mapping[str, Batch], scratch: Path) -> Errors:
    engine = Engine("services.explorer.lammps_engine", scratch)
    try:
        return {name: _errors(engine, models, batch, scratch) for name, batch in test.items()}
    finally:
        engine.kill()


def _errors(engine: Engine, models: Sequence[str], batch: Batch, scratch: Path) -> Floats:
    scratch.mkdir(parents=True, exist_ok=True)
    given, result = scratch.resolve() / "frames.npz", scratch.resolve() / "forces.npz"
    given.write_bytes(Batch(batch.species, batch.positions).dumps())
    engine.call("evaluate", {"models": list(models), "batch": str(given), "result": str(result)})
    with np.load(result, allow_pickle=False) as found:
        squared = (found["forces"] - batch.arrays["forces"]) ** 2
    return by_trajectory(squared.mean(axis=(0, 2, 3)), batch.arrays["trajectory"])


def by_trajectory(values: Floats, trajectory: Sequence[int] | Floats) -> Floats:
    """Means of `values` `(n_frames,)` over each trajectory, in order of their numbers."""
    numbers = np.asarray(trajectory)
    return np.array([values[numbers == n].mean() for n in np.unique(numbers)])


def rmse(errors: Floats) -> float:
    """eV/Å."""
    return float(np.sqrt(errors.mean()))


def overall(errors: Errors) -> float:
    """Root mean square over temperatures, each with the same weight; eV/Å."""
    return float(np.sqrt(np.mean([values.mean() for values in errors.values()])))


def rms_force(batch: Batch) -> float:
    return float(np.sqrt((batch.arrays["forces"] ** 2).mean()))


def ratio(ours: Sequence[Errors], theirs: Sequence[Errors]) -> tuple[float, float, float]:
    """Overall force RMSE of `ours` over `theirs`, and its bootstrap 95 % bounds.

    One item per seed. Seeds and, within each temperature, trajectories are drawn with replacement;
    both sides get the same draw, because they share inputs and held-out frames.
    """
    random = np.random.default_rng(1)
    seeds = random.integers(len(ours), size=(RESAMPLES, len(ours)))
    draws = {
        name: random.integers(len(values), size=(RESAMPLES, len(values)))
        for name, values in ours[0].items()
    }
    value = np.sqrt(_mean_square(ours) / _mean_square(theirs))
    resampled = np.sqrt(_resampled(ours, seeds, draws) / _resampled(theirs, seeds, draws))
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(value), float(low), float(high)


def _mean_square(side: Sequence[Errors]) -> float:
    return float(np.mean([overall(errors) ** 2 for errors in side]))


def _resampled(side: Sequence[Errors], seeds: Ints, draws: Mapping[str, Ints]) -> Floats:
    """Mean square errors `(n_draws,)`; `seeds` `(n_draws, n_seeds)`, `draws` by temperature
    `(n_draws, n_trajectories)`."""
    by_temperature = [
        np.stack([errors[name] for errors in side])[seeds[:, :, None], rows[:, None, :]]
        for name, rows in draws.items()
    ]
    means: Floats = np.mean([drawn.mean(axis=(1, 2)) for drawn in by_temperature], axis=0)
    return means
