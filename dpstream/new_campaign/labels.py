"""Settings of labeling codes for a first test. Users converge them before production."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.codes.qe.qe import pseudopotential_folders
from dpstream.shared.errors import SpecError
from dpstream.shared.spec.errors import did_you_mean

KSPACING = 0.25
"""Å⁻¹, 2π included."""
GAMMA_ONLY = ("tblite", "cp2k")
"""Codes that sample the Γ point alone, unless told otherwise."""


def _tblite(elements: Sequence[str]) -> dict[str, Any]:
    return {"method": "GFN2-xTB"}


def _pyscf(elements: Sequence[str]) -> dict[str, Any]:
    return {"xc": "pbe", "basis": "def2-svp"}


def _ase(elements: Sequence[str]) -> dict[str, Any]:
    return {"calculator": "ase.calculators.emt.EMT"}


def _gaussian(elements: Sequence[str]) -> dict[str, Any]:
    return {"keywords": "force b3lyp/def2svp nosymm scf=tight"}


def _cp2k(elements: Sequence[str]) -> dict[str, Any]:
    return {"functional": "PBE", "cutoff": 400}


def _qe(elements: Sequence[str]) -> dict[str, Any]:
    return {
        "pseudopotentials": {element: _pseudopotential(element) for element in elements},
        "ecutwfc": 50,
        "ecutrho": 400,
        "kspacing": KSPACING,
        "smearing": "gaussian",
        "degauss": 0.01,
    }


def _pseudopotential(element: str) -> str:
    """A file of this machine, PBE and PAW if there is one; else a name to be edited."""
    names = [
        path.name
        for folder in pseudopotential_folders()
        for path in sorted(folder.glob(f"{element}.*UPF"))
    ]
    names.sort(key=lambda name: ("pbe-" not in name, "paw" not in name))
    return names[0] if names else f"{element}.UPF"


def _vasp(elements: Sequence[str]) -> dict[str, Any]:
    incar = {"PREC": "Accurate", "ENCUT": 520, "EDIFF": 1e-6, "NELM": 120, "ISMEAR": 0}
    incar |= {"SIGMA": 0.05, "ISIF": 2, "KSPACING": KSPACING, "LWAVE": False, "LCHARG": False}
    return {"incar": incar, "potentials": {element: element for element in elements}}


def _abacus(elements: Sequence[str]) -> dict[str, Any]:
    given = {"basis_type": "pw", "ecutwfc": 60, "scf_thr": 1e-7, "kspacing": 0.13}
    given |= {"smearing_method": "gauss", "smearing_sigma": 0.01}
    return {"input": given, "potentials": {element: f"{element}.upf" for element in elements}}


SETTINGS: Mapping[str, Callable[[Sequence[str]], dict[str, Any]]] = {
    "tblite": _tblite,
    "pyscf": _pyscf,
    "ase": _ase,
    "cp2k": _cp2k,
    "qe": _qe,
    "vasp": _vasp,
    "gaussian": _gaussian,
    "abacus": _abacus,
}


def settings(code: str, elements: Sequence[str], periodic: bool) -> dict[str, Any]:
    """`labels.settings` for structures of these elements. Raises SpecError for a code without
    settings to begin with, and for one that does not compute such structures."""
    if code not in SETTINGS:
        hint = did_you_mean(code, SETTINGS)
        page = f"; write docs/labeling/{code}.md's settings into the spec" if code in CODES else ""
        raise SpecError(f"--code {code}{hint or page}; allowed: {', '.join(SETTINGS)}")
    if periodic and not CODES[code].periodic:
        raise SpecError(f"--code {code}: computes molecules only, and the structures have cells")
    if code in ("cp2k", "qe", "vasp", "abacus") and not periodic:
        raise SpecError(
            f"--code {code}: computes cells only; put the molecule into a box, or use "
            "tblite, pyscf or gaussian"
        )
    return SETTINGS[code](elements)
