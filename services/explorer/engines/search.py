"""Structure search: each check is a new crystal, relaxed with the committee's mean forces.

The committee judges every relaxed crystal, not only those of low enthalpy: low enthalpy may be an
error of the models.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dpstream.services.explorer.engines.base import (
    TrajectoryRequest,
    TrajectorySegment,
    failures_in_a_row,
)
from dpstream.services.explorer.engines.breeding import check_installed, offspring
from dpstream.services.explorer.engines.random_crystals import operations, random_crystal
from dpstream.services.explorer.selection.geometry import GeometryLimits, limits_for
from dpstream.shared.atoms.deviation import max_force_deviation, verdict, virial_deviation
from dpstream.shared.atoms.frames import Batch, Frame, canonical
from dpstream.shared.spec.engines import Search
from dpstream.shared.values import stable_seed

COVALENT = 0.5
"""Share of the covalent radii in `limits_for`."""
PARENTS = 4
"""Minimum population for offspring."""


class StructureSearch:
    """The engine `search`. `population`: pairs of enthalpy (eV per atom) and frame, lowest
    first."""

    def __init__(self, request: TrajectoryRequest) -> None:
        assert isinstance(request.settings, Search)
        self.request, self.settings = request, request.settings
        self.made = 0
        self.population: list[tuple[float, Frame]] = []

    def start(self) -> None:
        if self.request.frame.cell is None:
            raise ValueError("search: generates crystals, but this system is a molecule")
        operations(1)
        if self.settings.offspring:
            check_installed()
        self._proposal()  # raises for settings that can never work

    def resume(self, state: bytes) -> None:
        self.start()
        kept = Batch.loads(state)
        self.made = int(kept.arrays["made"][0])
        self.population = list(zip(kept.arrays["enthalpy"].tolist(), kept, strict=True))

    def advance(self, checks: int, streak: int) -> TrajectorySegment:
        rows: list[tuple[Frame, float, float]] = []

        def failed() -> Iterator[bool]:
            while len(rows) < checks:
                self.made += 1
                rows.append(self._check())
                yield verdict(*rows[-1][1:], self.request.command.trust) == "failed"

        made, streak, stopped = failures_in_a_row(failed(), streak, self.request.md.stop_after)
        return TrajectorySegment(made, streak, stopped, self._batch(rows))

    def switch_committee(self) -> None:
        """Nothing to do: parents keep the enthalpies of earlier committees."""

    def save(self) -> bytes:
        frames = [frame for _, frame in self.population]
        enthalpy = np.array([each for each, _ in self.population])
        return Batch.of(frames, enthalpy=enthalpy, made=np.full(len(frames), self.made)).dumps()

    def _check(self) -> tuple[Frame, float, float]:
        """One relaxed structure with its force (eV/Å) and virial deviation (eV per atom)."""
        parameters = self.request.frame.parameters
        relaxed = self._relaxed(self._proposal().with_parameters(parameters))
        raw = Frame(self.request.frame.species, relaxed["positions"], relaxed["cell"])
        frame = canonical(raw).frame.with_parameters(parameters)
        self._remember(float(relaxed["enthalpy"]), frame)
        trust = self.request.command.trust
        devi_f = max_force_deviation(relaxed["forces"], trust.relative)
        devi_v = virial_deviation(relaxed["virials"], len(frame.species), trust.relative_v)
        return frame, float(devi_f), float(devi_v)

    def _proposal(self) -> Frame:
        """A new structure, determined by the seed, the number of the check and the population."""
        seed = stable_seed(self.request.command.seed, "search", self.made)
        rng = np.random.default_rng(seed)
        if len(self.population) >= PARENTS and rng.uniform() < self.settings.offspring:
            pair = rng.choice(len(self.population), 2, replace=False)
            child = offspring([self.population[n][1] for n in pair], self.limits, seed)
            if child is not None:
                return child
        volume = rng.uniform(*self.settings.volume) * self._volume
        return random_crystal(self.request.frame.species, volume, self.limits, rng)

    def _relaxed(self, frame: Frame) -> dict[str, Any]:
        settings, request = self.settings, self.request
        input_file, result = request.folder / "unrelaxed.npz", request.folder / "relaxed.npz"
        input_file.write_bytes(Batch.of([frame]).dumps())
        arguments = {
            "models": [str(model) for model in request.committee.models],
            "batch": str(input_file),
            "result": str(result),
            "steps": settings.relax_steps,
            "max_force": settings.max_force,
            "pressure": settings.pressure,
            "overlap": request.md.overlap,
        }
        request.resources.call("relax", arguments, request.context)
        with np.load(result, allow_pickle=False) as found:
            return dict(found)

    def _remember(self, enthalpy: float, frame: Frame) -> None:
        self.population.append((enthalpy / len(frame.species), frame))
        self.population.sort(key=lambda each: each[0])
        del self.population[self.settings.population :]

    def _batch(self, rows: list[tuple[Frame, float, float]]) -> Batch | None:
        if not rows:
            return None
        numbers = np.arange(self.made - len(rows) + 1, self.made + 1)
        return Batch.of(
            [frame for frame, _, _ in rows],
            devi_f=np.array([devi_f for _, devi_f, _ in rows]),
            devi_v=np.array([devi_v for _, _, devi_v in rows]),
            time_ps=numbers * self.request.md.every * self.request.md.timestep,
        )

    @property
    def limits(self) -> GeometryLimits:
        elements, spec = self.request.frame.species, self.request.context.spec()
        plain = limits_for(elements, {}, spec.selection.max_skew)
        factor = self.settings.min_distance / COVALENT
        pairs = {pair: limit * factor for pair, limit in plain.pairs.items()}
        return GeometryLimits(pairs, plain.max_skew)

    @property
    def _volume(self) -> float:
        """Volume of the system's structure, Å³."""
        assert self.request.frame.cell is not None
        return float(np.linalg.det(self.request.frame.cell))
