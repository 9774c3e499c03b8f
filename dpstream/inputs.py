"""Everything a spec names, read and checked before anything starts; nothing is written.

Each problem is one `SpecError` line: key, file, what is there and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np

from dpstream.atom_order import misnumbered
from dpstream.contacts import gather_dimers
from dpstream.given import Given, given_files
from dpstream.given_frames import check_runs, picked, run_lengths, runs
from dpstream.imported import Imported, find_files, frame_of, read_ase, read_dpdata, read_labelled
from dpstream.loss_check import check_loss, loss_warnings
from dpstream.training_check import check_training
from services.explorer.engines.preview import check_engine
from services.labeler.acceptance import Limits, check_before
from services.labeler.codes import CODES
from services.labeler.codes.base import Code, cell_widths
from services.labeler.recipes import code_of, make_recipe, recipe_for
from services.trainer.training_input import NOT_THE_USERS
from shared.builders import perturbed, scaled, slab, supercell
from shared.errors import SpecError
from shared.frames import Canonical, Frame, Label, canonical, frame_key, to_ase
from shared.spec import Md, Perturb, Spec, System, expand_material
from shared.values import stable_seed

MOST_FRAMES = 150
"""Starting structures and initial frames of one campaign: all are named in one message."""
CUTOFF = 6.0
"""Å, where the spec's descriptor states none."""
LONG_STEP = 0.005
"""ps; a longer time step is more likely a mistaken unit than meant."""
TRIES = 100


@dataclass(frozen=True, eq=False)
class Gathered:
    """What a campaign starts from, in canonical frames.

    systems: starting structures by system; initial: frames to be labelled first; labelled:
    imported training data; test: held-out labelled frames; warnings: for people; files: what
    trainings are given; attachments: what the labeling recipe names by digest; lengths: by system
    whose structures are looked at as they are, how many of them one trajectory looks at.
    """

    systems: dict[str, list[Frame]]
    initial: list[Frame]
    labelled: list[tuple[Frame, Label]]
    test: list[tuple[Frame, Label]]
    warnings: list[str]
    files: dict[str, Given] = field(default_factory=dict)
    attachments: Mapping[str, bytes] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)

    def starts(self, system: str) -> int:
        """Structures of the system that trajectories start from."""
        frames = self.systems[system]
        return len(runs(frames, self.lengths[system])) if system in self.lengths else len(frames)


def gather(
    spec: Spec,
    folder: Path,
    trusting: bool = False,
    read: Mapping[str, list[Frame]] | None = None,
) -> Gathered:
    """Read all that `spec` names, relative to `folder`, and check that it fits together;
    `trusting`: it is for other workers to say which inputs for LAMMPS they take; `read`: canonical
    structures of systems that are read already.

    Raises `SpecError`, one line, at the first problem.
    """
    check_training(spec)
    systems = {
        name: (read or {}).get(name) or _starting_structures(spec, name, folder)
        for name in spec.systems
    }
    labelled, test, said = _labelled_sets(spec, folder)
    check_loss(spec, labelled, test)
    _check_computable(spec, systems, labelled + test)
    spec = _expanded(spec, systems)
    _check_barostat(spec, systems)
    _check_held_out(labelled, test)
    _check_stage_engines(spec, systems, trusting)
    systems = {name: [*_unique(frames)] for name, frames in systems.items()}
    dimers, left_out = gather_dimers(spec)
    initial = [*_perturbed(spec, systems), *picked(spec, systems), *dimers]
    warnings = [*said, *left_out, *misnumbered(spec, lambda name: structures(spec, name, folder))]
    warnings += _warnings(spec, systems, labelled)
    lengths = run_lengths(spec)
    systems = _thinned(systems, lengths, MOST_FRAMES - len(initial), warnings)
    _check_budget(spec, len(initial))
    files = given_files(spec, folder)
    return Gathered(
        systems, initial, _pairs(labelled), _pairs(test), warnings, files, lengths=lengths
    )


def _labelled_sets(spec: Spec, folder: Path) -> tuple[list[Imported], list[Imported], list[str]]:
    """Training and held-out data, and what their readers warned of (frames left out…)."""
    with catch_warnings(record=True) as caught:
        simplefilter("always")
        labelled = read_labelled(spec.initial.data, folder, spec.type_map, "initial.data")
        test = read_labelled(spec.verification.data, folder, spec.type_map, "verification.data")
    said = [f"labelled sets: {w.message}" for w in caught if w.category is UserWarning]
    return labelled, test, list(dict.fromkeys(said))


