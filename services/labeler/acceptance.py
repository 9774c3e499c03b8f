"""The acceptance contract of labels: rules checked before and after a calculation.

The rules are the same for all codes. `check_before` decides whether a frame is computed at all;
`check_after` decides whether the result of a calculation is a valid label. A violation is returned
as a `BrokenRule`, not raised: it becomes a rejection in the ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from ase.data import atomic_numbers
from pydantic import BaseModel, ConfigDict

from dpstream.shared.atoms.frames import Floats, Frame, FrameLabel, min_distance
from dpstream.shared.spec import DATASET, Dimers, LabelSettings, Spec
from dpstream.shared.spec.virial import needs_virial
from dpstream.shared.values import Recipe

POSITION_TOLERANCE = 1e-5
"""Å; codes print positions with as few as five decimals, after unit conversions."""
MIN_VOLUME = 1e-3
"""Å³ per atom; a flatter cell is invalid."""
OPPOSED = 0.2
"""Largest relative size of the sum of two virials of opposite sign."""


class Tolerance(NamedTuple):
    """`forces` in eV/Å (norm per atom), `energy` in eV/atom."""

    forces: float = 1e-3
    energy: float = 1e-4


class BrokenRule(NamedTuple):
    """A violated rule with details."""

    rule: str
    detail: str


@dataclass(frozen=True)
class AcceptanceLimits:
    """A campaign's limits: `min_distance` in Å, `max_force` in eV/Å (norm per atom). `force`:
    compute frames that the code refuses by default; `virial`: periodic frames must have a
    virial."""

    min_distance: float = 0.5
    max_force: float = 50.0
    force: bool = False
    virial: bool = True

    @staticmethod
    def of(labels: LabelSettings, spec: Spec | None = None) -> AcceptanceLimits:
        """Those of `labels` in the campaign `spec`; None: outside campaigns."""
        needed = labels.virial is not False if spec is None else needs_virial(spec)
        needed = needed and labels.code != DATASET
        return AcceptanceLimits(labels.min_distance, labels.max_force, labels.force, needed)

    @staticmethod
    def of_dimers(dimers: Dimers, labels: LabelSettings) -> AcceptanceLimits:
        """Limits of dimers, whose short distances are intended."""
        return AcceptanceLimits(0.0, dimers.max_force, labels.force)


@dataclass(frozen=True)
class Comparison:
    """The largest difference of the forces on an atom (norm, eV/Å) and the difference of the
    energies (eV/atom) between two labels of a frame, with what the code allows; `opposed`: whether
    their virials have opposite signs, None: one of them has no virial."""

    forces: float
    energy: float
    tolerance: Tolerance
    opposed: bool | None = None

    @staticmethod
    def of(known: FrameLabel, new: FrameLabel, code: Scope) -> Comparison:
        """The energy of a label with atom_ener_coeff is a weighted sum, and is not compared."""
        apart = abs(known.energy - new.energy) / len(known.forces)
        return Comparison(
            largest_force(known.forces - new.forces),
            0.0 if known.atom_ener_coeff is not None else float(apart),
            code.tolerance,
            _are_opposed(known.virial, new.virial),
        )

    @property
    def differs(self) -> str:
        """How the labels differ; empty if they agree."""
        if self.forces <= self.tolerance.forces and self.energy <= self.tolerance.energy:
            return ""
        return (
            f"computed again, its forces differ by up to {self.forces:.2g} eV/Å and its energy by "
            f"{self.energy:.2g} eV/atom ({self.tolerance.forces:g} and {self.tolerance.energy:g} "
            "are usual)"
        )


def _are_opposed(one: Floats | None, other: Floats | None) -> bool | None:
    if one is None or other is None:
        return None
    return bool(np.abs(one + other).max() < OPPOSED * np.abs(one - other).max())


class Scope(Protocol):
    """Properties of a labeling code that the contract uses."""

    @property
    def name(self) -> str: ...

    @property
    def molecular(self) -> bool:
        """Whether it labels frames without a cell."""

    @property
    def periodic(self) -> bool:
        """Whether it labels periodic frames; settings may leave out their virial."""

    @property
    def electronic(self) -> bool:
        """Whether it treats electrons, so that charge and multiplicity must be consistent."""

    @property
    def max_z(self) -> int:
        """Largest atomic number supported."""

    @property
    def tolerance(self) -> Tolerance:
        """How far two labels of the same frame and recipe may differ."""

    def refusal(self, frame: Frame, settings: dict[str, Any]) -> str | None:
        """Reason not to compute this frame unless the campaign sets `force`, or None."""


class OutcomeFacts(BaseModel):
    """The fields of an `Outcome` as JSON values."""

    model_config = ConfigDict(extra="forbid")

    exit_status: int
    end_marker: bool
    converged: bool
    not_converged: bool
    energies: list[float]
    frames: int
    forces: list[list[float]] | None
    virial: list[list[float]] | None
    positions: list[list[float]] | None
    fault: str | None
    program: str | None
    messages: list[str]
    seconds: float

    def arrays(self) -> dict[str, list[list[float]] | None]:
        return {"forces": self.forces, "virial": self.virial, "positions": self.positions}


@dataclass(frozen=True, eq=False)
class Outcome:
    """Raw results of one single point, before the acceptance rules are applied.

    `energies`: all energies found, eV; `frames`: number of configurations found; `forces`
    `(n_atoms, 3)` eV/Å; `virial` `(3, 3)` = −dE/dε eV; `positions` `(n_atoms, 3)` Å as printed by
    the code (None: not printed). `fault`: a rule that the code itself reports as violated.
    `seconds`: run time of the code.
    """

    exit_status: int = 0
    end_marker: bool = True
    converged: bool = True
    """The output contains the code's convergence marker."""
    not_converged: bool = False
    """The output reports a failure to converge."""
    energies: tuple[float, ...] = ()
    frames: int = 1
    forces: Floats | None = None
    virial: Floats | None = None
    positions: Floats | None = None
    fault: str | None = None
    program: str | None = None
    """Version of the program, as printed in its output."""
    messages: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def unconverged(self) -> bool:
        """Whether the run ended normally without converged iterations."""
        return self.end_marker and (self.not_converged or not self.converged)

    @property
    def doubt(self) -> str | None:
        """Why the iterations are not known to have converged; None if they are."""
        if self.not_converged:
            return "the electronic iterations did not converge"
        return None if self.converged else "the output does not state that the iterations converged"

    def facts(self) -> dict[str, Any]:
        """The fields as JSON values, without loss of precision."""
        return {name: _plain(value) for name, value in vars(self).items()}

    @staticmethod
    def of(facts: Any) -> Outcome:
        """The inverse of `facts`. Raises ValueError for anything else: a child process may have
        been led astray by what it has read."""
        plain = OutcomeFacts.model_validate(facts, strict=True)
        arrays = {
            name: None if values is None else np.array(values, dtype=np.float64)
            for name, values in plain.arrays().items()
        }
        lists = {"energies": tuple(plain.energies), "messages": tuple(plain.messages)}
        return Outcome(**{**plain.model_dump(), **arrays, **lists})

    @staticmethod
    def of_label(frame: Frame, label: FrameLabel) -> Outcome:
        """The outcome equivalent to an accepted label, to be checked against other limits."""
        return Outcome(
            energies=(label.energy,),
            forces=label.forces,
            virial=label.virial,
            positions=frame.positions,
        )

    def label(self) -> FrameLabel:
        """The label of an accepted outcome."""
        assert self.forces is not None
        return FrameLabel(self.energies[0], self.forces, self.virial)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def largest_force(forces: Floats) -> float:
    """Largest norm over atoms of forces `(n_atoms, 3)`, eV/Å."""
    return float(np.linalg.norm(forces, axis=1).max())


