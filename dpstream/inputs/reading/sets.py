"""Reads one labelled set of any format, and takes of it what is a valid label.

The tests are those of computed labels (`services/labeler/acceptance.py`). What fails is left out
and counted, with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dpstream.inputs.reading.ase_files import one_line, read_ase
from dpstream.inputs.reading.columns import choose, labelled_frames
from dpstream.inputs.reading.deepmd_systems import TypeNames, read_hdf5, read_system, systems_in
from dpstream.inputs.reading.found import KIND_WORDS, EnergyKind, FoundFrame
from dpstream.inputs.reading.outputs import READERS
from dpstream.inputs.reading.recognise import EXTXYZ, HDF5, format_of, unpacked
from dpstream.services.labeler.acceptance import (
    AcceptanceLimits,
    BrokenRule,
    Outcome,
    check_after,
)
from dpstream.shared.atoms.frames import Canonical, Frame, FrameLabel, canonical, is_left_handed
from dpstream.shared.errors import SpecError

LIMITS = AcceptanceLimits(min_distance=0.0, max_force=np.inf, virial=False)
"""Short distances and large forces may be meant: they are warned of, not refused."""
DEEPMD = "DeePMD-kit"
FULL_OF_DATA = ("traj", "db", "json", "xyz")
"""Suffixes of ASE's own formats, which hold results and no record of iterations."""
UNKNOWN_PROGRAM = "whether the iterations converged is not checked in this format"
NO_CELL = "the virial of a frame without periodic cell is not read"
LEFT_HANDED = "a left-handed cell inverted (−a, −b, −c: the same lattice, no atom moves)"


@dataclass(frozen=True)
class SetOptions:
    """What the user says about a set: `inside`: a group of an HDF5 file; `columns`: names of its
    numbers, by quantity; `names`: elements of numbered types, which `are_given` if the user names
    them for this set."""

    inside: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    names: Sequence[str] = ()
    are_given: bool = False

    @property
    def types(self) -> TypeNames:
        return TypeNames(self.names, self.are_given)


@dataclass(frozen=True, eq=False)
class Taken:
    """A valid label, of the canonical `frame`. `number`: of the frame in the file, from 0."""

    frame: Frame
    label: FrameLabel
    number: int


@dataclass
class SetCount:
    """What became of the frames of one file or folder. `left_out`: numbers by rule; `examples`: the
    first frame of each rule; `told`: numbers of frames by remark; `energies`: kinds of energies."""

    format: str = ""
    found: int = 0
    taken: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    energies: set[EnergyKind] = field(default_factory=set)

    def tell(self, text: str) -> None:
        self.told[text] = self.told.get(text, 0) + 1

    def leave_out(self, broken: BrokenRule, where: str) -> None:
        self.left_out[broken.rule] = self.left_out.get(broken.rule, 0) + 1
        self.examples.setdefault(broken.rule, f"{where}: {broken.detail}")


def read_set(path: Path, options: SetOptions, count: SetCount) -> Iterator[Taken]:
    """The valid labels of a file or folder; `count` is filled in on the way. Raises `SpecError`
    if it cannot be read, and what dpdata, h5py and ASE raise."""
    for number, found in enumerate(_found(path, options, count)):
        count.found += 1
        taken = _taken(found, number, f"{path}: frame {number}", count)
        if taken is not None:
            count.taken += 1
            count.energies.add(found.energy)
            yield taken


def _found(path: Path, options: SetOptions, count: SetCount) -> Iterator[FoundFrame]:
    if path.is_dir():
        systems = systems_in(path, count.tell)
        count.format = f"{DEEPMD}, {len(systems)} systems" if len(systems) != 1 else DEEPMD
        for system in systems:
            yield from read_system(system, options.types, count.tell)
        return
    with unpacked(path) as plain:
        try:
            yield from _in_file(plain, options, count)
        except SpecError as error:
            raise SpecError(str(error).replace(str(plain), str(path))) from error


