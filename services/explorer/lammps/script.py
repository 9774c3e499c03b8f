"""Builds the LAMMPS input of one trajectory as text, without running LAMMPS.

Commands as in the LAMMPS manual, release 22 Jul 2025 (units `metal`: eV, Å, ps, K, bar) and
DeePMD-kit's `pair_style deepmd`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ase.data import atomic_masses, atomic_numbers

from dpstream.shared.atoms.frames import Floats, Frame
from dpstream.shared.spec import Md
from dpstream.shared.values import Condition, Trust

PADDING = 10.0
"""Å between a molecule and the walls of its box, which expand with it."""
OUT_FILE = "<deviations>"
"""Placeholder for the file of deviations, replaced by the session that runs the commands."""
COLDEST = 0.1
"""K; the Nose–Hoover equations divide by the target temperature."""


def data_file(frame: Frame, type_map: Sequence[str], masses: Mapping[str, float]) -> str:
    """The frame as a LAMMPS data file; its cell, if any, must be lower triangular.

    `masses`: amu by symbol, instead of the standard ones. Coordinates are written without
    loss of precision.
    """
    lines = ["dpstream", "", f"{len(frame.species)} atoms", f"{len(type_map)} atom types", ""]
    lines += [*_box(frame), "", "Masses", ""]
    for number, symbol in enumerate(type_map, 1):
        mass = masses.get(symbol, float(atomic_masses[atomic_numbers[symbol]]))
        lines.append(f"{number} {mass!r}")
    lines += ["", "Atoms # atomic", ""]
    types = {symbol: number for number, symbol in enumerate(type_map, 1)}
    atoms = zip(frame.species, frame.positions.tolist(), strict=True)
    for number, (symbol, position) in enumerate(atoms, 1):
        lines.append(f"{number} {types[symbol]} {position[0]!r} {position[1]!r} {position[2]!r}")
    return "\n".join(lines) + "\n"


def _box(frame: Frame) -> list[str]:
    bounds = zip("xyz", *_bounds(frame), strict=True)
    box = [f"{low!r} {high!r} {axis}lo {axis}hi" for axis, low, high in bounds]
    tilt = " ".join(map(repr, _tilt(frame)))
    return box if frame.cell is None else [*box, f"{tilt} xy xz yz"]


def _change_box(frame: Frame) -> str:
    bounds = zip("xyz", *_bounds(frame), strict=True)
    words = [f"{axis} final {low!r} {high!r}" for axis, low, high in bounds]
    if frame.cell is not None:
        tilts = zip(("xy", "xz", "yz"), _tilt(frame), strict=True)
        words += [f"{name} final {tilt!r}" for name, tilt in tilts]
    return f"change_box all {' '.join(words)} units box"


def _bounds(frame: Frame) -> tuple[list[float], list[float]]:
    if frame.cell is not None:
        return [0.0, 0.0, 0.0], np.diag(frame.cell).tolist()
    low, high = frame.positions.min(axis=0), frame.positions.max(axis=0)
    return (low - PADDING).tolist(), (high + PADDING).tolist()


def _tilt(frame: Frame) -> list[float]:
    cell = np.zeros((3, 3)) if frame.cell is None else frame.cell
    return [float(cell[1, 0]), float(cell[2, 0]), float(cell[2, 1])]


@dataclass(frozen=True)
class Script:
    """Commands from an empty LAMMPS to the first step, in order: `header` before the box exists,
    `source` the data or restart file with the atoms, `pair` the committee, `dynamics` the time
    integration, `velocity` the initial velocities. `box` replaces an existing box by that of
    `source`. `single_use`: the LAMMPS instance cannot be reused afterwards."""

    header: list[str]
    box: str
    source: str
    pair: list[str]
    dynamics: list[str]
    velocity: list[str]
    single_use: bool = False


def start_script(
    frame: Frame, data: Path, md: Md, condition: Condition, seed: int, pair: list[str]
) -> Script:
    """A trajectory from the frame in the file `data`. Raises ValueError for a single atom and for a
    barostat with a molecule in vacuum."""
    script = resume_script(frame, data, md, condition, pair)
    temperature = max(condition.temperature, COLDEST)
    spin = "yes" if frame.cell is None else "no"
    velocity = (
        f"velocity all create {temperature!r} {seed} temp thermo_temp mom yes rot {spin} "
        "dist gaussian"
    )
    return replace(script, velocity=[velocity])


def resume_script(
    frame: Frame, restart: Path, md: Md, condition: Condition, pair: list[str]
) -> Script:
    """A trajectory from a restart file, which includes the state of thermostat and barostat."""
    check_start(frame, md)
    dynamics = _dynamics(frame, md, condition)
    return Script(header(frame.cell is None), _change_box(frame), str(restart), pair, dynamics, [])


def pair_commands(
    models: Sequence[Path],
    driver: int,
    type_map: Sequence[str],
    every: int,
    trust: Trust,
    frame: Frame,
) -> list[str]:
    """The committee as pair style, `driver` first, because the first model drives the dynamics. The
    others are evaluated every `every` steps, when a line of deviations is written to `OUT_FILE`.
    LAMMPS types 1, 2, … are the elements of `type_map` in order. The models' parameters are those
    of `frame`. Raises ValueError if aparam differs between atoms, which LAMMPS does not support."""
    first = driver % len(models)
    ring = [*models[first:], *models[:first]]
    words = ["pair_style deepmd", *(f'"{model}"' for model in ring)]
    if len(ring) > 1:
        words.append(f'out_file "{OUT_FILE}" out_freq {every}')
        if trust.relative is not None:
            words.append(f"relative {trust.relative!r}")
        if trust.relative_v is not None:
            words.append(f"relative_v {trust.relative_v!r}")
    words += parameter_words(frame)
    return [" ".join(words), "pair_coeff * * " + " ".join(type_map)]


def parameter_words(frame: Frame) -> list[str]:
    """Arguments of the pair style for a frame's parameters."""
    words = [f"fparam {_numbers(frame.fparam)}"] if frame.fparam is not None else []
    if frame.aparam is not None:
        if np.ptp(frame.aparam, axis=0).any():
            raise ValueError("LAMMPS supports only one aparam for all atoms, but here they differ")
        words.append(f"aparam {_numbers(frame.aparam[0])}")
    return words


