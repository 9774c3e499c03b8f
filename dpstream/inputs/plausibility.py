"""Judges the physics of a campaign: time steps, conditions, trust levels and structures.

Every judgement is about a number that is valid but unusual: *odd* ones become warnings of the plan
that state what is usual; *absurd* ones, mostly a wrong unit, are refused unless the user insists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from ase import units
from ase.data import atomic_masses, atomic_numbers

from dpstream.inputs.check_training import counted_by_type
from dpstream.shared.atoms.frames import Frame, FrameLabel, to_ase
from dpstream.shared.spec import AutoTrust, Spec, Stage, TrustLevels
from dpstream.shared.spec.engines import AsGiven, Search

FASTEST = 0.0111
"""ps, the period of a stretched X-H bond (3000 cm⁻¹), the fastest vibration of a hydrogen atom."""
LONGEST_STEP = 0.005
"""ps, above which a time step is unusual whatever the elements."""
STEP = (0.1, 0.5)
"""Å that the lightest atom moves in one step at the mean thermal speed: odd above, absurd above."""
LONGEST, SHORTEST = 10_000.0, 0.02
"""ps, unusual lengths of trajectories."""
HOTTEST = 20_000.0
"""K."""
PRESSURE = (1e6, 1e8)
"""bar: odd above, absurd above."""
LEVEL = (1.0, 10.0)
"""eV/Å, the lower trust level: odd above, absurd above."""
OVER_FORCES = (3.0, 20.0)
"""The lower trust level in units of the given labels' RMS force."""
FINEST_LEVEL = 1e-3
"""eV/Å, below the noise of most labels."""
SPARSE, EMPTY, DENSE, CRUSHED = 4.0, 8.0, 0.35, 0.2
"""Volume per atom in units of the elements' own: odd above, absurd above under a barostat, odd
below, absurd below."""
MOLECULAR = 10.0
"""Å³, of an atom of an element without a crystal of atoms, as in ice (32 Å³ a molecule)."""
UNBOUND = 2.0
"""Distance of neighbours in units of the sum of their covalent radii."""

LOOKED_AT = 100
"""Structures of a system that are judged; a wrong unit is in all of them."""

Systems = Mapping[str, Sequence[Frame]]


class UnusualSetting(NamedTuple):
    """What is unusual, with the spec key at its front and what is usual at its end."""

    text: str
    absurd: bool = False


def findings(
    spec: Spec, systems: Systems, labelled: Sequence[tuple[Frame, FrameLabel]]
) -> list[UnusualSetting]:
    """All findings, each once. `spec`: with its stages expanded."""
    found = [*_trust(spec, labelled), *_neighbours(spec, systems, labelled)]
    barostats = {
        name
        for stage in spec.stages
        if stage.md.ensemble.startswith("npt")
        for name in stage.systems
    }
    for name, frames in systems.items():
        found += [*_structures(name, frames, name in barostats)]
    for number, stage in enumerate(spec.stages):
        if not isinstance(stage.engine, (AsGiven, Search)):
            found += [*_dynamics(f"stages.{number}", stage, systems)]
    return list(dict.fromkeys(found))


# ------------------------------------------------------------------------------ neighbours


def _neighbours(
    spec: Spec, systems: Systems, labelled: Sequence[tuple[Frame, FrameLabel]]
) -> Iterator[UnusualSetting]:
    """Descriptors that take fewer neighbours than there are: the model then jumps where an atom
    becomes one too many."""
    given = {f"systems.{name}": frames for name, frames in systems.items()}
    given["initial.data"] = [frame for frame, _ in labelled]
    for key, cutoff, sel in counted_by_type(spec):
        for source, frames in given.items():
            most = _most_neighbours(frames[:LOOKED_AT], cutoff, spec.type_map)
            for element, number, taken in zip(spec.type_map, most, sel, strict=True):
                if number > taken:
                    yield UnusualSetting(
                        f"{key}: {taken} {element}, but an atom of {source} has {number} of them "
                        f"within {cutoff:g} Å; give more, as dynamics brings atoms closer, or auto",
                        absurd=True,
                    )