def _in_file(path: Path, options: SetOptions, count: SetCount) -> Iterator[FoundFrame]:
    form = format_of(path)
    count.format = form or path.suffix.removeprefix(".") or "format by name"
    if form == HDF5:
        yield from read_hdf5(path, options.inside, options.types, count.tell)
    elif form is not None and form in READERS:
        yield from _of_program(READERS[form], path, options)
    else:
        yield from _of_data(path, form, options, count)


def _of_program(
    reader: Callable[[Path], Iterator[FoundFrame]], path: Path, options: SetOptions
) -> Iterator[FoundFrame]:
    if options.columns:
        raise SpecError(
            f"{path}: {', '.join(options.columns)}: not allowed: dpstream knows the quantities in "
            "the output of a program; remove it"
        )
    try:
        yield from reader(path)
    except Exception as error:  # a run that was killed or failed; dpdata and ASE raise many kinds
        reason = f"incomplete output: {one_line(error)}"
        yield FoundFrame(None, Outcome(end_marker=False), problem=reason)


def _of_data(
    path: Path, form: str | None, options: SetOptions, count: SetCount
) -> Iterator[FoundFrame]:
    frames = read_ase(path)
    if form != EXTXYZ and path.suffix.lstrip(".") not in FULL_OF_DATA:
        count.tell(UNKNOWN_PROGRAM)
    columns = choose(frames, options.columns, str(path), count.tell)
    if not columns.are_usual:
        count.format += f": {columns}"
    yield from labelled_frames(frames, columns, str(path))


def _taken(found: FoundFrame, number: int, where: str, count: SetCount) -> Taken | None:
    broken, form = _broken(found), None
    if broken is None and found.frame is not None:
        try:
            form = canonical(found.frame)
        except ValueError as error:
            broken = BrokenRule("cell" if found.frame.cell is not None else "positions", str(error))
    if broken is not None or form is None or found.frame is None:
        count.leave_out(broken or BrokenRule("frame", found.problem), where)
        return None
    if is_left_handed(found.frame):
        count.tell(LEFT_HANDED)
    if form.frame.cell is None and found.outcome.virial is not None:
        count.tell(NO_CELL)
    return Taken(form.frame, _turned(found, form), number)


def _broken(found: FoundFrame) -> BrokenRule | None:
    """The first rule that a found frame breaks."""
    if found.outcome.unconverged or found.outcome.not_converged:
        return BrokenRule("not-converged", str(found.outcome.doubt))
    if found.frame is None:
        return BrokenRule("frame", found.problem)
    if not found.frame.species:
        return BrokenRule("frame", "has no atoms")
    broken = check_after(found.frame, found.outcome, LIMITS)
    if broken is not None and broken.rule == "one-energy" and not found.outcome.energies:
        return BrokenRule("energy", "; ".join(("no energy", *found.outcome.messages)))
    weights = found.weights.values()
    if broken is None and not all(np.isfinite(values).all() for values in weights):
        return BrokenRule("weights", "a weight of an atom is not a finite number")
    return broken


def _turned(found: FoundFrame, form: Canonical) -> FrameLabel:
    """The label, rotated and reordered as the canonical frame."""
    label = found.outcome.label()
    forces = label.forces[form.order] @ form.rotation
    virial = None  # meaningless without a cell
    if label.virial is not None and form.frame.cell is not None:
        virial = form.rotation.T @ label.virial @ form.rotation
    weights = {name: values[form.order] for name, values in found.weights.items()}
    return FrameLabel(label.energy, forces, virial, **weights)


def check_one_energy(kinds: Mapping[EnergyKind, str] | Mapping[str, str], key: str) -> None:
    """Raises `SpecError` if sets of one dataset have free and internal energies. `kinds`: a source
    of each kind."""
    sources = {str(kind): source for kind, source in kinds.items()}
    if sources.keys() >= {"free", "internal"}:
        raise SpecError(
            f"{key}: {sources['free']} has the {KIND_WORDS['free']} and {sources['internal']} the "
            f"{KIND_WORDS['internal']}; one model cannot learn both: give files with one of them, "
            "or name it: {file: …, energy: NAME}"
        )
