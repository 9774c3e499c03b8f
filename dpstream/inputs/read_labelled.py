"""Reads existing labelled sets into canonical frames and labels, and reports what became of each.

The files may come from anywhere, so an expendable process reads them (`parsing`), with the readers
of `reading/`.
"""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers
from pydantic import BaseModel, ConfigDict, ValidationError

from dpstream.inputs.reading.ase_files import one_line
from dpstream.inputs.reading.deepmd_systems import files_of, systems_in
from dpstream.inputs.reading.found import KIND_WORDS, RULE_WORDS, EnergyKind
from dpstream.inputs.reading.ionic_steps import ABACUS_LOG
from dpstream.inputs.reading.patterns import find_grouped, folders, passed_over
from dpstream.inputs.reading.recognise import UNPACKED, is_packed
from dpstream.inputs.reading.sets import SetCount, SetOptions, Taken, check_one_energy, read_set
from dpstream.shared.atoms.frames import WEIGHTS, Frame, FrameLabel
from dpstream.shared.atoms.records import Record
from dpstream.shared.errors import ParserFailed, SpecError, errors_at
from dpstream.shared.runtime.child_process import Limits
from dpstream.shared.runtime.parser import MIB, Parser, Unreadable
from dpstream.shared.spec import LabelledSet
from dpstream.shared.values import ImportedSet


@dataclass(frozen=True, eq=False)
class Imported:
    """A canonical frame, its label in the frame's order and orientation, its source file, and its
    number among all frames found in the sources, from 0. Frame parameters and atomic weights come
    from files with DeePMD-kit's names or, in extended xyz, from info keys and columns with these
    names."""

    frame: Frame
    label: FrameLabel
    source: str
    number: int = 0