def _most_neighbours(frames: Sequence[Frame], cutoff: float, elements: Sequence[str]) -> list[int]:
    """The largest number of neighbours of an atom, element by element."""
    from ase.neighborlist import neighbor_list  # deferred: slow to import

    most = np.zeros(len(elements), dtype=int)
    for frame in frames:
        kinds = np.array([elements.index(symbol) for symbol in frame.species])
        centers, others = neighbor_list("ij", to_ase(frame), cutoff)
        counts = np.zeros((len(kinds), len(elements)), dtype=int)
        np.add.at(counts, (centers, kinds[others]), 1)
        most = np.maximum(most, counts.max(axis=0))
    return [int(number) for number in most]


# ------------------------------------------------------------------------------ dynamics


def _dynamics(key: str, stage: Stage, systems: Systems) -> Iterator[UnusualSetting]:
    species = {each for name in stage.systems for each in systems[name][0].species}
    lightest = min(species, key=_mass)
    yield from _time_step(key, stage, lightest)
    length = stage.md.steps * stage.md.timestep
    if not SHORTEST <= length <= LONGEST:
        yield UnusualSetting(
            f"{key}.md: trajectories of {length:g} ps ({stage.md.steps} steps of "
            f"{stage.md.timestep:g} ps); typical: 0.1 to 1000 ps"
        )
    for temperature in stage.temperatures:
        if temperature > HOTTEST:
            yield UnusualSetting(f"{key}.temperatures: {temperature:g} K; typical: 10 to 5000 K")
    for pressure in stage.pressures:
        if abs(pressure) > PRESSURE[0]:
            yield UnusualSetting(
                f"{key}.pressures: {pressure:g} bar is {pressure / 1e4:g} GPa; the unit is bar, "
                "typical: 0 to 500000",
                abs(pressure) > PRESSURE[1],
            )


def _time_step(key: str, stage: Stage, lightest: str) -> Iterator[UnusualSetting]:
    """The Verlet integrator is unstable above period / π; a tenth of the period is usual."""
    step, period = stage.md.timestep, FASTEST * np.sqrt(_mass(lightest) / _mass("H"))
    if step > min(LONGEST_STEP, period / 8):
        yield UnusualSetting(
            f"{key}.md.timestep: {step:g} ps is {step * 1000:g} fs; the unit is ps, and with "
            f"{lightest} steps of up to {min(LONGEST_STEP, period / 10) * 1000:.1g} fs are usual",
            step > period / np.pi,
        )
        return
    hottest = max(stage.temperatures, default=0.0)
    speed = np.sqrt(3 * units.kB * hottest / _mass(lightest)) * 1000 * units.fs  # Å/ps
    if speed * step > STEP[0]:
        yield UnusualSetting(
            f"{key}.md.timestep: at {hottest:g} K an atom of {lightest} moves "
            f"{speed * step:.2g} Å in a step of {step * 1000:g} fs; up to {STEP[0]:g} Å are usual",
            speed * step > STEP[1],
        )


def _mass(element: str) -> float:
    """Atomic mass units."""
    return float(atomic_masses[atomic_numbers[element]])


# ------------------------------------------------------------------------------ trust levels


def _trust(spec: Spec, labelled: Sequence[tuple[Frame, FrameLabel]]) -> Iterator[UnusualSetting]:
    forces = [label.forces.ravel() for _, label in labelled]
    rms = float(np.sqrt(np.mean(np.concatenate(forces) ** 2))) if forces else None
    yield from _level("trust", spec.trust, rms)
    for number, stage in enumerate(spec.stages):
        if stage.trust is not None:
            yield from _level(f"stages.{number}.trust", stage.trust, rms)
        for system, levels in stage.system_trust.items():
            yield from _level(f"stages.{number}.system_trust.{system}", levels, rms)