# ---------------------------------------------------------------------------- before computing


def _finite_positions(
    frame: Frame, recipe: Recipe, code: Scope, limits: AcceptanceLimits
) -> str | None:
    if not frame.species:
        return "the frame has no atoms"
    return None if np.isfinite(frame.positions).all() else "a coordinate is not a finite number"


def _sound_cell(frame: Frame, recipe: Recipe, code: Scope, limits: AcceptanceLimits) -> str | None:
    if frame.cell is None:
        return None
    if not np.isfinite(frame.cell).all():
        return "a cell component is not a finite number"
    volume = float(np.linalg.det(frame.cell))
    flat = volume < MIN_VOLUME * len(frame.species)
    return f"the cell's volume is {volume:.3g} Å³" if flat else None


def _known_elements(
    frame: Frame, recipe: Recipe, code: Scope, limits: AcceptanceLimits
) -> str | None:
    for symbol in sorted(set(frame.species)):
        z = atomic_numbers.get(symbol, 0)
        if not 0 < z <= code.max_z:
            return f"{code.name} does not support {symbol} (Z = {z}, at most {code.max_z})"
    return None


def _periodicity(frame: Frame, recipe: Recipe, code: Scope, limits: AcceptanceLimits) -> str | None:
    if frame.cell is not None and not code.periodic:
        return f"{code.name} labels only molecules, but this frame has a cell"
    if frame.cell is None and not code.molecular:
        return f"{code.name} labels only periodic frames, but this frame has no cell"
    return None


def _distance(frame: Frame, recipe: Recipe, code: Scope, limits: AcceptanceLimits) -> str | None:
    shortest = min_distance(frame)
    if shortest >= limits.min_distance:
        return None
    return f"atoms {shortest:.3f} Å apart, below {limits.min_distance:g} Å"