class SourceReport(BaseModel):
    """What became of one source, a name or pattern of the spec. `formats`: numbers of files;
    `left_out`: numbers of frames by rule; `examples`: the first of each; `told`: remarks;
    `energies`: a file of each kind of energy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    formats: dict[str, int] = {}
    found: int = 0
    taken: int = 0
    left_out: dict[str, int] = {}
    examples: dict[str, str] = {}
    told: dict[str, int] = {}
    energies: dict[EnergyKind, str] = {}

    def __str__(self) -> str:
        """`runs/*/OUTCAR: 120 frames found (VASP OUTCAR, 3 files), 117 taken; 3 left out: …`"""
        taken = "all" if self.taken == self.found else str(self.taken)
        frames = "1 frame" if self.found == 1 else f"{self.found} frames"
        parts = [f"{frames} found ({self._format_words()}), {taken} taken"]
        left_out = [
            f"{count} {RULE_WORDS.get(rule, rule)} ({self.examples.get(rule, '')})"
            for rule, count in self.left_out.items()
        ]
        if left_out:
            parts.append(f"{self.found - self.taken} left out: {', '.join(left_out)}")
        parts += [KIND_WORDS[kind] for kind in sorted(self.energies, reverse=True)]
        parts += [text if n == 1 else f"{text} ({n} times)" for text, n in self.told.items()]
        return f"{self.name}: {'; '.join(parts)}"

    @property
    def record(self) -> ImportedSet:
        """The part that the ledger keeps."""
        kinds = tuple(sorted(self.energies))
        return ImportedSet(
            name=self.name,
            found=self.found,
            taken=self.taken,
            left_out=self.left_out,
            energies=kinds,
        )

    @property
    def is_worth_a_warning(self) -> bool:
        """Whether a frame was left out, or something was not read as usual."""
        return bool(self.left_out or self.told)

    def _format_words(self) -> str:
        each = (f"{name}, {n} files" if n > 1 else name for name, n in self.formats.items())
        return "; ".join(each)


@dataclass(frozen=True)
class LabelledSets:
    """All labels that were taken, in the order of the files, and a report per source."""

    items: list[Imported]
    reports: list[SourceReport]

    @property
    def energies(self) -> dict[EnergyKind, str]:
        """A file of each kind of energy."""
        return {kind: file for r in self.reports for kind, file in r.energies.items()}


def read_labelled(
    sources: Sequence[str | LabelledSet], folder: Path, type_map: Sequence[str], key: str
) -> LabelledSets:
    """Read all labelled frames of `sources`, relative to `folder`, in an expendable process: the
    files may come from anywhere. Raises `SpecError` naming spec key `key` and the file that cannot
    be read or has no valid label, and for sets with different kinds of energies."""
    items: list[Imported] = []
    reports: list[SourceReport] = []
    for source in sources:
        before = sum(report.found for report in reports)
        report, found = _read_source(source, folder, type_map, key)
        reports.append(report)
        items += (_known(item, type_map, key, before) for item in found)
    sets = LabelledSets(items, reports)
    check_one_energy(sets.energies, key)
    return sets


def _read_source(
    source: str | LabelledSet, folder: Path, type_map: Sequence[str], key: str
) -> tuple[SourceReport, list[Imported]]:
    given = LabelledSet(file=source) if isinstance(source, str) else source
    locked: list[Path] = []
    paths, inside = find_grouped(given.file, folder, key, locked.append)
    arguments = {
        "paths": {str(path): str(_absolute(path)) for path in paths},
        "inside": inside,
        "columns": given.columns,
        "type_map": list(given.type_map or type_map),
        "own_types": bool(given.type_map),
        "key": key,
        "name": given.file,
    }
    try:
        with errors_at(f"{key}: {given.file}", SpecError):
            parser, limits = _parser(_reads(paths, folder)), _limits(sum(map(_size, paths)))
        records = parser.records("labelled", arguments, limits)
        report = _report(records)
        told = {**report.told, **passed_over(locked)}
        return report.model_copy(update={"told": told}), list(map(_imported, records[1:]))
    except (Unreadable, ParserFailed) as error:
        if isinstance(error, Unreadable) and error.kind == "SpecError":
            raise SpecError(error.reason) from error
        raise SpecError(
            f"{key}: {given.file}: cannot be read as a labelled set: {error}"
        ) from error


def _report(records: Sequence[Record]) -> SourceReport:
    """The report of the first record. Raises Unreadable for anything else."""
    try:
        return SourceReport.model_validate(records[0].facts["report"], strict=True)
    except (ValidationError, LookupError) as error:
        raise Unreadable("the parser returned no report") from error


def _absolute(path: Path) -> Path:
    """The parser need not reach the working directory. A link keeps its name, which may say what it
    is."""
    return path.parent.resolve() / path.name


def _reads(paths: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    """What a parser of `paths` may read: `folder` if all are inside, else the innermost folder that
    they share; the targets of links that lead elsewhere; and inputs that an output lacks."""
    absolute, around = [_absolute(path) for path in paths], folder.resolve()
    if not all(path.is_relative_to(around) for path in absolute):
        around = Path(os.path.commonpath([path.parent for path in absolute]))
    entries = [*absolute, *(entry for path in absolute for entry in _entries(path))]
    further = {Path(os.path.realpath(entry)) for entry in entries if entry.is_symlink()}
    further |= {path.parents[1] for path in absolute if path.name == ABACUS_LOG}
    return around, *sorted(path for path in further if not path.is_relative_to(around))


def _entries(path: Path) -> Iterator[Path]:
    """Everything in a folder, behind links too."""
    for folder in folders(path):
        yield from folder.iterdir()


@cache
def _parser(reads: tuple[Path, ...]) -> Parser:
    """A parser that may read these files and folders."""
    folder = tempfile.TemporaryDirectory(prefix="dpstream-")
    parser = Parser("dpstream.inputs.parsing", Path(folder.name), reads)
    atexit.register(folder.cleanup)
    atexit.register(parser.close)
    return parser


def _size(path: Path) -> int:
    """Bytes of a file, or of the systems in a folder."""
    if path.is_file():
        return path.stat().st_size * (UNPACKED if is_packed(path) else 1)
    files = (file for system in systems_in(path) for file in files_of(system))
    return sum(file.stat().st_size for file in files)


def _limits(size: int) -> Limits:
    """Limits for files of `size` bytes, some of which are compressed."""
    seconds = 60.0 + 5e-6 * size
    return Limits(seconds, memory=1024 * MIB + 20 * size, file=256 * MIB + 16 * size)


def _imported(record: Record) -> Imported:
    """The inverse of `record_of`. Raises Unreadable for anything else."""
    try:
        frame, arrays = record.frame(), record.arrays
        atoms = len(frame.species)
        shapes = {"energy": (), "forces": (atoms, 3), "virial": (3, 3)}
        shapes |= dict.fromkeys(WEIGHTS, (atoms,))
        given = {name: arrays[name] for name in shapes if name in arrays}
        if any(values.shape != shapes[name] for name, values in given.items()):
            raise ValueError("arrays of a label have other shapes")
        label = FrameLabel(float(given.pop("energy")), **given)
        facts = record.facts
        return Imported(frame, label, str(facts["source"]), int(facts["number"]))
    except (ValueError, KeyError, TypeError) as error:
        raise Unreadable(f"the parser returned no labelled frame: {error}") from error


def record_of(item: Imported) -> Record:
    record = Record.of_frame(item.frame, source=item.source, number=item.number)
    label = item.label
    own = {"energy": np.array(label.energy), "forces": label.forces, **label.weights}
    if label.virial is not None:
        own["virial"] = label.virial
    return Record(record.facts, {**record.arrays, **own})


def read_here(
    paths: Mapping[str, Path], options: SetOptions, key: str, name: str
) -> tuple[SourceReport, list[Imported]]:
    """The valid labels of `paths`, by the names that messages use, read in this process, and what
    became of the others. Raises as `read_labelled`."""
    items: list[Imported] = []
    counts: dict[str, SetCount] = {}
    for file, path in paths.items():
        before = sum(each.found for each in counts.values())
        count = counts[file] = SetCount()
        items += (
            Imported(t.frame, t.label, file, before + t.number)
            for t in _read_file(file, path, options, count, key)
        )
        count.examples = {r: text.replace(str(path), file) for r, text in count.examples.items()}
        count.told = {text.replace(str(path), file): n for text, n in count.told.items()}
    report = _summed(name, counts)
    if not items:
        left_out = f"{report.found} left out ({'; '.join(report.examples.values())})"
        reasons = [*([left_out] if report.found else []), *report.told]
        raise SpecError(
            f"{key}: {name}: contains no converged frame with energy and forces: "
            f"{'; '.join(reasons)}"
        )
    return report, items


def _read_file(
    name: str, path: Path, options: SetOptions, count: SetCount, key: str
) -> list[Taken]:
    try:
        taken = list(read_set(path, options, count))
    except SpecError as error:
        text = str(error).replace(str(path), name)
        raise SpecError(text if text.startswith(f"{key}: ") else f"{key}: {text}") from error
    except Exception as error:  # dpdata, h5py and ASE raise many kinds
        reason = one_line(error).replace(str(path), name)
        raise SpecError(f"{key}: {name}: cannot be read as a labelled set: {reason}") from error
    if not count.found:
        hint = "; name other files than DeePMD-kit's by a pattern, e.g. **/OUTCAR"
        count.tell(f"{name} holds no labelled frame{hint if path.is_dir() else ''}")
    return taken


def _summed(name: str, counts: Mapping[str, SetCount]) -> SourceReport:
    """The report of a source with these files."""
    examples: dict[str, str] = {}
    energies: dict[EnergyKind, str] = {}
    for file, count in counts.items():
        examples = {**count.examples, **examples}
        energies = {**dict.fromkeys(count.energies, file), **energies}
    return SourceReport(
        name=name,
        formats=_added({c.format: 1} for c in counts.values()),
        found=sum(c.found for c in counts.values()),
        taken=sum(c.taken for c in counts.values()),
        left_out=_added(c.left_out for c in counts.values()),
        examples=examples,
        told=_told(counts),
        energies=energies,
    )


def _told(counts: Mapping[str, SetCount]) -> dict[str, int]:
    """The remarks; of those that differ in the name of their file alone the first."""
    told: dict[str, int] = {}
    first: dict[str, str] = {}
    for file, count in counts.items():
        for text, number in count.told.items():
            shown = first.setdefault(text.replace(file, ""), text)
            told[shown] = told.get(shown, 0) + number
    return told


def _added(tables: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for table in tables:
        for name, count in table.items():
            total[name] = total.get(name, 0) + count
    return total


def _known(item: Imported, type_map: Sequence[str], key: str, before: int) -> Imported:
    """The item with its number among all frames, `before` of which are in earlier sources. Raises
    `SpecError` for an element that is not in the type map."""
    unknown = sorted(set(item.frame.species) - set(type_map))
    if unknown:
        known = ", ".join(type_map)
        hint = "; give the elements of the set's types: {file: …, type_map: […]}"
        raise SpecError(
            f"{key}: {item.source}: element {unknown[0]} is not in type_map ({known})"
            f"{'' if unknown[0] in atomic_numbers else hint}"
        )
    return replace(item, number=before + item.number)
