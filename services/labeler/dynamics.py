"""Molecular dynamics driven by a labeling code, which generates the held-out test set.

Langevin dynamics samples the canonical ensemble independently of the starting structure. The
splitting is BAOAB (B. Leimkuhler, C. Matthews, J. Chem. Phys. 138, 174102 (2013)), which has the
smallest error of configurational averages of its class. A step costs one single point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from ase.data import atomic_masses, atomic_numbers

from dpstream.services.labeler.acceptance import AcceptanceLimits, Outcome, check_after
from dpstream.shared.atoms.frames import Floats, Frame, canonical

FRICTION = 20.0
"""1/ps: velocities decorrelate within 50 fs."""
BOLTZMANN = 8.617333262e-5
"""eV/K."""
EV_PER_AMU = 9648.53321
"""(Å/ps)²."""
NO_CAP = AcceptanceLimits(max_force=float("inf"))

Point = Callable[[Frame], Outcome]


@dataclass(frozen=True)
class Plan:
    """Times in ps, temperature in K; `frames` frames are kept, `spacing` apart."""

    seed: int
    temperature: float
    timestep: float
    equilibrate: float
    spacing: float
    frames: int

    @property
    def equilibration_steps(self) -> int:
        return round(self.equilibrate / self.timestep)

    @property
    def steps_between(self) -> int:
        return max(1, round(self.spacing / self.timestep))


class ReferenceDynamics:
    """One trajectory. Positions Å, velocities Å/ps, accelerations Å/ps², all `(n_atoms, 3)`."""

    def __init__(self, start: Frame, point: Point, plan: Plan) -> None:
        self._species, self._cell, self._point = start.species, start.cell, point
        self._step = plan.timestep
        self._random = np.random.default_rng(plan.seed)
        numbers = [atomic_numbers[symbol] for symbol in start.species]
        self._mass = atomic_masses[numbers][:, None] / EV_PER_AMU
        self._spread = np.sqrt(BOLTZMANN * plan.temperature / self._mass)
        self._positions = start.positions.copy()
        self._velocities = self._thermal()
        self._acceleration = self._forces() / self._mass

    @property
    def frame(self) -> Frame:
        return Frame(self._species, self._positions.copy(), self._cell)

    def run(self, steps: int) -> None:
        """Raises RuntimeError, naming the violated rule, if a single point is not a valid label."""
        for _ in range(steps):
            self._advance()

    def _advance(self) -> None:
        half, kept = self._step / 2, np.exp(-FRICTION * self._step)
        self._velocities += half * self._acceleration
        self._positions += half * self._velocities
        self._velocities = kept * self._velocities + np.sqrt(1 - kept**2) * self._thermal()
        self._positions += half * self._velocities
        self._acceleration = self._forces() / self._mass
        self._velocities += half * self._acceleration

    def _thermal(self) -> Floats:
        noise: Floats = self._spread * self._random.standard_normal(self._positions.shape)
        return noise

    def _forces(self) -> Floats:
        frame = self.frame
        outcome = self._point(frame)
        broken = check_after(frame, outcome, NO_CAP)
        if broken is not None:
            raise RuntimeError(f"{broken.rule}: {broken.detail}")
        return outcome.label().forces


def run(start: Frame, point: Point, plan: Plan) -> Iterator[tuple[Frame, Outcome]]:
    """Canonical frames along one trajectory, each with a single point of its own: the label belongs
    to the rounded frame. The same plan gives the same frames."""
    dynamics = ReferenceDynamics(start, point, plan)
    dynamics.run(plan.equilibration_steps)
    for _ in range(plan.frames):
        dynamics.run(plan.steps_between)
        kept = canonical(dynamics.frame).frame
        yield kept, point(kept)
