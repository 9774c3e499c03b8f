"""The `verify` task: verifies the final model.

Runs it at constant energy, measures its errors on the held-out set, and compares its properties
with those computed by the recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpstream.services.explorer.evaluation import rmse
from dpstream.services.explorer.lammps import script as md_script
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.services.explorer.tasks.explore import starting_frame
from dpstream.services.explorer.tasks.measure import compared
from dpstream.shared.atoms.dataset import load_dataset
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.errors import Permanent
from dpstream.shared.messages import Verified, Verify
from dpstream.shared.runtime.context import Context
from dpstream.shared.spec import Md
from dpstream.shared.values import Condition, Rmse, Trust


@dataclass(frozen=True)
class VerificationRun:
    """Result of a constant-energy run: `drift` in eV per atom per ps, `length_ps` in ps."""

    stable: bool
    drift: float
    length_ps: float
    detail: str


def verify(resources: ExplorerResources, command: Verify, context: Context) -> Verified:
    """Verify the model; the constant-energy run is skipped if `nve_ps` is 0. Raises Permanent for a
    system without dynamics."""
    model = resources.model(command.model, context)
    run = VerificationRun(True, 0.0, 0.0, "no run requested")
    if context.spec().verification.nve_ps > 0:
        run = _constant_energy(resources, model, command, context)
    return Verified(
        **context.envelope(),
        **vars(run),
        test=_test(resources, model, command, context),
        properties=compared(resources, [model], command.points, context) if command.points else (),
    )


def drift_of(energies: list[float], n_atoms: int, spacing: float) -> float:
    """Drift: slope of a linear fit to total energies (eV) `spacing` ps apart, in eV per atom per
    ps; 0 for fewer than two energies."""
    if len(energies) < 2:
        return 0.0
    times = np.arange(len(energies)) * spacing
    slope, _ = np.polyfit(times, (np.array(energies) - energies[0]) / n_atoms, 1)
    return float(slope)


def _constant_energy(
    resources: ExplorerResources, model: Path, command: Verify, context: Context
) -> VerificationRun:
    spec = context.spec()
    md = spec.md.model_copy(update={"ensemble": "nve"})
    frame = starting_frame(command.structure, context)
    script = _script(model, frame, md, command, context)
    resources.call("begin", {"script": vars(script)}, context)
    arguments = {
        "checks": max(1, round(spec.verification.nve_ps / (md.timestep * md.every))),
        "every": md.every,
        "overlap": md.overlap,
        "reach": resources.cutoff(model, context) if frame.cell is None else None,
    }
    outcome = resources.call("conserve", arguments, context)
    energies, spacing = outcome["energies"], md.every * md.timestep
    drift = drift_of(energies, len(frame.species), spacing)
    length, limit = (len(energies) - 1) * spacing, spec.verification.max_drift
    detail = outcome["stopped"] or ("" if abs(drift) <= limit else f"drift above {limit:g}")
    return VerificationRun(not detail, drift, length, detail)


def _script(
    model: Path, frame: Frame, md: Md, command: Verify, context: Context
) -> md_script.Script:
    folder = context.scratch.resolve()
    data, unused = folder / "start.data", Trust(low=1.0, high=2.0)
    data.write_text(md_script.data_file(frame, command.type_map, md.masses))
    temperature = context.spec().verification.nve_temperature
    condition = Condition(system="verification", temperature=temperature)
    pair = md_script.pair_commands([model], 0, command.type_map, md.every, unused, frame)
    try:
        return md_script.start_script(frame, data, md, condition, command.seed, pair)
    except ValueError as error:
        raise Permanent(str(error)) from error


def _test(
    resources: ExplorerResources, model: Path, command: Verify, context: Context
) -> Rmse | None:
    if command.test is None:
        return None
    return rmse(resources, model, load_dataset(context.fetch, command.test), context)
