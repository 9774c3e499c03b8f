"""The error of a committee on the held-out set, and the ratio of two errors with its
uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dpstream.shared.atoms.frames import Batch, Floats, Ints
from dpstream.shared.runtime.child_process import ChildProcess

RESAMPLES = 10_000
LIMIT = 1.05
"""A speedup is claimed only if the upper bound of the error ratio is below this."""

Errors = Mapping[str, Floats]
"""By temperature: mean square error of a force component, (eV/Å)², `(n_models, n_trajectories)`;
means over the frames of each held-out trajectory."""


def measure(models: Sequence[str], test: Mapping[str, Batch], scratch: Path) -> Errors:
    reads = list(map(Path, models))
    engine = ChildProcess("dpstream.services.explorer.lammps.child", scratch, reads=reads)
    try:
        return {name: _errors(engine, models, batch, scratch) for name, batch in test.items()}
    finally:
        engine.kill()


def _errors(engine: ChildProcess, models: Sequence[str], batch: Batch, scratch: Path) -> Floats:
    scratch.mkdir(parents=True, exist_ok=True)
    frames, result = scratch.resolve() / "frames.npz", scratch.resolve() / "forces.npz"
    frames.write_bytes(Batch(batch.species, batch.positions).dumps())
    engine.call("evaluate", {"models": list(models), "batch": str(frames), "result": str(result)})
    with np.load(result, allow_pickle=False) as found:
        squared = (found["forces"] - batch.arrays["forces"]) ** 2
    return by_trajectory(squared.mean(axis=(2, 3)), batch.arrays["trajectory"])


def by_trajectory(values: Floats, trajectory: Sequence[int] | Floats) -> Floats:
    """Means of `values` `(n_models, n_frames)` over each trajectory, in order of their numbers."""
    numbers = np.asarray(trajectory)
    return np.stack([values[:, numbers == n].mean(axis=1) for n in np.unique(numbers)], axis=1)


def rmse(errors: Floats) -> float:
    """Root mean square error, eV/Å."""
    return float(np.sqrt(errors.mean()))


def overall(errors: Errors) -> float:
    """Root mean square over temperatures, each with the same weight; eV/Å."""
    return float(np.sqrt(np.mean([values.mean() for values in errors.values()])))


def rms_force(batch: Batch) -> float:
    return float(np.sqrt((batch.arrays["forces"] ** 2).mean()))


def ratio(ours: Sequence[Errors], theirs: Sequence[Errors]) -> tuple[float, float, float]:
    """Overall force RMSE of `ours` over `theirs`, and its bootstrap 95 % bounds.

    `ours`, `theirs`: one item per seed. The bootstrap draws seeds and, within each temperature,
    trajectories with the same draws for both sides, because they share inputs and held-out frames.
    It draws models separately for each side, because the result of a training depends on its random
    numbers.
    """
    random = np.random.default_rng(1)
    seeds = random.integers(len(ours), size=(RESAMPLES, len(ours)))
    rows = {
        name: random.integers(values.shape[1], size=(RESAMPLES, values.shape[1]))
        for name, values in ours[0].items()
    }
    value = np.sqrt(_mean_square(ours) / _mean_square(theirs))
    resampled = np.sqrt(
        _resampled(ours, seeds, rows, random) / _resampled(theirs, seeds, rows, random)
    )
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(value), float(low), float(high)


def _mean_square(side: Sequence[Errors]) -> float:
    return float(np.mean([overall(errors) ** 2 for errors in side]))


def _resampled(
    side: Sequence[Errors],
    seeds: Ints,
    rows: Mapping[str, Ints],
    random: np.random.Generator,
) -> Floats:
    """Mean square errors `(n_draws,)`. `seeds`: drawn seeds `(n_draws, n_seeds)`; `rows`: drawn
    trajectories by temperature `(n_draws, n_trajectories)`."""
    models = next(iter(side[0].values())).shape[0]
    columns = random.integers(models, size=(*seeds.shape, models))
    by_temperature = [
        _drawn(np.stack([errors[name] for errors in side]), seeds, columns, chosen)
        for name, chosen in rows.items()
    ]
    means: Floats = np.mean(by_temperature, axis=0)
    return means


def _drawn(values: Floats, seeds: Ints, models: Ints, rows: Ints) -> Floats:
    """Means `(n_draws,)` of `values` `(n_seeds, n_models, n_trajectories)` over the drawn
    entries."""
    index = seeds[:, :, None, None], models[:, :, :, None], rows[:, None, None, :]
    means: Floats = values[index].mean(axis=(1, 2, 3))
    return means
