"""Model deviation of a committee, true errors of its members, and verdicts by trust levels.

Definitions: Y. Zhang et al., Comput. Phys. Commun. 253, 107206 (2020) (DP-GEN) and J. Zeng et al.,
J. Chem. Phys. 159, 054801 (2023), eqs. 68–72 (DeePMD-kit v2). Standard deviations are those of the
population (1/N). Leading frame axes are kept: `(n_models, …, n_atoms, 3)`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

import numpy as np

from dpstream.shared.atoms.frames import Floats, Ints
from dpstream.shared.values import Counts, Trust

Verdict = Literal["accurate", "candidate", "failed"]

BINS: Floats = np.logspace(-4, 2, 49)
"""Edges of the deviation histogram, eV/Å: eight bins per decade."""


def force_deviation(forces: Floats, relative: float | None = None) -> Floats:
    """Deviation of each atom's force, eV/Å: `(n_models, …, n_atoms, 3)` → `(…, n_atoms)`.

    The norm over x, y, z of the standard deviation over the models; with `relative` (eV/Å) divided
    by |mean force| + relative.
    """
    deviation: Floats = np.linalg.norm(np.std(forces, axis=0), axis=-1)
    if relative is not None:
        deviation /= np.linalg.norm(np.mean(forces, axis=0), axis=-1) + relative
    return deviation


def max_force_deviation(forces: Floats, relative: float | None = None) -> Floats:
    """ε_f, the largest deviation among the atoms: `(n_models, …, n_atoms, 3)` → `(…)`."""
    largest: Floats = np.max(force_deviation(forces, relative), axis=-1)
    return largest


def virial_deviation(virials: Floats, n_atoms: int, relative: float | None = None) -> Floats:
    """ε_v, the largest of the nine component deviations of the virial per atom, eV:
    `(n_models, …, 3, 3)` → `(…)`; with `relative` (eV) each is divided by |mean| + relative of its
    own component first, as LAMMPS' pair style does (`calc_model_devi` takes the norm of all nine
    instead)."""
    per_atom = virials.reshape(*virials.shape[:-2], 9) / n_atoms
    deviation = np.std(per_atom, axis=0)
    if relative is not None:
        deviation = deviation / (np.abs(np.mean(per_atom, axis=0)) + relative)
    largest: Floats = np.max(deviation, axis=-1)
    return largest


def max_force_error(forces: Floats, reference: Floats) -> Floats:
    """ε̂ = max_i sqrt(mean_ω |F_ω,i − F_i|²), eV/Å: `(n_models, …, n_atoms, 3)` against
    `(…, n_atoms, 3)` → `(…)`."""
    squared = np.sum((forces - reference) ** 2, axis=-1)
    error: Floats = np.max(np.sqrt(np.mean(squared, axis=0)), axis=-1)
    return error


def mean_square_error(forces: Floats, reference: Floats) -> Floats:
    """Mean square error of a force component over members and atoms, (eV/Å)²: `(…)`."""
    squared: Floats = np.mean((forces - reference) ** 2, axis=(0, -2, -1))
    return squared


def verdict(eps_f: float, eps_v: float | None, trust: Trust) -> Verdict:
    """Failed if either deviation is ≥ high or not a number; else candidate if either is ≥ low; else
    accurate. `eps_v` (None: no virial) is judged only if `trust` has virial levels."""
    judged = [(eps_f, trust.low, trust.high)]
    if eps_v is not None and trust.low_v is not None and trust.high_v is not None:
        judged.append((eps_v, trust.low_v, trust.high_v))
    if not all(deviation < high for deviation, _, high in judged):
        return "failed"
    return "accurate" if all(deviation < low for deviation, low, _ in judged) else "candidate"


def count(verdicts: Iterable[Verdict]) -> Counts:
    n = Counter(verdicts)
    return Counts(accurate=n["accurate"], candidate=n["candidate"], failed=n["failed"])


def histogram(deviations: Floats) -> Ints:
    """Frames per bin of `BINS`, `(48,)`; values outside count in the outermost bins, NaN in the
    last."""
    bounded = np.nan_to_num(deviations, nan=BINS[-1]).clip(BINS[0], BINS[-1])
    counts: Ints = np.histogram(bounded, BINS)[0].astype(np.int64)
    return counts
