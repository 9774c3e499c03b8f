"""Path-integral molecular dynamics: nuclei as ring polymers of beads, by LAMMPS fix pimd/langevin.

One member of the committee drives all beads; the whole committee judges all beads of a check.
J. Liu, D. Li, X. Liu, J. Chem. Phys. 145, 024103 (2016); M. Ceriotti et al., J. Chem. Phys. 133,
124104 (2010).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from dpstream.services.explorer.engines.base import (
    TrajectoryRequest,
    TrajectorySegment,
    failures_in_a_row,
)
from dpstream.services.explorer.engines.dynamics import MolecularDynamics, packed, unpacked
from dpstream.services.explorer.engines.swap_mc import LARGEST_SEED
from dpstream.services.explorer.evaluation import verdicts_of, with_deviations
from dpstream.services.explorer.lammps.path_integral_child import BEAD, FIX, SEED, frames_of
from dpstream.services.explorer.lammps.sanity import unphysical
from dpstream.services.explorer.lammps.script import COLDEST, Script
from dpstream.shared.atoms.frames import Batch, Floats, Frame, canonical
from dpstream.shared.spec import Md
from dpstream.shared.spec.engines import Pimd
from dpstream.shared.values import Condition, stable_seed

COUPLINGS = {"npt": "iso", "npt-iso": "iso", "npt-aniso": "aniso"}


class PathIntegrals(MolecularDynamics):
    """The engine `pimd`. `made`: checks so far; `begun`: restart files exist."""

    restart = f"restart-{BEAD}"

    def __init__(self, request: TrajectoryRequest) -> None:
        super().__init__(request)
        assert isinstance(request.settings, Pimd)
        self.beads, self.made, self.begun = request.settings.beads, 0, False

    def pair(self) -> list[str]:
        """The pair style of the driver alone: beads are judged after each segment."""
        models = self.request.committee.models
        return self.pair_of([models[self.request.command.driver % len(models)]], 0)

    def amended(self, script: Script) -> Script:
        condition = self.request.command.condition
        fix = pimd_fix(self.request.md, condition)
        common = [c for c in script.dynamics if not c.startswith(("fix ", "fix_modify "))]
        hot = max(condition.temperature, COLDEST) * self.beads
        spin = "yes" if self.request.vacuum else "no"
        velocity = [f"velocity all create {hot!r} {SEED} mom yes rot {spin} dist gaussian"]
        dynamics = [*common, fix]
        return replace(script, dynamics=dynamics, velocity=velocity if script.velocity else [])

    # -------------------------------------------------------------------------- the protocol

    def start(self) -> None:
        missing = self._call("missing_for_beads")
        if missing is not None:
            raise ValueError(f"pimd: {missing}")
        self.first()  # raises for settings that can never work

    def resume(self, state: bytes) -> None:
        unpacked(state, self.saved)
        made = self.saved / "made"
        self.made, self.begun = int(made.read_text()), True

    def advance(self, checks: int, streak: int) -> TrajectorySegment:
        self.saved.mkdir(exist_ok=True)
        script = self.following() if self.begun else self.first()
        error = self._call(
            "path_integral",
            beads=self.beads,
            folder=str(self.request.folder),
            job={
                "script": vars(script),
                "checks": checks,
                "every": self.request.md.every,
                "restart": str(self.saved / self.restart),
                "seed": self._seed(),
            },
        )
        self.begun = True
        return self.judged(error, streak)

    def switch_committee(self) -> None:
        """Nothing to do: the next segment starts with the new committee."""

    def save(self) -> bytes:
        (self.saved / "made").write_text(str(self.made))
        return packed(self.saved)

    # ------------------------------------------------------------------------------- internals

    def _seed(self) -> int:
        """Seed of the first bead in this segment; the other beads have the following numbers."""
        seed = stable_seed(self.request.command.seed, "beads", self.made)
        return seed % (LARGEST_SEED - self.beads) + 1

    def judged(self, error: str | None, streak: int) -> TrajectorySegment:
        """The checks of the last segment, up to one that ends the trajectory."""
        sound: list[list[Frame]] = []
        stopped = error
        for beads in self._checks():
            problem = self._unphysical(beads)
            if problem is not None:
                stopped = problem
                break
            sound.append([self._frame_at(*bead) for bead in beads])
        if not sound:
            return TrajectorySegment(0, streak, stopped, None)
        return self._segment(sound, streak, stopped)

    def _checks(self) -> Iterator[tuple[tuple[Floats, Floats], ...]]:
        """Positions and cell of every bead, check by check."""
        beads = (frames_of(self.request.folder, bead) for bead in range(self.beads))
        return zip(*beads, strict=False)

    def _unphysical(self, beads: Sequence[tuple[Floats, Floats]]) -> str | None:
        reasons = (unphysical(*bead, self.request.md.overlap, self.reach) for bead in beads)
        return next((reason for reason in reasons if reason is not None), None)

    def _frame_at(self, positions: Floats, cell: Floats) -> Frame:
        own = None if self.request.vacuum else cell
        return canonical(replace(self.request.frame, positions=positions, cell=own)).frame

    def _segment(
        self, sound: Sequence[Sequence[Frame]], streak: int, stopped: str | None
    ) -> TrajectorySegment:
        """The checks judged by the committee, up to too many consecutive ones with a failed
        bead."""
        request, trust = self.request, self.request.command.trust
        batch = Batch.of([frame for beads in sound for frame in beads])
        evaluation = request.resources.evaluate(request.committee.models, batch, request.context)
        steps = (self.made + 1 + np.arange(len(sound))) * request.md.every
        times = np.repeat(steps * request.md.timestep, self.beads)
        judged = with_deviations(batch, evaluation, trust, time_ps=times)
        kinds = verdicts_of(evaluation, trust)
        checks = (kinds[first : first + self.beads] for first in range(0, len(kinds), self.beads))
        failed = ("failed" in beads for beads in checks)
        made, streak, failing = failures_in_a_row(failed, streak, request.md.stop_after)
        self.made += made
        frames = judged.take(range(made * self.beads))
        return TrajectorySegment(made, streak, failing or stopped, frames)


def pimd_fix(md: Md, condition: Condition) -> str:
    """The LAMMPS fix. Raises ValueError for an ensemble that it does not support."""
    temperature = max(condition.temperature, COLDEST)
    words = f"fix motion all {FIX} fmmode physical integrator obabo temp {temperature!r}"
    if md.ensemble == "nve":
        return f"{words} ensemble nve"
    words += f" thermostat PILE_L {SEED} tau {md.tau_t!r} scale 1.0"
    if md.ensemble == "nvt":
        return f"{words} ensemble nvt"
    if md.ensemble not in COUPLINGS:
        known = ", ".join(("nve", "nvt", *COUPLINGS))
        raise ValueError(f"pimd: does not support {md.ensemble}; supported: {known}")
    pressure = f"{COUPLINGS[md.ensemble]} {condition.pressure or 0.0!r}"
    return f"{words} ensemble npt barostat BZP {pressure} taup {md.tau_p!r}"
