"""Reads the ionic steps of ABACUS, SIESTA, Gaussian and PWmat. Each step is passed to the code's
parser as the output of a run of its own, so that it passes the tests of a computed label."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from dpstream.inputs.reading.found import FoundFrame
from dpstream.inputs.reading.parsed import dpdata_frame, followed, parsed, split_at, unread
from dpstream.services.labeler.acceptance import Outcome
from dpstream.services.labeler.codes.abacus import SUFFIX
from dpstream.services.labeler.codes.parse import (
    NUMBER,
    first,
    last_line,
    numbers,
    read_text,
    rows_after,
)
from dpstream.services.labeler.codes.pwmat import REASON
from dpstream.services.labeler.units import BOHR
from dpstream.shared.atoms.frames import Floats, Frame
from dpstream.shared.errors import SpecError

# ------------------------------------------------------------------------------ ABACUS

ABACUS_LOG = "running_scf.log"
ABACUS_LOGS = (ABACUS_LOG, "running_relax.log", "running_cell-relax.log", "running_md.log")
ABACUS_STEP = re.compile(r"^ *(?:DIRECT|CARTESIAN) COORDINATES", re.MULTILINE | re.IGNORECASE)
ABACUS_ATOM = re.compile(
    rf"^ *(?:tau[cd]_)?([A-Z][a-z]?)\d*((?: +{NUMBER}){{3}})(?: +\S+)*$", re.MULTILINE
)
ABACUS_CELL = r"(?i)^ *Lattice vectors: \(Cartesian coordinate: in unit of a_0\)"
ABACUS_ENERGY = re.compile(r"(?i)final etot is|#TOTAL ENERGY#")


def read_abacus(path: Path) -> Iterator[FoundFrame]:
    """All steps of a log. The atoms of a single point are in INPUT and STRU, two folders above,
    those of other runs in the log."""
    if path.name not in ABACUS_LOGS:
        raise SpecError(f"{path}: not read; give one of {', '.join(ABACUS_LOGS)}")
    text = read_text(path)
    if path.name == ABACUS_LOG:
        yield _abacus(text, *dpdata_frame(path.parent.parent, "abacus/scf", periodic=True))
        return
    header, steps = split_at(ABACUS_STEP, text)
    if not steps:
        yield unread("the log has no positions of atoms")
    alat = float(first(rf"lattice constant \(Bohr\) = *({NUMBER})", header) or "nan") * BOHR
    cell = None
    for step, is_followed in followed(steps):
        printed = rows_after(step.splitlines(), ABACUS_CELL, slice(0, 3))
        cell = cell if printed is None else printed * alat
        if len(ABACUS_ENERGY.findall(step)) > 1:
            yield unread(
                "the log has energies of several steps and positions of one; those of others are "
                "in files (MD_dump, STRU_ION*_D) that are not read"
            )
        elif ABACUS_ENERGY.search(step) or "ELEC" in step:
            yield _abacus(step, *_abacus_frame(step, cell, alat), is_followed)


def _abacus(text: str, frame: Frame | None, problem: str, complete: bool = False) -> FoundFrame:
    return parsed("abacus", {f"OUT.{SUFFIX}/{ABACUS_LOG}": text}, frame, problem, complete)


def _abacus_frame(step: str, cell: Floats | None, alat: float) -> tuple[Frame | None, str]:
    table = step.partition("\n\n")[0]
    atoms = ABACUS_ATOM.findall(table)
    if cell is None or not atoms:
        return None, "the log has no cell or no atoms"
    found = np.array([row.split() for _, row in atoms], dtype=np.float64)
    is_direct = table.lstrip().upper().startswith("DIRECT")
    return Frame(
        tuple(symbol for symbol, _ in atoms), found @ cell if is_direct else found * alat, cell
    ), ""


# ------------------------------------------------------------------------------ SIESTA

SIESTA_STEP = re.compile(r"^outcoor: Atomic coordinates \(Ang\)", re.MULTILINE)
SIESTA_ATOM = re.compile(rf"^ *({NUMBER}) +({NUMBER}) +({NUMBER}) +(\d+)(?: |$)")
"""Position and number of the species."""
SIESTA_ENERGY = re.compile(r"^siesta: E_KS\(eV\) =", re.MULTILINE)
SIESTA_LOOP = rf"^ +scf: +\d+ +{NUMBER} +{NUMBER} +({NUMBER}) "
"""Iteration, Harris, Kohn-Sham and free energy."""
SIESTA_FORCES = r"^siesta: Atomic forces \(eV/Ang\)"
SIESTA_FINAL = "siesta: Final energy (eV):"


def read_siesta(path: Path) -> Iterator[FoundFrame]:
    """All steps of an output of SIESTA, of which it prints the positions with `WriteCoorStep`."""
    text = read_text(path)
    header, steps = split_at(SIESTA_STEP, text)
    if len(steps) < 2 and len(SIESTA_ENERGY.findall(text)) < 2:
        yield parsed(
            "siesta", {"stdout": text}, *dpdata_frame(path, "siesta/output", periodic=True)
        )
        return
    names = dict(re.findall(r"Species number: +(\d+) +Label: (\S+)", header))
    version = first(r"^((?:Siesta Version|Version).*)$", header) or ""
    cell = None
    for step, is_followed in followed(steps):
        printed = rows_after(step.splitlines(), r"^outcell: Unit cell vectors \(Ang\)", slice(0, 3))
        cell = cell if printed is None else printed
        if len(SIESTA_ENERGY.findall(step)) > 1:
            yield unread("positions of this step are not printed; WriteCoorStep T prints them")
            continue
        frame, problem = _siesta_frame(step, cell, names)
        found = parsed("siesta", {"stdout": f"{version}\n{step}"}, frame, problem, is_followed)
        yield found if SIESTA_FINAL in step else replace(found, outcome=_of_step(found, step))


def _of_step(found: FoundFrame, step: str) -> Outcome:
    """The outcome of a step that is not the last: its free energy and forces are printed in other
    words, and its stress with too few decimals."""
    return replace(
        found.outcome,
        energies=numbers(SIESTA_LOOP, step)[-1:],
        frames=1,
        forces=rows_after(step.splitlines(), SIESTA_FORCES, slice(1, 4)),
        virial=None,
    )


def _siesta_frame(
    step: str, cell: Floats | None, names: Mapping[str, str]
) -> tuple[Frame | None, str]:
    table = map(SIESTA_ATOM.match, step.splitlines()[1:])  # other lines may follow at once
    atoms = [found.groups() for found in takewhile(bool, table) if found]
    if cell is None or not atoms or any(kind not in names for *_, kind in atoms):
        return None, "the output has no cell, or atoms of unknown species"
    # A label such as Fe_up or H.1 begins with the element.
    species = tuple(re.split(r"[^A-Za-z]", names[kind])[0] for *_, kind in atoms)
    return Frame(species, np.array([row[:3] for row in atoms], dtype=np.float64), cell), ""


# ------------------------------------------------------------------------------ Gaussian

GAUSSIAN_STEP = re.compile(r"^ *Input orientation:", re.MULTILINE)
GAUSSIAN_JOB = "Initial command:"
INTERNAL_JOB = re.compile(r"^ *Link1: +Proceeding to internal job step", re.MULTILINE)
SCF_DONE = "SCF Done:"
NO_ORIENTATION = (
    "positions of this step are not printed in the input orientation; Geom=PrintInputOrient "
    "prints them"
)
FURTHER_JOB = (
    "a further job of the same input, as the frequencies after an optimisation, is not read: it "
    "repeats the last geometry"
)


def read_gaussian(path: Path) -> Iterator[FoundFrame]:
    """All steps of a log of Gaussian. Several inputs in one log may differ in their method: they
    are read as one output, which then has no single energy. Of the jobs that Gaussian makes of one
    input the first is read."""
    text = read_text(path)
    if text.count(GAUSSIAN_JOB) > 1:
        yield parsed("gaussian", {"input.log": text}, *_gaussian_frame(text))
        return
    job, further = split_at(INTERNAL_JOB, text)
    yield from _gaussian_steps(job)
    yield from (unread(FURTHER_JOB) for each in further if SCF_DONE in each)


def _gaussian_steps(job: str) -> Iterator[FoundFrame]:
    header, parts = split_at(GAUSSIAN_STEP, job)
    yield from (unread(NO_ORIENTATION) for _ in range(header.count(SCF_DONE)))
    if SCF_DONE not in job:
        yield parsed("gaussian", {"input.log": job}, *_gaussian_frame(job))
    version = first(r"^( Gaussian \d+, +Revision.*)$", header) or ""
    for part in parts:
        if SCF_DONE in part:  # the last positions are printed again
            whole = f"{version}\n{part.rstrip()}\n"
            frame, problem = _gaussian_frame(part)
            is_followed = part is not parts[-1]
            yield parsed("gaussian", {"input.log": whole}, frame, problem, is_followed)


def _gaussian_frame(step: str) -> tuple[Frame | None, str]:
    lines = step.splitlines()
    numbered = rows_after(lines, "Input orientation:", slice(0, 3), skip=5)
    positions = rows_after(lines, "Input orientation:", slice(3, 6), skip=5)
    if numbered is None or positions is None:
        return None, "the output has no atoms"
    if numbered[:, 1].min() < 1:
        return None, "the output has cell vectors or centers that are no atoms"
    return Frame(_symbols(numbered[:, 1]), positions, None), ""


def _symbols(atomic_numbers: Floats) -> tuple[str, ...]:
    return tuple(chemical_symbols[int(z)] for z in atomic_numbers)


# ------------------------------------------------------------------------------ PWmat

PWMAT_STEP = re.compile(r"^ *\d+ +atoms,\s*Iteration", re.MULTILINE)


def read_pwmat(path: Path) -> Iterator[FoundFrame]:
    """All steps of OUT.MLMD or MOVEMENT. Why the iterations of each ended is in REPORT beside
    them."""
    _, steps = split_at(PWMAT_STEP, read_text(path))
    report = read_text(path.parent / "REPORT")
    reasons = list(REASON.finditer(report))
    if len(steps) > 1 and len(reasons) != len(steps):
        yield from (
            unread(f"REPORT beside it tells how {len(reasons)} of {len(steps)} steps ended")
            for _ in steps
        )
        return
    for number, step in enumerate(steps):
        reason = reasons[number][0] if len(steps) > 1 else report
        yield parsed("pwmat", {"OUT.MLMD": step, "REPORT": reason}, *_pwmat_frame(step))


def _pwmat_frame(step: str) -> tuple[Frame | None, str]:
    lines = step.splitlines()
    cell = rows_after(lines, r"^\s*Lattice vector", slice(0, 3))
    found = rows_after(lines, r"^\s*Position", slice(1, 4))
    at = last_line(lines, r"^\s*Position")
    if cell is None or found is None or at is None:
        return None, "the step has no cell or no atoms"
    kinds = np.array([line.split()[0] for line in lines[at + 1 : at + 1 + len(found)]], dtype=float)
    return Frame(_symbols(kinds), found @ cell, cell), ""
