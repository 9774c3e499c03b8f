"""The explorer's child process: molecular dynamics in LAMMPS sessions, evaluation of committees.

Run by `dpstream.shared.runtime.child_process`; arrays are passed as `.npz` files. LAMMPS sessions
and models stay loaded between calls.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpstream.services.explorer.gromacs import child as gromacs
from dpstream.services.explorer.lammps.path_integral_child import FIX, MPIEXEC, path_integral
from dpstream.services.explorer.lammps.sanity import unphysical
from dpstream.services.explorer.lammps.script import Script
from dpstream.services.explorer.lammps.session import Sessions
from dpstream.shared.atoms.deviation import max_force_deviation, verdict, virial_deviation
from dpstream.shared.atoms.frames import PARAMETERS, Batch, Floats, Frame, Ints
from dpstream.shared.runtime.child_process import progressed
from dpstream.shared.runtime.machine_faults import is_gpus_fault
from dpstream.shared.values import Trust

from dpstream.shared.atoms.deep_pot import DeepPotential  # isort: skip

SESSIONS = Sessions(Path.cwd())
Check = tuple[Floats, Floats, float, float, int, Ints]
"""Positions, cell, force deviation, virial deviation, step, types."""


@functools.lru_cache(maxsize=32)
def _model(path: str) -> DeepPotential:
    return DeepPotential(path)


def begin(script: Mapping[str, Any]) -> None:
    """Start a trajectory by the fields of a `Script` and evaluate its first step."""
    _or_discard_session(lambda: SESSIONS.start(Script(**script)))


def resume(script: Mapping[str, Any]) -> None:
    """Resume a trajectory from a restart file."""
    _or_discard_session(lambda: SESSIONS.resume(Script(**script)))


def change(header: Sequence[str], pair: Sequence[str]) -> None:
    """Continue the current trajectory with another committee."""
    _or_discard_session(lambda: SESSIONS.change(header, pair))


def advance(
    checks: int,
    every: int,
    overlap: float,
    reach: float | None,
    trust: Mapping[str, float | None],
    streak: int,
    stop_after: int,
    frames: str,
    judges: Sequence[str] = (),
    type_map: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run up to `checks` times `every` steps, each followed by a check of the deviation.

    Writes `frames` (`.npz`): positions `(n, n_atoms, 3)` Å by atom id, cells `(n, 3, 3)` Å, devi_f
    `(n,)` eV/Å, devi_v `(n,)` eV (zero in vacuum), steps `(n,)`, types `(n, n_atoms)` from 1, which
    are the elements of `type_map`. Without `judges` the pair style reports the deviations; else
    they are those of the models `judges` at the frame's `parameters`. `reach`: the models' cutoff
    in Å for a molecule in vacuum, None for periodic frames. Returns `made` = n, `streak` of
    consecutive failed checks at the end, and `stopped`: reason why the trajectory ends here, or
    None. No check is made if atoms overlap (`overlap`, Å), are lost, have non-finite positions or,
    in vacuum, form fragments further apart than `reach`.
    """
    levels, vacuum = Trust.model_validate(trust), reach is not None
    deviation = SESSIONS.in_use.deviation
    if judges:
        own = {name: np.array(values) for name, values in (parameters or {}).items()}
        deviation = functools.partial(_judged, judges, type_map, levels, vacuum, own)
    seen: list[Check] = []
    stopped = None
    while len(seen) < checks and stopped is None:
        stopped = _run(every) or _unphysical(overlap, reach)
        check = None if stopped else _check(deviation, vacuum)
        if check is None:
            stopped = stopped or "deviation is not a number"
            break
        seen.append(check)
        failed = verdict(check[2], None if vacuum else check[3], levels) == "failed"
        streak = streak + 1 if failed else 0
        if streak >= stop_after:
            stopped = f"{streak} checks in a row above the upper trust level"
    _save(Path(frames), seen)
    return {"made": len(seen), "streak": streak, "stopped": stopped}


