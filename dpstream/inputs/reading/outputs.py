"""Reads outputs of labeling programs: one frame per single point or ionic step.

dpdata and ASE say where the atoms are. The numbers, and whether they are converged, come from the
parsers of `services/labeler/codes`, step by step, so that an imported label passes the tests of a
computed one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from dpstream.inputs.reading.columns import choose, labelled_frames
from dpstream.inputs.reading.cp2k_steps import read_cp2k
from dpstream.inputs.reading.found import FoundFrame
from dpstream.inputs.reading.ionic_steps import (
    read_abacus,
    read_gaussian,
    read_pwmat,
    read_siesta,
)
from dpstream.inputs.reading.parsed import parsed, split_at
from dpstream.inputs.reading.xml_outputs import read_qe_xml, read_vasprun
from dpstream.services.labeler.codes.parse import read_text
from dpstream.services.labeler.codes.qe.qe import SCREENED
from dpstream.shared.atoms.frames import Frame, from_ase

OUTCAR_STEP = re.compile(r"^.*free  energy   TOTEN.*eV *$", re.MULTILINE)
"""The last line of a step; without its unit the number may be cut off."""
OUTCAR_FACTS = re.compile(r"^.*(?:vasp\.\d|TITEL|NELM |EDIFF  =|ISIF +=).*$", re.MULTILINE)
QE_STEP = re.compile(r"^.*(?:Program PWSCF|ATOMIC_POSITIONS).*$", re.MULTILINE)
QE_THRESHOLD = re.compile(r"^.*convergence threshold +=.*$", re.MULTILINE)


# ------------------------------------------------------------------------------ VASP


def read_outcar(path: Path) -> Iterator[FoundFrame]:
    """All ionic steps of an OUTCAR; the last may be cut off."""
    import dpdata.formats.vasp.outcar as reader  # deferred: slow to import

    text = read_text(path)
    header = text[: text.rfind("\n", 0, max(0, text.find("Iteration "))) + 1]
    names, _, types, *_ = reader.system_info(header.splitlines(), type_idx_zero=True)
    species = tuple(names[kind] for kind in types)
    facts = "\n".join(OUTCAR_FACTS.findall(header))
    for block, complete in _outcar_blocks(text[len(header) :]):
        frame, problem = _outcar_frame(reader, block, species)
        yield parsed("vasp", {"OUTCAR": facts + "\n" + block}, frame, problem, complete)


def _outcar_blocks(text: str) -> Iterator[tuple[str, bool]]:
    """The steps, and whether each is complete; one may be cut off."""
    start = 0
    for match in OUTCAR_STEP.finditer(text):
        yield text[start : match.end()], True
        start = match.end()
    if "Iteration" in text[start:] and "Voluntary context" not in text[start:]:
        yield text[start:], False


def _outcar_frame(reader: Any, block: str, species: tuple[str, ...]) -> tuple[Frame | None, str]:
    try:
        positions, cell, *_ = reader.analyze_block(block.splitlines(), len(species), 10**9)
        return Frame(species, np.array(positions), np.array(cell)), ""
    except Exception as error:  # dpdata's readers raise many kinds
        return None, f"incomplete: {error}"


# ------------------------------------------------------------------------------ Quantum ESPRESSO


def read_qe(path: Path) -> Iterator[FoundFrame]:
    """All steps of an output of pw.x. A step is complete if another follows or the run ended."""
    text = read_text(path)
    _, steps = split_at(QE_STEP, text)
    header = "\n".join((*QE_THRESHOLD.findall(text)[:1], *SCREENED.findall(text)[:1]))
    frames = _qe_frames(path)
    for step, after in zip_longest(steps, steps[1:]):
        frame, problem = next(frames, (None, "cannot be read by ASE"))
        if "iteration #" not in step:  # positions that are only printed again
            continue
        is_followed = after is not None and "Program PWSCF" not in after.partition("\n")[0]
        yield parsed("qe", {"stdout": f"{step}\n{header}\n"}, frame, problem, is_followed)


def _qe_frames(path: Path) -> Iterator[tuple[Frame | None, str]]:
    from ase.io.espresso import read_espresso_out

    try:
        with path.open(errors="replace") as file:
            for atoms in read_espresso_out(file, slice(None), results_required=False):
                yield from_ase(atoms), ""
    except Exception as error:  # ASE's readers raise many kinds
        yield None, f"{type(error).__name__}: {error}"


# ------------------------------------------------------------------------------ read by ASE


def _through_ase(form: str, good: str, bad: str) -> Reader:
    """A reader of a program that dpstream has no parser for: numbers of ASE, and convergence by the
    markers `good`, one per step (empty: none is printed), and `bad`."""

    def read(path: Path) -> Iterator[FoundFrame]:
        import ase.io

        text = read_text(path)
        frames = list(ase.io.read(path, index=":", format=form, do_not_split_by_at_sign=True))
        is_sure = not re.search(bad, text)
        if good:
            is_sure &= len(re.findall(good, text)) >= len(frames)
        columns = choose(frames, {}, str(path))
        for each in labelled_frames(frames, columns, str(path)):
            outcome = replace(each.outcome, converged=is_sure, not_converged=not is_sure)
            yield replace(each, outcome=outcome)

    return read


Reader = Callable[[Path], Iterator[FoundFrame]]
READERS: Mapping[str, Reader] = {
    "VASP OUTCAR": read_outcar,
    "VASP vasprun.xml": read_vasprun,
    "QE": read_qe,
    "QE XML": read_qe_xml,
    "CP2K": read_cp2k,
    "ABACUS": read_abacus,
    "SIESTA": read_siesta,
    "Gaussian": read_gaussian,
    "PWmat": read_pwmat,
    "FHI-aims": _through_ase(
        "aims-output", "Self-consistency cycle converged", "cycle not converged"
    ),
    "ABINIT": _through_ase("abinit-out", "", "not enough SCF cycles to converge"),
}
"""Readers by format. All energies are those whose derivatives are the forces."""