def _pairs(items: Sequence[Imported]) -> list[tuple[Frame, Label]]:
    """Frames with labels, each frame once."""
    return list({frame_key(item.frame): (item.frame, item.label) for item in items}.values())


def _unique(frames: Sequence[Frame]) -> Iterator[Frame]:
    yield from {frame_key(frame): frame for frame in frames}.values()


# ------------------------------------------------------------------------------ structures


def _starting_structures(spec: Spec, name: str, folder: Path) -> list[Frame]:
    frames = []
    for where, each in structures(spec, name, folder):
        _check_frame(each.frame, spec, where)
        frames.append(each.frame)
    return frames


def structures(spec: Spec, name: str, folder: Path) -> Iterator[tuple[str, Canonical]]:
    """The starting structures of system `name`, each with where it stands."""
    system, key = spec.systems[name], f"systems.{name}.structures"
    paths = [p for pattern in system.structures for p in find_files(pattern, folder, key)]
    for path in dict.fromkeys(paths):
        for number, atoms in enumerate(_read(path, system.format, spec.type_map, key)):
            where = f"{path}: frame {number}" if number else str(path)
            try:
                built = built_from(canonical(frame_of(atoms, system.periodic, where)), system)
            except (SpecError, ValueError) as error:
                text = str(error).removeprefix(f"{where}: ")
                raise SpecError(f"{key}: {where}: {text}") from error
            for each in built:
                yield f"{key}: {where}", replace(each, frame=_with_parameters(each.frame, system))


def _with_parameters(frame: Frame, system: System) -> Frame:
    """The structure, with the parameters that its system gives to all of it."""
    own = {"fparam": np.array(system.fparam, dtype=np.float64)} if system.fparam else {}
    if system.aparam:
        own["aparam"] = np.tile(np.array(system.aparam), (len(frame.species), 1))
    return frame.given(own)


def built_from(structure: Canonical, system: System) -> list[Canonical]:
    """What the `slabs` and `supercell` of a system make of one of its structures."""
    cuts, repeat = system.slabs, system.supercell
    if cuts is None and repeat is None:
        return [structure]
    built = [structure.frame]
    if cuts is not None:
        built = [
            slab(structure.frame, miller, vacuum, layers=cuts.layers, thickness=cuts.thickness)
            for miller in cuts.miller
            for vacuum in cuts.vacuum
        ]
    return [canonical(f if repeat is None else supercell(f, repeat)) for f in built]


def _read(path: Path, form: str | None, type_map: Sequence[str], key: str) -> list[Any]:
    try:
        return read_ase(path) if form is None else read_dpdata(path, form, type_map)
    except SpecError as error:
        raise SpecError(f"{key}: {error}") from error


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
            f"({spec.labels.min_distance:g} Å); atoms count from 1, sorted by element"
        )


def closest_pair(frame: Frame, within: float) -> tuple[int, int, float] | None:
    """The two atoms nearest each other and their distance in Å (periodic images too), if nearer
    than `within` Å."""
    from ase.neighborlist import neighbor_list

    first, second, distances = neighbor_list("ijd", to_ase(frame), within)
    if not len(distances):
        return None
    k = int(np.argmin(distances))
    return int(min(first[k], second[k])), int(max(first[k], second[k])), float(distances[k])


def _thinned(
    systems: Mapping[str, list[Frame]], lengths: Mapping[str, int], room: int, warnings: list[str]
) -> dict[str, list[Frame]]:
    """At most `room` structures in all that trajectories start from; see `_evenly_thinned`."""
    given = {name: frames for name, frames in systems.items() if name in lengths}
    others = {name: frames for name, frames in systems.items() if name not in lengths}
    room -= check_runs(given, lengths, room)
    return given | _evenly_thinned(others, room, warnings) if others else given


def _evenly_thinned(
    systems: Mapping[str, list[Frame]], room: int, warnings: list[str]
) -> dict[str, list[Frame]]:
    """At most `room` structures in all, taken evenly from each system, with a warning."""
    total = sum(len(frames) for frames in systems.values())
    if room < len(systems):
        raise SpecError(
            f"initial: its perturbed copies and dimers leave no room for starting structures; at "
            f"most {MOST_FRAMES - len(systems)} in all"
        )
    if total <= room:
        return dict(systems)
    share = (room - len(systems)) / total
    thin = {name: _evenly(frames, 1 + int(share * len(frames))) for name, frames in systems.items()}
    kept = sum(len(frames) for frames in thin.values())
    warnings.append(f"systems: {kept} of {total} starting structures are used, taken evenly")
    return thin