def _check(deviation: Callable[[], tuple[float, float]], vacuum: bool) -> Check | None:
    """The current frame with its deviations; None if these are not finite."""
    session = SESSIONS.in_use
    devi_f, devi_v = deviation()
    if not (math.isfinite(devi_f) and math.isfinite(devi_v)):
        return None
    devi_v = 0.0 if vacuum else devi_v
    return session.positions(), session.cell(), devi_f, devi_v, session.step, session.types()


def _judged(
    judges: Sequence[str],
    type_map: Sequence[str],
    trust: Trust,
    vacuum: bool,
    parameters: Mapping[str, Floats],
) -> tuple[float, float]:
    """Force (eV/Å) and virial deviation (eV per atom) of `judges` on the current frame."""
    session = SESSIONS.in_use
    species = tuple(type_map[number - 1] for number in session.types())
    plain = Frame(species, session.positions(), None if vacuum else session.cell())
    frame = plain.with_parameters(parameters)
    _, forces, virials = _evaluated(judges, Batch.of([frame]))
    devi_f = max_force_deviation(forces, trust.relative)
    devi_v = virial_deviation(virials, len(species), trust.relative_v)
    return float(devi_f[0]), float(devi_v[0])


def conserve(checks: int, every: int, overlap: float, reach: float | None) -> dict[str, Any]:
    """Run up to `checks` times `every` steps. Returns `energies`: total energy in eV at the start
    and after each check; `stopped`: reason why the run ended early, or None. Otherwise as
    `advance`."""
    energies, stopped = [SESSIONS.in_use.energy], None
    while len(energies) <= checks and stopped is None:
        stopped = _run(every) or _unphysical(overlap, reach)
        if stopped is None:
            energies.append(SESSIONS.in_use.energy)
    return {"energies": energies, "stopped": stopped}


def check(folder: str) -> str:
    """Evaluate a compressed PyTorch model, as `evaluate_tiny_model`."""
    from dpstream.shared.atoms.tiny_model import evaluate_tiny_model  # imports torch

    return evaluate_tiny_model(folder)


def write_restart(path: str) -> None:
    SESSIONS.in_use.write_restart(path)


def has_fix(style: str) -> bool:
    """Whether this LAMMPS was built with the fix `style`."""
    return SESSIONS.has_fix(style)


def missing_for_beads() -> str | None:
    """What this machine lacks for path-integral dynamics, with the remedy, or None."""
    if not MPIEXEC.exists():
        return f"{MPIEXEC} is missing; pip install mpich in the environment of LAMMPS"
    return None if has_fix(FIX) else f"this worker's LAMMPS was built without fix {FIX}"


def evaluate(models: Sequence[str], batch: str, result: str) -> None:
    """Every model on every frame of a batch file. Writes `result` (`.npz`): energies
    `(n_models, n_frames)` eV, forces `(n_models, n_frames, n_atoms, 3)` eV/Å, virials
    `(n_models, n_frames, 3, 3)` eV (meaningless in vacuum)."""
    energies, forces, virials = _evaluated(models, Batch.loads(Path(batch).read_bytes()))
    _save_arrays(result, energies=energies, forces=forces, virials=virials)


def _evaluated(models: Sequence[str], frames: Batch) -> tuple[Floats, Floats, Floats]:
    n, atoms = frames.positions.shape[:2]
    energies, forces, virials = [], [], []
    for path in models:
        energy, force, virial = _model(path).eval(*_input(path, frames), **_parameters(frames))[:3]
        energies.append(energy.reshape(n))
        forces.append(force.reshape(n, atoms, 3))
        virials.append(virial.reshape(n, 3, 3))
        progressed()
    return np.array(energies), np.array(forces), np.array(virials)


def relax(
    models: Sequence[str],
    batch: str,
    result: str,
    steps: int,
    max_force: float,
    pressure: float,
    overlap: float,
) -> None:
    """Relax the single frame of a batch file by the mean of `models`. Writes `result` (`.npz`):
    positions `(n_atoms, 3)` Å, cell `(3, 3)` Å, enthalpy `()` eV, and each model's forces and
    virials there, `(n_models, n_atoms, 3)` eV/Å and `(n_models, 3, 3)` eV."""
    from dpstream.services.explorer.lammps.relaxation import relaxed

    frame = Batch.loads(Path(batch).read_bytes())[0]
    evaluate = functools.partial(_evaluated, models)
    found = relaxed(frame, evaluate, steps, max_force, pressure, overlap)
    assert found.frame.cell is not None
    _save_arrays(
        result,
        positions=found.frame.positions,
        cell=found.frame.cell,
        enthalpy=found.enthalpy,
        forces=found.forces,
        virials=found.virials,
    )


