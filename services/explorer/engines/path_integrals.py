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
from services.explorer.engines.base import Piece, Trip
from services.explorer.engines.dynamics import Dynamics, packed, unpacked
from services.explorer.engines.swap_mc import LARGEST_SEED
from services.explorer.evaluation import deviations
from services.explorer.md_script import COLDEST, Script, pair_commands
from shared.deviation import verdict
from shared.explorers import Pimd
from shared.frames import Batch, Floats, Frame, canonical
from shared.sections import Md
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
        return self._piece(self._batch(sound), len(sound), streak, stopped)

    def _checks(self) -> Iterator[tuple[tuple[Floats, Floats], ...]]:
        """Positions and cell of every bead, check by check."""
        return zip(*(frames_of(self.trip.folder, bead) for bead in range(self.beads)), strict=False)

    def _astray(self, beads: Sequence[tuple[Floats, Floats]]) -> str | None:
        found = (astray(*bead, self.trip.md.overlap, self.reach) for bead in beads)
        return next((reason for reason in found if reason is not None), None)

    def _frame_at(self, positions: Floats, cell: Floats) -> Frame:
        own = None if self.trip.vacuum else cell
        return canonical(replace(self.trip.frame, positions=positions, cell=own)).frame

    def _batch(self, checks: Sequence[Sequence[Frame]]) -> Batch:
        """Judged by the committee."""
        trip = self.trip
        batch = Batch.of([frame for beads in checks for frame in beads])
        found = trip.bench.evaluate(trip.committee.models, batch, trip.context)
        devi_f, devi_v = deviations(found, trip.command.trust)
        steps = (self.made + 1 + np.arange(len(checks))) * trip.md.every
        arrays = {
            "devi_f": devi_f,
            "devi_v": np.zeros(len(batch)) if devi_v is None else devi_v,
            "time_ps": np.repeat(steps * trip.md.timestep, self.beads),
        }
        return replace(batch, arrays={**batch.arrays, **arrays})

    def _piece(self, batch: Batch, checks: int, streak: int, stopped: str | None) -> Piece:
        """With fewer checks where too many in a row have a failed bead."""
        for check in range(checks):
            streak = streak + 1 if self._failed(batch, check) else 0
            if streak >= self.trip.md.stop_after:
                checks = check + 1
                stopped = f"{streak} checks in a row above the upper trust level"
                break
        self.made += checks
        return Piece(checks, streak, stopped, batch.take(range(checks * self.beads)))

    def _failed(self, batch: Batch, check: int) -> bool:
        rows = range(check * self.beads, (check + 1) * self.beads)
        pairs = ((batch.arrays["devi_f"][row], batch.arrays["devi_v"][row]) for row in rows)
        vacuum, trust = self.trip.vacuum, self.trip.command.trust
        return any(
            verdict(float(f), None if vacuum else float(v), trust) == "failed" for f, v in pairs
        )


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