def _parity(frame: Frame, recipe: Recipe, code: Scope, limits: AcceptanceLimits) -> str | None:
    if not code.electronic:
        return None
    electrons = sum(atomic_numbers[symbol] for symbol in frame.species) - recipe.charge
    unpaired = recipe.multiplicity - 1
    if unpaired <= electrons and (electrons - unpaired) % 2 == 0:
        return None
    return (
        f"{electrons} electrons (charge {recipe.charge}) cannot have multiplicity "
        f"{recipe.multiplicity}"
    )


def _refused(frame: Frame, recipe: Recipe, code: Scope, limits: AcceptanceLimits) -> str | None:
    return None if limits.force else code.refusal(frame, recipe.settings)


Before = Callable[[Frame, Recipe, Scope, AcceptanceLimits], str | None]

BEFORE: tuple[tuple[str, Before], ...] = (
    ("finite-positions", _finite_positions),
    ("cell", _sound_cell),
    ("unsupported-element", _known_elements),
    ("periodicity", _periodicity),
    ("min-distance", _distance),
    ("electron-parity", _parity),
    ("refused", _refused),
)


def check_before(
    frame: Frame, recipe: Recipe, code: Scope, limits: AcceptanceLimits
) -> BrokenRule | None:
    """The first violated rule that forbids computing this frame, or None."""
    for rule, check in BEFORE:
        detail = check(frame, recipe, code, limits)
        if detail is not None:
            return BrokenRule(rule, detail)
    return None


# ---------------------------------------------------------------------------- after computing


def _exit_status(frame: Frame, outcome: Outcome, limits: AcceptanceLimits) -> str | None:
    return None if outcome.exit_status == 0 else f"exit status {outcome.exit_status}"


def _end_marker(frame: Frame, outcome: Outcome, limits: AcceptanceLimits) -> str | None:
    return None if outcome.end_marker else "the output is incomplete"


def _converged(frame: Frame, outcome: Outcome, limits: AcceptanceLimits) -> str | None:
    return outcome.doubt


def _one_energy(frame: Frame, outcome: Outcome, limits: AcceptanceLimits) -> str | None:
    if len(outcome.energies) != 1 or outcome.frames != 1:
        return f"{len(outcome.energies)} energies of {outcome.frames} frames; must be one of each"
    energy = outcome.energies[0]
    return None if np.isfinite(energy) else f"the energy is {energy}"


def _all_forces(frame: Frame, outcome: Outcome, limits: AcceptanceLimits) -> str | None:
    expected = (len(frame.species), 3)
    if outcome.forces is None:
        return "no forces"
    if outcome.forces.shape != expected:
        return f"forces have shape {outcome.forces.shape}; must be {expected}"
    return None if np.isfinite(outcome.forces).all() else "a force is not a finite number"


def _virial(frame: Frame, outcome: Outcome, limits: AcceptanceLimits) -> str | None:
    if frame.cell is None:
        return None
    if outcome.virial is None:
        return "no virial for a periodic frame" if limits.virial else None
    if outcome.virial.shape != (3, 3):
        return f"the virial has shape {outcome.virial.shape}; must be (3, 3)"
    return None if np.isfinite(outcome.virial).all() else "the virial is not finite"


def _max_force(frame: Frame, outcome: Outcome, limits: AcceptanceLimits) -> str | None:
    assert outcome.forces is not None
    largest = largest_force(outcome.forces)
    if largest <= limits.max_force:
        return None
    return f"largest force {largest:.4g} eV/Å, above {limits.max_force:g} eV/Å"


def _same_positions(frame: Frame, outcome: Outcome, limits: AcceptanceLimits) -> str | None:
    if outcome.positions is None:
        return None
    if outcome.positions.shape != frame.positions.shape:
        return f"the output has {len(outcome.positions)} atoms, the input {len(frame.positions)}"
    # Written so that NaN counts as a difference.
    moved = np.abs(outcome.positions - frame.positions)
    same = bool((moved <= POSITION_TOLERANCE).all())
    return None if same else f"positions differ from the input by {moved.max():.3g} Å"


After = Callable[[Frame, Outcome, AcceptanceLimits], str | None]

AFTER: tuple[tuple[str, After], ...] = (
    ("exit-status", _exit_status),
    ("end-marker", _end_marker),
    ("not-converged", _converged),
    ("one-energy", _one_energy),
    ("forces", _all_forces),
    ("virial", _virial),
    ("max-force", _max_force),
    ("positions", _same_positions),
)


def check_after(frame: Frame, outcome: Outcome, limits: AcceptanceLimits) -> BrokenRule | None:
    """The first rule that this outcome violates; None if it is a valid label."""
    messages = "; ".join(outcome.messages)
    if outcome.fault is not None:
        return BrokenRule(outcome.fault, messages)
    for rule, check in AFTER:
        detail = check(frame, outcome, limits)
        if detail is not None:
            return BrokenRule(rule, f"{detail}: {messages}" if messages else detail)
    return None