def _numbers(values: Floats) -> str:
    return " ".join(map(repr, values.tolist()))


def check_start(frame: Frame, md: Md) -> None:
    """Raises ValueError for a single atom and for a barostat with a molecule in vacuum."""
    if len(frame.species) == 1:
        raise ValueError("a single atom has no dynamics: use a supercell")
    if frame.cell is None and md.ensemble.startswith("npt"):
        raise ValueError(f"{md.ensemble}: the pressure of a molecule in vacuum is undefined")


def header(vacuum: bool) -> list[str]:
    """Commands that precede the definition of the box."""
    # Shrink-wrapped walls with a minimum follow the molecule, so that no atom is lost. Neighbour
    # search over all pairs, because fragments that fly apart would need too many bins.
    return [
        "units metal",
        "atom_style atomic",
        "atom_modify map array sort 0 0",
        "boundary m m m" if vacuum else "boundary p p p",
        "box tilt large",
        "neighbor 1.0 nsq" if vacuum else "neighbor 1.0 bin",
    ]


def _dynamics(frame: Frame, md: Md, condition: Condition) -> list[str]:
    return [
        "neigh_modify every 1 delay 0 check yes",
        f"timestep {md.timestep!r}",
        "thermo_style custom step temp pe etotal press",
        "thermo_modify lost error norm no",
        "thermo 0",
        f"compute_modify thermo_temp extra/dof {frozen_freedoms(frame)}",
        *_ensemble(frame, md, condition),
    ]


def _ensemble(frame: Frame, md: Md, condition: Condition) -> list[str]:
    temperature = max(condition.temperature, COLDEST)
    heat = f"temp {temperature!r} {temperature!r} {md.tau_t!r}"
    if md.ensemble == "nve":
        return ["fix motion all nve"]
    if md.ensemble == "nvt":
        still = "fix still all momentum 100 linear 1 1 1 angular"
        commands = [f"fix motion all nvt {heat}", "fix_modify motion temp thermo_temp"]
        return [*commands, still] if frame.cell is None else commands
    coupling = {"npt-aniso": "aniso", "npt-tri": "tri"}.get(md.ensemble, "iso")
    pressure = condition.pressure or 0.0
    squeeze = f"{coupling} {pressure!r} {pressure!r} {md.tau_p!r}"
    return [f"fix motion all npt {heat} {squeeze}"]


def frozen_freedoms(frame: Frame) -> int:
    """Degrees of freedom without kinetic energy: translation of the centre of mass and, in vacuum,
    rotation (two axes for linear molecules)."""
    if frame.cell is not None:
        return 3
    centred = frame.positions - frame.positions.mean(axis=0)
    on_a_line = np.linalg.matrix_rank(centred, tol=1e-3) < 2
    return 5 if on_a_line else 6