def finds_gpu(suffix: str) -> bool:
    """Whether the backend of model files with this suffix can use a GPU."""
    if suffix == ".pth":
        import torch

        return bool(torch.cuda.is_available())
    from deepmd.tf.env import tf

    return bool(tf.config.list_physical_devices("GPU"))


def cutoff(model: str) -> float:
    """Cutoff radius of a model, Å."""
    return _model(model).cutoff


def descriptors(model: str, batch: str, result: str) -> None:
    """Writes `result` (`.npz`): descriptors `(n_frames, n_atoms, n_features)` of one model."""
    frames = Batch.loads(Path(batch).read_bytes())
    n, atoms = frames.positions.shape[:2]
    values = _model(model).eval_descriptor(*_input(model, frames), **_parameters(frames))
    _save_arrays(result, descriptors=values.reshape(n, atoms, -1))


def _or_discard_session(work: Callable[[], object]) -> None:
    try:
        work()
    except Exception:
        SESSIONS.discard()
        raise


def _run(steps: int) -> str | None:
    """Run `steps` steps; returns the first line of LAMMPS' error, or None. Raises its exception if
    the GPU is at fault."""
    try:
        SESSIONS.in_use.run(steps)
    except Exception as error:  # LAMMPS raises bare Exception and MPIAbortException
        SESSIONS.discard()
        if is_gpus_fault(str(error)):
            raise
        return str(error).strip().splitlines()[0]
    progressed()
    return None


def _unphysical(overlap: float, reach: float | None) -> str | None:
    session = SESSIONS.in_use
    return unphysical(session.positions(), session.cell(), overlap, reach)


def _save(path: Path, seen: Sequence[Check]) -> None:
    _save_arrays(
        str(path),
        positions=np.array([row[0] for row in seen]),
        cells=np.array([row[1] for row in seen]).reshape(-1, 3, 3),
        devi_f=np.array([row[2] for row in seen], dtype=np.float64),
        devi_v=np.array([row[3] for row in seen], dtype=np.float64),
        steps=np.array([row[4] for row in seen], dtype=np.int64),
        types=np.array([row[5] for row in seen], dtype=np.int64),
    )


def _save_arrays(path: str, **arrays: npt.ArrayLike) -> None:
    with Path(path).open("wb") as file:
        columns: dict[str, Any] = {name: np.asarray(values) for name, values in arrays.items()}
        np.savez(file, **columns)


def _input(path: str, frames: Batch) -> tuple[Floats, Floats | None, list[int]]:
    """Arguments of DeepPot: coordinates `(n, 3 × n_atoms)`, cells `(n, 9)` and types."""
    numbers = {symbol: number for number, symbol in enumerate(_model(path).type_map)}
    n = len(frames)
    cells = None if frames.cells is None else frames.cells.reshape(n, 9)
    return frames.positions.reshape(n, -1), cells, [numbers[s] for s in frames.species]


def _parameters(frames: Batch) -> dict[str, Floats]:
    """The parameters of frames; models without parameters ignore them."""
    return {name: frames.arrays[name] for name in PARAMETERS if name in frames.arrays}


OPERATIONS: dict[str, Callable[..., Any]] = {
    "begin": begin,
    "resume": resume,
    "change": change,
    "advance": advance,
    "conserve": conserve,
    "check": check,
    "write_restart": write_restart,
    "has_fix": has_fix,
    "evaluate": evaluate,
    "relax": relax,
    "missing_for_beads": missing_for_beads,
    "path_integral": path_integral,
    **gromacs.OPERATIONS,
    "finds_gpu": finds_gpu,
    "cutoff": cutoff,
    "descriptors": descriptors,
}
