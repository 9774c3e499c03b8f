"""Labels one frame for real, and shows what was read from the program."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import typer
from rich.markup import escape

from dpstream.commands.read_spec import prepared
from dpstream.running.label_here import LabelMethod, Verdict, frame_labeler
from dpstream.services.labeler.recipes import make_recipe
from dpstream.services.labeler.units import GPA
from dpstream.shared.atoms.frames import Frame, FrameLabel, decode_labelled, frame_key
from dpstream.shared.errors import SpecError, TaskError, errors_at
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import Rejected
from dpstream.terminal.console import console, print_line
from dpstream.terminal.tables import text_table

Facts = list[tuple[str, str]]


def show_one(path: Path | None) -> None:
    """Label the smallest structure of a spec and print what was read. Raises `SpecError` without a
    spec, and Exit with status 1 if the label is rejected."""
    if path is None:
        raise SpecError("--label-one: needs a SPEC")
    spec, gathered, _ = prepared(path, None, None, engines=False)
    method = LabelMethod(spec.labels, make_recipe(spec.labels), gathered.attachments, spec)
    with errors_at("labels", TaskError):
        verdict, facts = label_one(method, smallest(gathered.systems))
    if isinstance(verdict, Rejected):
        print_line(console, f"rejected: {verdict.rule}: {verdict.detail}")
        raise typer.Exit(1)
    table = text_table(show_header=False)
    for name, text in facts:
        table.add_row(name, escape(text))
    console.print(table)


def smallest(systems: Mapping[str, Sequence[Frame]]) -> Frame:
    """The structure with the fewest atoms."""
    frames = (frame for structures in systems.values() for frame in structures)
    return min(frames, key=lambda frame: len(frame.species))


def label_one(method: LabelMethod, frame: Frame) -> tuple[Verdict, Facts]:
    """The verdict on a canonical frame, which is labelled as by a labeler in a temporary store, and
    what its label says. Raises DpstreamError if this machine cannot compute it."""
    with tempfile.TemporaryDirectory(prefix="dpstream-") as folder:
        store = FolderStore(Path(folder))
        with frame_labeler(method, store, "one-label", threading.Event()) as labeler:
            verdict = labeler.judge(frame_key(frame), frame)
        if isinstance(verdict, Rejected):
            return verdict, []
        _, label, provenance = decode_labelled(store.get(verdict.label.uri))
    time = f"{verdict.seconds:.2f} s"
    program = f"{method.recipe.code} {provenance['program']}, {provenance['method']}"
    return verdict, [("program", program), *_numbers(frame, label), ("time", time)]


def _numbers(frame: Frame, label: FrameLabel) -> Facts:
    atoms = len(frame.species)
    norms = np.linalg.norm(label.forces, axis=1)
    rms = float(np.sqrt((label.forces**2).mean()))
    return [
        ("frame", f"{frame.formula}, {'a molecule' if frame.cell is None else 'periodic'}"),
        ("energy", f"{label.energy:.6f} eV, {label.energy / atoms:.6f} eV/atom"),
        ("forces", f"{rms:.4g} eV/Å RMS of the components, {norms.max():.4g} eV/Å the largest"),
        ("virial", _virial(frame, label)),
    ]


def _virial(frame: Frame, label: FrameLabel) -> str:
    if frame.cell is None or label.virial is None:
        return "none"
    pressure = np.trace(label.virial) / 3 / abs(np.linalg.det(frame.cell)) / GPA
    names = ("xx", "yy", "zz", "xy", "xz", "yz")
    places = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    parts = ", ".join(f"{n} {label.virial[p]:.4f}" for n, p in zip(names, places, strict=True))
    return f"{parts} eV; a pressure of {pressure:.3f} GPa"
