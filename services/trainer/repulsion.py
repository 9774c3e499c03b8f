"""Tables of short-range pair repulsion, in DeePMD-kit's format.

At distances shorter than any in the training data a model switches to this table of pair energies.
Units: Å, eV. Universal potential: J. F. Ziegler, J. P. Biersack, U. Littmark, The Stopping and
Range of Ions in Matter, 1985.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement

import numpy as np
from ase.data import atomic_numbers

from dpstream.services.trainer.training_input import TABLE
from dpstream.shared.atoms.dataset import Fetch
from dpstream.shared.atoms.frames import Floats
from dpstream.shared.spec import ZBL, Spec
from dpstream.shared.values import Ref

COULOMB = 14.399645
"""e² / (4πε₀) in eV Å."""
SCREENING = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))
"""Amplitudes and decay constants of the universal screening function, as in LAMMPS."""
STEP = 0.005
"""Å between rows, and distance of the first row, below which DeePMD-kit ends the process."""
NEAREST = 0.1
"""Å; largest allowed distance of the first row."""
EVEN = 1e-6
"""Å; tolerance of the spacing between rows."""


def zbl(r: Floats, first: str, second: str) -> Floats:
    """Energy in eV of two atoms at distances `r` in Å: `(n,)` → `(n,)`."""
    z = atomic_numbers[first], atomic_numbers[second]
    length = 0.46850 / (z[0] ** 0.23 + z[1] ** 0.23)
    screened = sum(a * np.exp(-b * r / length) for a, b in SCREENING)
    return np.asarray(COULOMB * z[0] * z[1] / r * screened, dtype=np.float64)


def zbl_table(type_map: Sequence[str], outer: float) -> str:
    """The universal potential of all pairs of `type_map`, switched off smoothly between `outer` Å
    and twice that: rows of r and the energies of types 0-0, 0-1, …, 1-1, …"""
    r = np.arange(1, round(2 * outer / STEP) + 2, dtype=np.float64) * STEP
    off = np.clip((r - outer) / outer, 0.0, 1.0)
    switch = 1 - off**3 * (10 - 15 * off + 6 * off**2)
    pairs = combinations_with_replacement(type_map, 2)
    out = io.StringIO()
    np.savetxt(out, np.column_stack([r, *(zbl(r, *pair) * switch for pair in pairs)]), "%.10g")
    return out.getvalue()


def table_text(spec: Spec, files: Mapping[str, Ref], fetch: Fetch) -> str | None:
    """The campaign's table, generated or given by the user; None without one."""
    repulsion = spec.training.repulsion
    if repulsion is None:
        return None
    if repulsion.table == ZBL:
        return zbl_table(spec.type_map, repulsion.outer)
    return fetch(files[TABLE]).decode()


def check_table(text: str, type_map: Sequence[str]) -> None:
    """Raises ValueError, with the reason, if `text` is not a valid table for the elements."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about an empty file, which is reported below
        rows = np.loadtxt(io.StringIO(text), ndmin=2)
    columns = 1 + len(type_map) * (len(type_map) + 1) // 2
    if len(rows) < 3 or rows.shape[1] != columns:
        raise ValueError(
            f"{len(rows)} rows of {rows.shape[-1]} numbers; expected at least 3 rows of r and "
            f"the energies of {columns - 1} pairs of {', '.join(type_map)}"
        )
    if not np.isfinite(rows).all():
        raise ValueError("a number is not finite")
    steps = np.diff(rows[:, 0])
    if rows[0, 0] > NEAREST:
        raise ValueError(f"the first row is at {rows[0, 0]:g} Å; expected {NEAREST:g} Å or less")
    if rows[0, 0] <= 0 or not (steps > 0).all() or np.ptp(steps) > EVEN:
        raise ValueError("the first column must be distances above 0, increasing and evenly spaced")
    if rows[-1, 1:].any():
        raise ValueError("the energies of the last row must be zero")