def _level(key: str, trust: TrustLevels | AutoTrust, rms: float | None) -> Iterator[UnusualSetting]:
    if isinstance(trust, TrustLevels) and trust.relative is not None:
        return
    level, name = (trust.low, "low") if isinstance(trust, TrustLevels) else (trust.target, "target")
    usual = "typical: 0.05 to 0.3"
    if rms and level > OVER_FORCES[0] * rms:
        yield UnusualSetting(
            f"{key}.{name}: {level:g} eV/Å, {level / rms:.0f} times the RMS force of the given "
            f"labels ({rms:.2g} eV/Å), so that every frame is accurate; {usual} eV/Å",
            level > max(OVER_FORCES[1] * rms, LEVEL[0]),
        )
    elif level > LEVEL[0]:
        yield UnusualSetting(
            f"{key}.{name}: {level:g} eV/Å; the unit is eV/Å, {usual}", level > LEVEL[1]
        )
    elif 0 < level < FINEST_LEVEL:
        yield UnusualSetting(
            f"{key}.{name}: {level:g} eV/Å, below the noise of most labels; {usual}"
        )


# ------------------------------------------------------------------------------ structures


def _structures(name: str, frames: Sequence[Frame], barostat: bool) -> Iterator[UnusualSetting]:
    """The first finding of each kind in the first structures."""
    kinds: dict[str, UnusualSetting] = {}
    for number, frame in enumerate(frames[:LOOKED_AT], 1):
        where = f"systems.{name}: structure {number} ({frame.formula})"
        bonds = _bonds(frame)
        if not bonds.bound and len(frame.species) > 1:
            kinds.setdefault("unbound", _unbound(where))
        volume = _volume(where, frame, bonds, barostat)
        if volume is not None:
            kinds.setdefault("volume", volume)
    yield from kinds.values()


class _Bonds(NamedTuple):
    """Whether any atom has a neighbour, and whether one has it in a periodic image of the cell."""

    bound: bool
    periodic: bool


def _bonds(frame: Frame) -> _Bonds:
    from ase.neighborlist import natural_cutoffs, neighbor_list  # deferred: slow to import

    atoms = to_ase(frame)
    shifts = neighbor_list("S", atoms, natural_cutoffs(atoms, mult=UNBOUND))
    return _Bonds(bool(len(shifts)), bool(shifts.any()))


def _unbound(where: str) -> UnusualSetting:
    return UnusualSetting(
        f"{where}: no atom has a neighbour within {UNBOUND:g} times the sum of their covalent "
        "radii; check the coordinates and their unit (Å)",
        absurd=True,
    )


def _volume(where: str, frame: Frame, bonds: _Bonds, barostat: bool) -> UnusualSetting | None:
    """A cell that is too large or too small for its atoms; a molecule in a box may be in any."""
    if frame.cell is None or not (bonds.periodic or barostat):
        return None
    volume = abs(float(np.linalg.det(frame.cell))) / len(frame.species)
    usual = sum(map(_volume_of, frame.species)) / len(frame.species)
    ratio = volume / usual
    if DENSE <= ratio <= SPARSE:
        return None
    reason = "check the lattice and its unit (Å)"
    if ratio > 1:
        vacuum = "a barostat (npt) closes a vacuum" if barostat else "right for a slab only"
        reason = f"{vacuum}; {reason}"
    return UnusualSetting(
        f"{where} has {volume:.3g} Å³ per atom, {ratio:.2g} times that of its elements "
        f"({usual:.3g} Å³); {reason}",
        ratio < CRUSHED or (barostat and ratio > EMPTY),
    )


@cache
def _volume_of(element: str) -> float:
    """Å³ per atom in the element's crystal."""
    from ase.build import bulk  # deferred: slow to import

    try:
        crystal = bulk(element)
    except (ValueError, KeyError, NotImplementedError, RuntimeError):
        return MOLECULAR
    return float(crystal.get_volume()) / len(crystal)
