"""Path-integral molecular dynamics: nuclei as ring polymers of beads, by LAMMPS fix pimd/langevin.

A member of the committee drives every bead; all beads of a check are judged by the whole committee.
J. Liu, D. Li, X. Liu, J. Chem. Phys. 145, 024103 (2016); M. Ceriotti et al., J. Chem. Phys. 133,
124104 (2010).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from services.explorer.astray import astray
from services.explorer.beads import BEAD, FIX, SEED, frames_of
from services.explorer.engines.base import Piece, Trip, failures_in_a_row
from services.explorer.engines.dynamics import Dynamics, packed, unpacked
from services.explorer.engines.swap_mc import LARGEST_SEED
from services.explorer.evaluation import verdicts_of, with_deviations
from services.explorer.md_script import COLDEST, Script, pair_commands
from shared.explorers import Pimd
from shared.frames import Batch, Floats, Frame, canonical
from shared.spec import Md
from shared.values import Condition, stable_seed

COUPLINGS = {"npt": "iso", "npt-iso": "iso", "npt-aniso": "aniso"}


class PathIntegrals(Dynamics):
    """`made`: checks so far; `begun`: there are restart files to go on from."""

    restart = f"restart-{BEAD}"

    def __init__(self, trip: Trip) -> None:
        super().__init__(trip)
        assert isinstance(trip.settings, Pimd)
        self.beads, self.made, self.begun = trip.settings.beads, 0, False

    def pair(self) -> list[str]:
        """The driver alone: beads are judged between the pieces."""
        trip = self.trip
        models = trip.committee.models
        driver = models[trip.command.driver % len(models)]
        return pair_commands(
            [driver], 0, trip.committee.type_map, trip.md.every, trip.command.trust, trip.frame
        )

    def amended(self, script: Script) -> Script:
        condition = self.trip.command.condition
        fix = pimd_fix(self.trip.md, condition)
        common = [c for c in script.dynamics if not c.startswith(("fix ", "fix_modify "))]
        hot = max(condition.temperature, COLDEST) * self.beads
        spin = "yes" if self.trip.vacuum else "no"
        velocity = [f"velocity all create {hot!r} {SEED} mom yes rot {spin} dist gaussian"]
        return replace(
            script, dynamics=[*common, fix], velocity=velocity if script.velocity else []
        )

    # -------------------------------------------------------------------------- the protocol

    def start(self) -> None:
        lacking = self._call("lacking_for_beads")
        if lacking is not None:
            raise ValueError(f"pimd: {lacking}")
        self.first()  # what can never work is said at once

    def resume(self, state: bytes) -> None:
        unpacked(state, self.saved)
        made = self.saved / "made"
        self.made, self.begun = int(made.read_text()), True

    def advance(self, checks: int, streak: int) -> Piece:
        self.saved.mkdir(exist_ok=True)
        script = self.following() if self.begun else self.first()
        error = self._call(
            "path_integral",
            beads=self.beads,
            folder=str(self.trip.folder),
            job={
                "script": vars(script),
                "checks": checks,
                "every": self.trip.md.every,
                "restart": str(self.saved / self.restart),
                "seed": self._seed(),
            },
        )
        self.begun = True
        return self.judged(error, streak)

    def hand_over(self) -> None:
        """The next piece is driven by the new committee anyway."""

    def save(self) -> bytes:
        (self.saved / "made").write_text(str(self.made))
        return packed(self.saved)

    # -------------------------------------------------------------------------------- inside

    def _seed(self) -> int:
        """Of the first bead in this piece; the others count on from it."""
        seed = stable_seed(self.trip.command.seed, "beads", self.made)
        return seed % (LARGEST_SEED - self.beads) + 1

    def judged(self, error: str | None, streak: int) -> Piece:
        """The checks of the last piece, up to the one that ends the trajectory if one does."""
        sound: list[list[Frame]] = []
        stopped = error
        for beads in self._checks():
            astray = self._astray(beads)
            if astray is not None:
                stopped = astray
                break
            sound.append([self._frame_at(*bead) for bead in beads])
        if not sound:
            return Piece(0, streak, stopped, None)
        return self._piece(sound, streak, stopped)

    def _checks(self) -> Iterator[tuple[tuple[Floats, Floats], ...]]:
        """Positions and cell of every bead, check by check."""
        return zip(*(frames_of(self.trip.folder, bead) for bead in range(self.beads)), strict=False)

    def _astray(self, beads: Sequence[tuple[Floats, Floats]]) -> str | None:
        found = (astray(*bead, self.trip.md.overlap, self.reach) for bead in beads)
        return next((reason for reason in found if reason is not None), None)

    def _frame_at(self, positions: Floats, cell: Floats) -> Frame:
        own = None if self.trip.vacuum else cell
        return canonical(replace(self.trip.frame, positions=positions, cell=own)).frame

    def _piece(self, sound: Sequence[Sequence[Frame]], streak: int, stopped: str | None) -> Piece:
        """Judged by the committee; with fewer checks where too many in a row have a failed bead."""
        trip, trust = self.trip, self.trip.command.trust
        batch = Batch.of([frame for beads in sound for frame in beads])
        evaluation = trip.bench.evaluate(trip.committee.models, batch, trip.context)
        steps = (self.made + 1 + np.arange(len(sound))) * trip.md.every
        times = np.repeat(steps * trip.md.timestep, self.beads)
        judged = with_deviations(batch, evaluation, trust, time_ps=times)
        kinds = verdicts_of(evaluation, trust)
        checks = (kinds[first : first + self.beads] for first in range(0, len(kinds), self.beads))
        failed = ("failed" in beads for beads in checks)
        made, streak, failing = failures_in_a_row(failed, streak, trip.md.stop_after)
        self.made += made
        return Piece(made, streak, failing or stopped, judged.take(range(made * self.beads)))


def pimd_fix(md: Md, condition: Condition) -> str:
    """ValueError for an ensemble that the fix has not."""
    temperature = max(condition.temperature, COLDEST)
    words = f"fix motion all {FIX} fmmode physical integrator obabo temp {temperature!r}"
    if md.ensemble == "nve":
        return f"{words} ensemble nve"
    words += f" thermostat PILE_L {SEED} tau {md.tau_t!r} scale 1.0"
    if md.ensemble == "nvt":
        return f"{words} ensemble nvt"
    if md.ensemble not in COUPLINGS:
        known = ", ".join(("nve", "nvt", *COUPLINGS))
        raise ValueError(f"pimd: has no {md.ensemble}; it has {known}")
    pressure = f"{COUPLINGS[md.ensemble]} {condition.pressure or 0.0!r}"
    return f"{words} ensemble npt barostat BZP {pressure} taup {md.tau_p!r}"
