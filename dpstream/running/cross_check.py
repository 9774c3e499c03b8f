"""Recomputes a few imported labels with the campaign's recipe, and compares them.

Labels from another method would make the training set inconsistent without any visible error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpstream.inputs.gather import Gathered, plausible
from dpstream.running.label_here import label_frames
from dpstream.services.labeler.acceptance import largest_force
from dpstream.shared.atoms.frames import Floats, Frame, FrameLabel
from dpstream.shared.errors import SpecError, errors_at
from dpstream.shared.spec import DATASET, AutoTrust, Spec, expand_material
from dpstream.shared.values import Recipe, stable_seed
from dpstream.terminal.console import console, say
from dpstream.terminal.plan import AUTO_LOW
from dpstream.terminal.progress import progress

CHECKED = 5
"""Number of imported frames to recompute."""
ENERGY_OFFSET = 0.05
"""eV per atom; other settings of the same method differ by less, another energy zero by more."""
OPPOSED = 0.2
"""Largest relative size of the sum of two virials of opposite sign."""
REMEDY = "set labels to the settings that computed this data"


@dataclass(frozen=True)
class FirstChecks:
    """Checks of a campaign that begins; one that goes on has passed them. `spec`: its file, for
    errors; `imported`: whether imported labels are compared with the recipe; `force`: whether
    absurd numbers are allowed."""

    spec: Path
    imported: bool
    force: bool

    def run(
        self, spec: Spec, gathered: Gathered, recipe: Recipe, show: Callable[[Gathered], None]
    ) -> None:
        """Refuses what is absurd, calls `show`, then compares imported labels. Raises
        `SpecError`."""
        with errors_at(str(self.spec), SpecError):
            show(plausible(gathered, self.force))
            if self.imported:
                check_imported(gathered, spec, recipe)


def show_warnings(gathered: Gathered) -> None:
    for warning in gathered.warnings:
        say(console, f"warning: {warning}")


def check_imported(gathered: Gathered, spec: Spec, recipe: Recipe) -> None:
    """`cross_check` with labels computed in this process, announced and with progress."""
    count = number_of_checks(gathered, spec)
    if not count:
        return
    say(
        console,
        f"cross-check: the recipe labels {count} of {len(gathered.labelled)} imported frames again "
        "(--no-cross-check omits this)",
    )
    with progress("cross-check", count) as step:

        def labels(frames: list[Frame]) -> Iterator[FrameLabel | str]:
            for label in label_frames(spec, recipe, gathered.attachments, frames):
                yield label
                step("")

        cross_check(gathered, spec, labels)


def number_of_checks(gathered: Gathered, spec: Spec) -> int:
    """How many single points `cross_check` computes; none where a dataset is the recipe."""
    return 0 if spec.labels.code == DATASET else min(CHECKED, len(gathered.labelled))


def cross_check(
    gathered: Gathered,
    spec: Spec,
    label_frames: Callable[[list[Frame]], Iterable[FrameLabel | str]],
) -> None:
    """Recompute a few imported labels and compare them with the originals.

    `label_frames` yields a label, or the reason of a rejection, per frame. Raises `SpecError` if
    a force differs by more than low / 2 (norm for one atom, eV/Å), if an energy differs by more
    than `ENERGY_OFFSET`, if all virials have the opposite sign, or if the recipe rejects a frame.
    """
    count = number_of_checks(gathered, spec)
    if not count:
        return
    rng = np.random.default_rng(stable_seed(spec.seed, "cross-check"))
    chosen = [gathered.labelled[i] for i in rng.choice(len(gathered.labelled), count, False)]
    answers = label_frames([frame for frame, _ in chosen])
    pairs = []
    for (frame, imported), answer in zip(chosen, answers, strict=True):
        if isinstance(answer, str):
            raise SpecError(
                f"initial.data: {frame.formula}: the recipe in `labels` rejects an imported frame: "
                f"{answer}"
            )
        pairs.append((imported, answer))
    _compare(pairs, _lowest(spec, gathered) / 2)


def _compare(pairs: Sequence[tuple[FrameLabel, FrameLabel]], tolerance: float) -> None:
    forces = [largest_force(a.forces - b.forces) for a, b in pairs]
    # The energy of an imported frame with atom_ener_coeff is a weighted sum.
    energies = [
        0.0 if a.atom_ener_coeff is not None else abs(a.energy - b.energy) / len(a.forces)
        for a, b in pairs
    ]
    if max(forces) > tolerance:
        raise SpecError(
            f"initial.data: forces of {len(pairs)} recomputed frames differ from the recipe in "
            f"labels by up to {max(forces):.3g} eV/Å; allowed: {tolerance:.3g} (half of "
            f"trust.low); {REMEDY}"
        )
    if max(energies) > ENERGY_OFFSET:
        raise SpecError(
            f"initial.data: energies of {len(pairs)} recomputed frames differ from the recipe in "
            f"labels by up to {max(energies):.3g} eV per atom (forces agree within "
            f"{max(forces):.3g} eV/Å); allowed: {ENERGY_OFFSET:g}; {REMEDY}"
        )
    known = [(a.virial, b.virial) for a, b in pairs]
    opposed = [_are_opposed(a, b) for a, b in known if a is not None and b is not None]
    if opposed and all(opposed):
        raise SpecError(
            f"initial.data: virials of {len(opposed)} recomputed frames have the opposite sign "
            "(forces and energies agree); a virial is −dE/dε = −stress · V, positive in a "
            "compressed cell; correct the file, or give {file: …, stress: NAME}"
        )


def _are_opposed(one: Floats, other: Floats) -> bool:
    return bool(np.abs(one + other).max() < OPPOSED * np.abs(one - other).max())


def _lowest(spec: Spec, gathered: Gathered) -> float:
    """The smallest force level `low` in use, eV/Å; for automatic levels their initial value."""
    spec = expand_material(spec)
    levels = {stage.trust or spec.trust for stage in spec.stages}
    forces = np.concatenate([label.forces.ravel() for _, label in gathered.labelled])
    automatic = AUTO_LOW * float(np.sqrt(np.mean(forces**2)))
    return min(automatic if isinstance(t, AutoTrust) else t.low for t in levels)
