"""Reads and checks everything that a spec names, before anything starts; writes nothing.

`gather` reads structures, labelled sets and training files, runs the checks of this package in
order, and returns what the campaign starts from. Each problem is a one-line `SpecError`: key, file,
value and allowed values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dpstream.inputs.check_atom_order import misnumbered
from dpstream.inputs.check_loss import check_loss
from dpstream.inputs.check_spec import (
    check_budget,
    check_clusters,
    check_computable,
    check_held_out,
    check_stages,
    warnings_of,
)
from dpstream.inputs.check_training import check_training
from dpstream.inputs.dimers import gather_dimers
from dpstream.inputs.frames_as_given import picked, run_lengths, runs
from dpstream.inputs.plausibility import findings
from dpstream.inputs.read_labelled import Imported, read_labelled
from dpstream.inputs.reading.found import EnergyKind
from dpstream.inputs.reading.sets import check_one_energy
from dpstream.inputs.systems import SystemStructures
from dpstream.inputs.training_files import TrainingFile, given_files
from dpstream.services.labeler.acceptance import Tolerance
from dpstream.services.labeler.recipes import unlabelable
from dpstream.shared.atoms.builders import perturbed_apart, scaled
from dpstream.shared.atoms.frames import Frame, FrameLabel, closest_pair, frame_key
from dpstream.shared.atoms.properties import PROPERTIES
from dpstream.shared.errors import SpecError, errors_at
from dpstream.shared.spec import DATASET, Perturb, Spec
from dpstream.shared.values import ImportedSet, stable_seed

INITIAL = "initial.data"
USUAL = Tolerance()
MOST_FRAMES = 10_000
"""Largest number of structures that a campaign starts with; every snapshot of its state lists
them all."""


@dataclass(frozen=True, eq=False)
class Gathered:
    """What a campaign starts from; all frames are canonical.

    systems: starting structures by system; initial: frames to label first; labelled: imported
    training data; test: held-out labelled frames; warnings: for the user; absurd: what is so
    implausible, or so sure to give no label, that only `--force` starts it; files: training files
    by name; attachments: files that the labeling recipe names by digest; points: structures for
    each property in verification.properties; lengths: structures per trajectory, for systems of the
    engine `frames`; sources: what became of each labelled set that deserves no warning; imported:
    what became of the sets in initial.data, for the ledger; compared: imported labels that are
    computed again before anything else.
    """

    systems: dict[str, list[Frame]]
    initial: list[Frame]
    labelled: list[tuple[Frame, FrameLabel]]
    test: list[tuple[Frame, FrameLabel]]
    warnings: list[str]
    absurd: list[str] = field(default_factory=list)
    files: dict[str, TrainingFile] = field(default_factory=dict)
    attachments: Mapping[str, bytes] = field(default_factory=dict)
    points: list[list[Frame]] = field(default_factory=list)
    lengths: Mapping[str, int] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    imported: tuple[ImportedSet, ...] = ()
    compared: int = 0

    @property
    def first(self) -> int:
        """Number of frames labelled independently of exploration."""
        return len(self.initial) + self.measured

    def least(self, spec: Spec) -> int:
        """Labels of the budget that are computed in any case: `first`, and the single points of the
        reference dynamics."""
        return self.first + spec.verification.reference_points

    @property
    def measured(self) -> int:
        """Number of frames labelled for properties only."""
        keys = {frame_key(frame) for frames in self.points for frame in frames}
        return len(keys - {frame_key(frame) for frame in self.initial})

    def starts(self, system: str) -> int:
        """Number of starts of trajectories in a system."""
        frames = self.systems[system]
        return len(runs(frames, self.lengths[system])) if system in self.lengths else len(frames)


def gather(
    spec: Spec, folder: Path, trusting: bool = False, structures: SystemStructures | None = None
) -> Gathered:
    """Read everything that `spec` names, relative to `folder`, and check that it fits together.

    `trusting`: other machines run the LAMMPS inputs, so this machine's limits on them are not
    checked; `structures`: those of the systems, if they have already been read.

    Raises `SpecError` with one line for the first problem.
    """
    check_training(spec)
    structures = structures or SystemStructures(spec, folder)
    systems = {name: _starting_structures(spec, name, structures) for name in spec.systems}
    labelled, test, reports = _labelled_sets(spec, folder)
    check_loss(spec, labelled, test)
    points = _points(spec, systems)
    check_clusters(spec)
    check_computable(spec, _to_label(spec, systems, points), labelled + test)
    spec = check_stages(spec, systems, trusting)
    check_held_out(labelled, test)
    again = [*_repeated_structures(systems)]
    systems = {name: [*_unique(frames)] for name, frames in systems.items()}
    dimers, left_out = gather_dimers(spec)
    initial = [*perturbed_copies(spec, systems), *picked(spec, systems), *dimers]
    warnings = [*_about_sets(spec, reports, labelled), *left_out, *structures.remarks, *again]
    warnings += [*misnumbered(spec, structures), *warnings_of(spec, systems, labelled)]
    found = findings(spec, systems, _pairs(labelled))
    absurd = [*filter(None, [unlabelable(spec.labels)]), *(f.text for f in found if f.absurd)]
    gathered = Gathered(
        systems,
        initial,
        _pairs(labelled),
        _pairs(test),
        [*warnings, *(each.text for each in found if not each.absurd)],
        absurd,
        given_files(spec, folder),
        points=points,
        lengths=run_lengths(spec),
        sources=[r.line for r in reports if not r.is_warning],
        imported=tuple(r.record for r in reports if r.key == INITIAL),
    )
    _check_number(gathered)
    check_budget(spec, gathered.first)
    return gathered


def plausible(gathered: Gathered, force: bool) -> Gathered:
    """What was gathered, with everything absurd as a warning if `force`. Raises `SpecError`
    otherwise."""
    if gathered.absurd and not force:
        raise SpecError(f"{gathered.absurd[0]} (--force overrides this)")
    return replace(gathered, warnings=[*gathered.absurd, *gathered.warnings], absurd=[])


def _check_number(gathered: Gathered) -> None:
    begun = sum(map(gathered.starts, gathered.systems)) + gathered.first
    if begun > MOST_FRAMES:
        raise SpecError(
            f"systems, initial: {begun} structures to start with; at most {MOST_FRAMES} allowed"
        )


def _to_label(
    spec: Spec, systems: Mapping[str, list[Frame]], points: list[list[Frame]]
) -> dict[str, list[Frame]]:
    """Frames that the labeling code must be able to compute, by spec key: not the structures from
    which only clusters are labelled."""
    labelled = (spec.initial.perturb, spec.initial.pick, spec.verification.reference_md)
    whole = spec.selection.clusters is None or any(labelled)
    starts = {f"systems.{name}": frames for name, frames in systems.items() if whole}
    return starts | {f"verification.properties.{n}": frames for n, frames in enumerate(points)}


def _points(spec: Spec, systems: Mapping[str, list[Frame]]) -> list[list[Frame]]:
    """The structures for each property in verification.properties."""
    points = []
    for number, wanted in enumerate(spec.verification.properties):
        where = f"verification.properties.{number}: {wanted.property} of {wanted.system}"
        with errors_at(where, ValueError):
            points.append(PROPERTIES[wanted.property].points(systems[wanted.system][0]))
    return points


class SourceLine(NamedTuple):
    """What became of a labelled set, with its spec key: for the user, and for the ledger."""

    key: str
    line: str
    is_warning: bool
    record: ImportedSet


def _labelled_sets(
    spec: Spec, folder: Path
) -> tuple[list[Imported], list[Imported], list[SourceLine]]:
    """Training data, held-out data, and a line per source."""
    lines: list[SourceLine] = []
    kinds: dict[EnergyKind, str] = {}
    sets = []
    for key, sources in (
        (INITIAL, spec.initial.data),
        ("verification.data", spec.verification.data),
    ):
        found = read_labelled(sources, folder, spec.type_map, key)
        sets.append(found.items)
        lines += (
            SourceLine(key, f"{key}: {r}", r.is_worth_a_warning, r.record) for r in found.reports
        )
        kinds = {**kinds, **found.energies}
        check_one_energy(kinds, key)
    return sets[0], sets[1], lines


def _about_sets(
    spec: Spec, reports: Sequence[SourceLine], labelled: Sequence[Imported]
) -> Iterator[str]:
    """Warnings of labelled sets."""
    yield from (report.line for report in reports if report.is_warning)
    yield from repeated(labelled)
    yield from other_energies(spec, reports)


def other_energies(spec: Spec, reports: Sequence[SourceLine]) -> Iterator[str]:
    """Warnings of sets with another energy than the labels that the campaign computes."""
    for report in reports:
        if "internal" in report.record.energies and spec.labels.code != DATASET:
            yield (
                f"{report.key}: {report.record.name}: has the internal energy, but labels.code "
                f"{spec.labels.code} computes the free energy, whose derivative the forces are; "
                "with smearing the two energies differ"
            )


def repeated(items: Sequence[Imported]) -> Iterator[str]:
    """Warnings of frames that occur more than once, of which the last is kept, and of labels that
    differ between them."""
    last = {frame_key(item.frame): item for item in items}
    if len(last) == len(items):
        return
    yield (
        f"initial.data: {len(items) - len(last)} of {len(items)} frames are duplicates, in it or "
        "in another set; each is taken once"
    )
    for item in items:
        kept = last[frame_key(item.frame)]
        forces = float(np.abs(item.label.forces - kept.label.forces).max())
        energy = abs(item.label.energy - kept.label.energy) / len(item.frame.species)
        if forces > USUAL.forces or energy > USUAL.energy:
            yield (
                f"initial.data: a frame of {item.frame.formula} has two labels, which differ by "
                f"{energy:.2g} eV/atom and {forces:.2g} eV/Å: in {item.source} and {kept.source}, "
                "of which the last is taken; remove one"
            )
            return


def _pairs(items: Sequence[Imported]) -> list[tuple[Frame, FrameLabel]]:
    """Frames with labels, without duplicates."""
    return list({frame_key(item.frame): (item.frame, item.label) for item in items}.values())


def _repeated_structures(systems: Mapping[str, list[Frame]]) -> Iterator[str]:
    """Warnings of structures that a system names more than once."""
    for name, frames in systems.items():
        more = len(frames) - len(set(map(frame_key, frames)))
        if more:
            yield (
                f"systems.{name}.structures: {more} of {len(frames)} structures are duplicates; "
                "each is taken once"
            )


def _unique(frames: Sequence[Frame]) -> Iterator[Frame]:
    yield from {frame_key(frame): frame for frame in frames}.values()


# ------------------------------------------------------------------------------ structures


def _starting_structures(spec: Spec, name: str, structures: SystemStructures) -> list[Frame]:
    frames = []
    for where, each in structures(name):
        if name not in structures.given:
            _check_frame(each.frame, spec, where)
        frames.append(each.frame)
    return frames


def _check_frame(frame: Frame, spec: Spec, where: str) -> None:
    unknown = sorted(set(frame.species) - set(spec.type_map))
    if unknown:
        known = ", ".join(spec.type_map)
        raise SpecError(f"{where}: element {unknown[0]} is not in type_map ({known})")
    pair = closest_pair(frame, spec.labels.min_distance)
    if pair is not None:
        i, j, distance = pair
        raise SpecError(
            f"{where}: atoms {frame.species[i]}{i + 1} and {frame.species[j]}{j + 1} are "
            f"{distance:.3f} Å apart, closer than labels.min_distance "
            f"({spec.labels.min_distance:g} Å); atoms are sorted by element and counted from 1"
        )


# ------------------------------------------------------------------------------ initial frames


def perturbed_copies(spec: Spec, systems: Mapping[str, list[Frame]]) -> list[Frame]:
    """Perturbed copies, distributed evenly over each system's structures."""
    perturb = spec.initial.perturb
    if perturb is None:
        return []
    return [
        _perturbed_copy(
            scaled(
                structures[k * len(structures) // perturb.copies],
                perturb.scale[k % len(perturb.scale)],
            ),
            perturb,
            spec.labels.min_distance,
            np.random.default_rng(stable_seed(spec.seed, "perturb", name, k)),
        )
        for name, structures in systems.items()
        for k in range(perturb.copies)
    ]


def _perturbed_copy(
    frame: Frame, perturb: Perturb, shortest: float, rng: np.random.Generator
) -> Frame:
    try:
        return perturbed_apart(frame, perturb.displace, perturb.strain, shortest, rng)
    except ValueError as error:
        raise SpecError(f"initial.perturb.displace: {error}; reduce it") from error