def _evenly(frames: list[Frame], count: int) -> list[Frame]:
    return [frames[i * len(frames) // count] for i in range(min(count, len(frames)))]


# ------------------------------------------------------------------------------ initial frames


def _perturbed(spec: Spec, systems: Mapping[str, list[Frame]]) -> list[Frame]:
    """Perturbed copies, dealt evenly over each system's structures."""
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
    """One copy whose atoms are all at least `shortest` Å apart; drawn again until they are."""
    for _ in range(TRIES):
        copy = perturbed(frame, perturb.displace, perturb.strain, rng)
        if closest_pair(copy, shortest) is None:
            return copy
    raise SpecError(
        f"initial.perturb.displace: {perturb.displace:g} Å keeps bringing atoms of {frame.formula} "
        f"closer than labels.min_distance ({shortest:g} Å); give a smaller one"
    )


# ------------------------------------------------------------------------------ consistency


def _check_computable(
    spec: Spec, systems: Mapping[str, list[Frame]], labelled: Sequence[Imported]
) -> None:
    """The labeling code must be able to compute what it is going to be asked."""
    code, recipe = code_of(spec.labels), make_recipe(spec.labels)
    limits = Limits.of(spec.labels)
    for name, frames in systems.items():
        for frame in frames:
            _check_periodicity(frame, code, f"systems.{name}")
            broken = check_before(frame, recipe_for(recipe, frame), code, limits)
            if broken is not None:
                raise SpecError(
                    f"systems.{name}: {frame.formula} cannot be labelled ({broken.rule}): "
                    f"{broken.detail}; change labels or the structures"
                )
    for item in labelled:
        _check_periodicity(item.frame, code, item.source)


def _check_periodicity(frame: Frame, code: Code, where: str) -> None:
    if frame.cell is not None and not code.periodic:
        raise SpecError(
            f"{where}: {frame.formula} is periodic, but labels.code {code.name} computes molecules "
            f"only; set `periodic: false` or choose a code for cells ({_codes('periodic')})"
        )
    if frame.cell is None and not code.molecular:
        raise SpecError(
            f"{where}: {frame.formula} has no cell, but labels.code {code.name} computes periodic "
            f"cells only; give it a cell or choose a code for molecules ({_codes('molecular')})"
        )


def _codes(ability: str) -> str:
    return ", ".join(sorted(name for name, code in CODES.items() if getattr(code, ability)))


def _expanded(spec: Spec, systems: Mapping[str, list[Frame]]) -> Spec:
    """The spec with `material` written out, which only cells can follow."""
    if spec.material is not None:
        for name, frames in systems.items():
            if any(frame.cell is None for frame in frames):
                raise SpecError(
                    f"material: makes npt stages, but systems.{name} has no cell; "
                    "write `stages` for molecules"
                )
    return expand_material(spec)


def _check_barostat(spec: Spec, systems: Mapping[str, list[Frame]]) -> None:
    """A barostat needs a cell to move, and models that learnt the virial."""
    for number, stage in enumerate(spec.stages):
        if not stage.md.ensemble.startswith("npt"):
            continue
        key = f"stages.{number}.md.ensemble"
        for name in stage.systems:
            if any(frame.cell is None for frame in systems[name]):
                raise SpecError(f"{key}: {stage.md.ensemble} needs a cell; systems.{name} has none")
        if not _virial_prefactors(spec):
            raise SpecError(
                f"{key}: {stage.md.ensemble} needs models that learn the virial; give "
                "training.input.loss.start_pref_v and limit_pref_v above 0 (e.g. 0.02 and 1)"
            )


def _virial_prefactors(spec: Spec) -> list[float]:
    """Those that the spec gives, of all members."""
    inputs = (spec.training.input, *spec.training.member_input.values())
    losses = [given.get("loss", {}) for given in inputs]
    keys = ("start_pref_v", "limit_pref_v")
    return [float(loss[key]) for loss in losses for key in keys if key in loss]


def _check_stage_engines(spec: Spec, systems: Mapping[str, list[Frame]], trusting: bool) -> None:
    """What drives a stage must make sense for every structure that it may start from."""
    for number, stage in enumerate(spec.stages):
        for condition in stage.conditions():
            for frame in systems[condition.system]:
                try:
                    check_engine(stage, condition, frame, trusting)
                except ValueError as error:
                    raise SpecError(f"stages.{number}.engine: {condition}: {error}") from error


def _check_held_out(labelled: Sequence[Imported], test: Sequence[Imported]) -> None:
    trained = {frame_key(item.frame): item for item in labelled}
    for item in test:
        twin = trained.get(frame_key(item.frame))
        if twin is not None:
            raise SpecError(
                f"verification.data: {item.source}: a frame of {item.frame.formula} is in "
                f"initial.data too ({twin.source}); held-out frames must not be trained on"
            )


def _check_budget(spec: Spec, initial: int) -> None:
    if initial > spec.budget.labels:
        raise SpecError(
            f"budget.labels: {spec.budget.labels} is less than the {initial} initial frames"
        )


# ------------------------------------------------------------------------------ warnings


def _warnings(
    spec: Spec, systems: Mapping[str, list[Frame]], labelled: Sequence[Imported]
) -> Iterator[str]:
    for name, frames in systems.items():
        yield from _small_cells(spec, name, frames)
        said = {text: None for frame in frames for text in code_of(spec.labels).warnings(frame)}
        yield from (f"systems.{name}: {text}" for text in said)
    yield from _dubious_labels(spec, labelled)
    yield from loss_warnings(spec, labelled)
    yield from _not_taken(spec)
    yield from _unlearnt_virial(spec)
    for number, stage in enumerate(spec.stages):
        yield from _long_steps(stage.md, f"stages.{number}.md.timestep")
    reachable = spec.audit.per_round * spec.budget.rounds
    if not spec.audit.per_round:
        yield "audit.per_round: 0: no audit, so convergence rests on the committee's own word"
    elif reachable < spec.audit.min_frames:
        yield (
            f"audit.min_frames: {spec.audit.min_frames} cannot be reached by {spec.budget.rounds} "
            f"rounds of {spec.audit.per_round}: no stage can converge"
        )


def _small_cells(spec: Spec, name: str, frames: Sequence[Frame]) -> Iterator[str]:
    cutoff = _cutoff(spec)
    widths = [float(cell_widths(frame.cell).min()) for frame in frames if frame.cell is not None]
    if widths and min(widths) < cutoff:
        yield (
            f"systems.{name}: a cell is {min(widths):.2f} Å wide, less than the model's cutoff "
            f"({cutoff:g} Å): atoms see their own images; a supercell explores more"
        )


def _cutoff(spec: Spec) -> float:
    descriptor = spec.training.input.get("model", {}).get("descriptor", {})
    return float(descriptor.get("rcut", CUTOFF))


def _dubious_labels(spec: Spec, labelled: Sequence[Imported]) -> Iterator[str]:
    if any(item.frame.cell is not None and item.label.virial is None for item in labelled):
        yield "initial.data: periodic frames without virial: they teach energy and forces only"
    largest = max((float(np.abs(item.label.forces).max()) for item in labelled), default=0.0)
    if largest > spec.labels.max_force:
        yield (
            f"initial.data: a force of {largest:.1f} eV/Å is above labels.max_force "
            f"({spec.labels.max_force:g}), at which own labels are rejected"
        )


def _not_taken(spec: Spec) -> Iterator[str]:
    given = spec.training.input.get("training", {})
    for key in sorted(given.keys() & {"numb_steps", *NOT_THE_USERS}):
        yield (
            f"training.input.training.{key}: not taken over: dpstream sets the steps (training."
            "epochs, min_steps, max_steps) and the data"
        )


def _unlearnt_virial(spec: Spec) -> Iterator[str]:
    barostats = [stage.name for stage in spec.stages if stage.md.ensemble.startswith("npt")]
    if barostats and not any(_virial_prefactors(spec)):
        yield (
            f"stages {', '.join(barostats)}: a barostat follows models that never learn the "
            "virial: training.input.loss has start_pref_v and limit_pref_v 0"
        )


def _long_steps(md: Md, key: str) -> Iterator[str]:
    if md.timestep > LONG_STEP:
        yield f"{key}: {md.timestep:g} ps is {md.timestep * 1000:g} fs; the unit is ps"
