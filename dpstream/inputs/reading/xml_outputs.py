"""Reads the XML outputs of VASP and Quantum ESPRESSO, which hold every ionic step."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dpstream.inputs.reading.found import FoundFrame, results
from dpstream.services.labeler.codes.qe.keywords import PERIODIC
from dpstream.services.labeler.units import BOHR, HARTREE
from dpstream.shared.atoms.frames import Floats, Frame, from_ase
from dpstream.shared.errors import SpecError

WHOLE_STRESS = 2
"""ISIF from which VASP computes the stress; with 1 it is the trace alone, with 0 nothing."""


class _Step(NamedTuple):
    converged: bool = False
    stressed: bool = False


def read_vasprun(path: Path) -> Iterator[FoundFrame]:
    """All ionic steps of a vasprun.xml. A step is converged if its electronic loop ended before
    NELM, or changed the energy by less than EDIFF at last."""
    import ase.io

    frames = ase.io.read(path, index=":", format="vasp-xml", do_not_split_by_at_sign=True)
    steps = list(_steps(path))
    for number, atoms in enumerate(frames):
        if atoms.calc is None:  # cut off before the first step ended
            return
        step = steps[number] if number < len(steps) else _Step()
        stressed = step.stressed and "stress" in atoms.calc.results
        outcome = results(
            atoms.calc.results.get("free_energy"),
            atoms.calc.results.get("forces"),
            _virial_of(atoms) if stressed else None,
        )
        outcome = replace(outcome, converged=step.converged, not_converged=not step.converged)
        yield FoundFrame(from_ase(atoms), outcome, energy="free")


def _virial_of(atoms: object) -> Floats:
    """−stress · V, eV."""
    virial: Floats = -atoms.get_stress(voigt=False) * atoms.get_volume()  # type: ignore[attr-defined]
    return virial


def _steps(path: Path) -> Iterator[_Step]:
    """Whether each step's electronic loop converged and its stress is whole. The file may be cut
    off."""
    limits = {"NELM": 60.0, "EDIFF": 1e-4, "ISIF": 2.0}  # VASP's defaults
    try:
        for _, element in ET.iterparse(path):
            if element.tag in ("incar", "parameters"):
                limits |= _numbers(element, limits)
            elif element.tag == "calculation":
                yield _Step(_settled(element, limits), limits["ISIF"] >= WHOLE_STRESS)
                element.clear()
    except ET.ParseError:
        return


def _numbers(element: ET.Element, names: dict[str, float]) -> dict[str, float]:
    given = {each.get("name"): each.text for each in element.iter("i")}
    return {name: float(given[name] or 0) for name in names if name in given}


def _settled(calculation: ET.Element, limits: dict[str, float]) -> bool:
    steps = calculation.findall("scstep")
    if len(steps) < limits["NELM"]:
        return bool(steps)
    energies = [step.findtext("energy/i[@name='e_fr_energy']") for step in steps[-2:]]
    if len(energies) < 2 or None in energies:
        return False
    before, last = (float(energy or 0) for energy in energies)
    return abs(last - before) < limits["EDIFF"]


# ------------------------------------------------------------------------------ Quantum ESPRESSO


def read_qe_xml(path: Path) -> Iterator[FoundFrame]:
    """All steps of the XML file that pw.x writes (Hartree atomic units). The last is written as a
    step and as the output; a single point only as the output."""
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as error:
        raise SpecError(f"{path}: is cut off or not XML: {error}") from error
    steps = [each for each in root.findall("step") if each.find("forces") is not None]
    output = root.find("output")
    if not steps and output is not None:
        steps = [output]
    for step in steps:
        yield _qe_step(step, root)


def _qe_step(step: ET.Element, root: ET.Element) -> FoundFrame:
    structure = step.find("atomic_structure")
    assert structure is not None, "a step without atoms"
    atoms = structure.findall("atomic_positions/atom")
    species = tuple((atom.get("name") or "").rstrip("0123456789_-") for atom in atoms)
    cell = np.stack([_row(structure.findtext(f"cell/a{axis}")) for axis in "123"]) * BOHR
    frame = Frame(species, np.stack([_row(atom.text) for atom in atoms]) * BOHR, cell)
    forces = _matrix(step, "forces")
    stress = None if _is_screened(root) else _matrix(step, "stress")
    energy = step.findtext("total_energy/etot")
    outcome = results(
        None if energy is None else float(energy) * HARTREE,
        None if forces is None else forces * (HARTREE / BOHR),
        None if stress is None else stress * (HARTREE / BOHR**3 * abs(np.linalg.det(cell))),
    )
    is_converged = _is_accurate(step, root.findtext("input/electron_control/conv_thr"))
    outcome = replace(outcome, converged=is_converged, not_converged=not is_converged)
    return FoundFrame(frame, outcome, energy="free")


def _is_screened(root: ET.Element) -> bool:
    """Whether the effective screening medium is there, with which the components of the stress
    normal to the slab are zeros."""
    given = root.find("input/boundary_conditions")
    if given is None or (given.findtext("assume_isolated") or "").strip() != "esm":
        return False
    return (given.findtext("esm/bc") or PERIODIC).strip() != PERIODIC


def _is_accurate(step: ET.Element, threshold: str | None) -> bool:
    """Whether the density converged: with `scf_must_converge=.false.` pw.x says so of any."""
    loop = next(step.iter("scf_conv"), None)
    if loop is None or threshold is None:
        return False
    achieved = (loop.findtext("convergence_achieved") or "").strip().lower() == "true"
    return achieved and float(loop.findtext("scf_error") or "inf") <= float(threshold)


def _row(text: str | None) -> Floats:
    return np.array((text or "").split(), dtype=np.float64)


def _matrix(step: ET.Element, tag: str) -> Floats | None:
    text = step.findtext(tag)
    return None if text is None else _row(text).reshape(-1, 3)
