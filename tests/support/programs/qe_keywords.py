"""Families of keywords of pw.x on small cells, and the machine-readable results of a run."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpstream.services.labeler.units import BOHR, HARTREE
from dpstream.shared.atoms.frames import Floats, Frame, FrameLabel

Settings = dict[str, Any]

SILICON = Frame(
    ("Si", "Si"),
    np.array([[0.05, 0.02, 0], [1.92, 1.108513, 0.783837]]),
    np.array([[3.84, 0, 0], [1.92, 3.325538, 0], [1.92, 1.108513, 3.135347]]),
)
HYDROGEN = Frame(("H", "H"), np.array([[2.0, 2, 2], [2.5, 2.4, 2.3]]), np.diag([4.5, 4.6, 4.7]))
SLAB = Frame(("H", "H"), HYDROGEN.positions, np.diag([4.0, 4, 12]))
ATOM = Frame(("H",), np.array([[2.0, 2, 2]]), HYDROGEN.cell)
ALUMINIUM = Frame(("Al", "Al"), np.array([[0.0, 0, 0], [2.1, 0, 2.0]]), np.diag([2.85, 2.85, 4.05]))
NICKEL = Frame(
    ("Ni",), np.zeros((1, 3)), np.array([[2.5, 0, 0], [1.25, 2.165, 0], [1.25, 0.7217, 2.0412]])
)
OXYGEN = Frame(("O", "O"), np.array([[2.0, 2, 2], [2.5, 2.4, 3.0]]), HYDROGEN.cell)

LDA = {"H": "H.pz-vbc.UPF", "Si": "Si.pz-vbc.UPF", "Al": "Al.pz-vbc.UPF"}
COARSE = {"ecutwfc": 12, "kpoints": [1, 1, 1]}
MOLECULE: Settings = {**COARSE, "pseudopotentials": {"H": LDA["H"]}}
METAL: Settings = {
    "pseudopotentials": {"Al": LDA["Al"]},
    "ecutwfc": 10,
    "kpoints": [2, 2, 2],
    "smearing": "gaussian",
    "degauss": 0.05,
}
ULTRASOFT = {"ecutwfc": 20, "ecutrho": 100, "conv_thr": 1e-6}
BASES: dict[str, tuple[Frame, Settings]] = {
    "Si": (SILICON, {"pseudopotentials": {"Si": LDA["Si"]}, "ecutwfc": 8, "kpoints": [1, 1, 1]}),
    "H2": (HYDROGEN, MOLECULE),
    "slab": (SLAB, MOLECULE),
    "H": (
        ATOM,
        {
            **MOLECULE,
            "nspin": 2,
            "starting_magnetization": {"H": 1.0},
            "system": {"tot_magnetization": 1},
        },
    ),
    "Al": (ALUMINIUM, METAL),
    "Ni": (
        NICKEL,
        {
            **METAL,
            **ULTRASOFT,
            "pseudopotentials": {"Ni": "Ni.pbe-nd-rrkjus.UPF"},
            "nspin": 2,
            "starting_magnetization": {"Ni": 0.5},
        },
    ),
    "O2": (
        OXYGEN,
        {
            **COARSE,
            **ULTRASOFT,
            "pseudopotentials": {"O": "O.pz-kjpaw.UPF"},
            "nspin": 2,
            "starting_magnetization": {"O": 0.5},
            "smearing": "gaussian",
            "degauss": 0.01,
        },
    ),
}


class Family(NamedTuple):
    """Settings over those of a base; `charge` of the cell, e."""

    base: str
    changes: Settings
    charge: int = 0

    @property
    def frame(self) -> Frame:
        return BASES[self.base][0]

    @property
    def settings(self) -> Settings:
        """With an output that `machine_readable` reads."""
        return _over(_over({"control": {"disk_io": "low"}}, BASES[self.base][1]), self.changes)

    def __str__(self) -> str:
        words = " ".join(f"{key}={value}" for key, value in self.changes.items())
        return f"{self.base} {words} {self.charge or ''}".strip()


def _over(base: Settings, changes: Settings) -> Settings:
    """`changes` over `base`; namelists are merged."""
    merged = dict(base)
    for key, value in changes.items():
        known = merged.get(key)
        merge = key in ("system", "electrons", "control") and isinstance(known, dict)
        merged[key] = {**known, **value} if merge else value
    return merged


def _each(base: str, section: str, **values: tuple[Any, ...]) -> list[Family]:
    """A family for each value of each keyword."""
    return [Family(base, {section: {k: v}}) for k, vs in values.items() for v in vs]


def _hybrid(base: str = "Si", **system: Any) -> Family:
    return Family(base, {"system": {"input_dft": "pbe0", **system}})


PBE = {"input_dft": "pbe"}
HUBBARD = {"lda_plus_u": True, "Hubbard_U(1)": 4.0}
SPINORS: Settings = {"nspin": 1, "starting_magnetization": {}}
RELATIVISTIC: Settings = {"pseudopotentials": {"Si": "Si.rel-pbe-rrkj.UPF"}}

# fmt: off
ACCEPTED: tuple[Family, ...] = (
    *(Family(base, {"control": {"verbosity": v}}) for base in BASES for v in ("low", "high")),
    Family("Al", {"control": {"verbosity": "high"}, "smearing": "marzari-vanderbilt"}),
    *_each("Si", "control", verbosity=("debug",), disk_io=("minimal", "medium", "high"),
           title=("x",), wf_collect=(True,), iprint=(1,), nstep=(1,), tqmmm=(True,)),
    *_each("Si", "system", input_dft=("pbe", "blyp", "pw91", "pbesol", "revpbe", "bp", "m06l",
                                      "rvv10", "sla+pw+nogx+nogc")),
    *_each("Si", "system", input_dft=("hse", "b3lyp", "gaupbe", "hf", "b3lyp-v1r", "x3lyp")),
    _hybrid(), _hybrid("H2"), _hybrid("Al"), _hybrid(ecutfock=20.0), _hybrid(ace=False),
    _hybrid("O2"),
    _hybrid("H2", exxdiv_treatment="vcut_spherical", x_gamma_extrapolation=False, ecutvcut=0.7),
    _hybrid(exxdiv_treatment="gygi-baldereschi"), _hybrid(exxdiv_treatment="none"),
    Family("Si", {"system": {"input_dft": "hse", "nqx1": 1}, "kpoints": [2, 2, 2]}),
    Family("Si", {"system": {"input_dft": "pbe0"}, "electrons": {"adaptive_thr": True}}),
    Family("Si", {"system": {"input_dft": "pbe0"}, "control": {"verbosity": "high"}}),
    *_each("H2", "system", vdw_corr=("grimme-d2", "none")),
    *(Family("Si", {"system": {**PBE, "vdw_corr": v}})
      for v in ("grimme-d2", "dft-d3", "ts-vdw", "mbd_vdw", "xdm")),
    Family("Si", {"system": {**PBE, "vdw_corr": "dft-d3"}, "control": {"verbosity": "high"}}),
    Family("Si", {"system": {**PBE, "vdw_corr": "dft-d3", "dftd3_version": 3}}),
    *_each("slab", "system", assume_isolated=("none", "esm")),
    *(Family("Al", {"smearing": s})
      for s in ("methfessel-paxton", "marzari-vanderbilt", "fermi-dirac")),
    Family("Al", {"koffset": [1, 1, 1]}), Family("Al", {}, charge=1), Family("O2", {}, charge=-1),
    Family("Al", {"kpoints": [1, 1, 1]}), Family("Al", {"kpoints": None, "kspacing": 0.9}),
    Family("Si", {"system": {"occupations": "fixed"}, "kpoints": [2, 2, 2]}),
    *(Family("Si", {"system": {"occupations": o}, "kpoints": k})
      for o in ("tetrahedra", "tetrahedra_opt") for k in ([1, 1, 1], [2, 2, 2])),
    Family("Al", {"nspin": 2, "starting_magnetization": {"Al": 0.3}}),
    Family("Ni", {"system": {"tot_magnetization": 1.0}}),
    Family("Ni", {"system": {"constrained_magnetization": "atomic", "lambda": 1.0}}),
    Family("Ni", {**SPINORS, "system": {"noncolin": True, "starting_magnetization(1)": 0.5,
                                        "angle1(1)": 90}}),
    *(Family("Si", {**RELATIVISTIC, "kpoints": k, "system": {"noncolin": True, "lspinorb": True}})
      for k in ([1, 1, 1], [2, 2, 2])),
    Family("Ni", {"system": HUBBARD}),
    Family("Ni", {"system": HUBBARD, "control": {"verbosity": "high"}}),
    Family("Ni", {"system": {**HUBBARD, "U_projection_type": "ortho-atomic"}}),
    Family("Ni", {"system": {"lda_plus_u": True, "lda_plus_u_kind": 2, "Hubbard_V(1,1,1)": 4.0}}),
    *_each("Si", "system", nosym=(True,), noinv=(True,), nosym_evc=(True,), no_t_rev=(True,),
           use_all_frac=(True,), nbnd=(8,), nr1=(24,), report=(1,), starting_charge=(1,)),
    Family("Si", {"system": {"ecfixed": 8.0, "qcutz": 10.0, "q2sigma": 1.0}}),
    *_each("Si", "electrons", mixing_mode=("TF", "local-TF"), mixing_beta=(0.3,),
           startingwfc=("random", "atomic", "file"), startingpot=("file", "atomic"),
           diagonalization=("david", "cg", "ppcg", "paro"), diago_full_acc=(True,),
           diago_david_ndim=(4,), conv_thr_init=(1e-3,), adaptive_thr=(True,)),
    *_each("O2", "electrons", tqr=(True,), real_space=(True,)),
    Family("Si", {"control": {"lelfield": True}, "kpoints": [2, 2, 2]}),
)
REFUSED: tuple[tuple[Family, str], ...] = (
    (Family("Si", {"system": {"occupations": "from_input"}}), "a card that dpstream"),
    (Family("Si", {"system": {"occupations": "smearing"}}), "give smearing and degauss"),
    (Family("H2", {"system": {"assume_isolated": "makov-payne"}}), "use mt"),
    (Family("Ni", {"system": {"noncolin": True}}), "nspin: remove it"),
    (Family("Si", {**RELATIVISTIC, "system": {"lspinorb": True}}), "needs system.noncolin"),
    (Family("Ni", {"system": {**HUBBARD, "lda_plus_u_kind": 1}}), "use 0"),
    (Family("Ni", {"system": {**HUBBARD, "U_projection_type": "norm-atomic"}}), "ortho-atomic"),
    (Family("Si", {"system": {"space_group": 227}}), "dpstream writes all atoms"),
    (Family("Si", {"system": {"A": 3.8}}), "dpstream writes the cell"),
    (Family("Si", {"system": {"celldm(1)": 7.0}}), "dpstream writes the cell"),
    (Family("Si", {"control": {"max_seconds": 100}}), "labels.max_seconds"),
    (Family("Si", {"electrons": {"scf_must_converge": False}}), "always rejected"),
    (_hybrid(exxdiv_treatment="vcut_spherical"), "orthorhombic"),
)
"""With words of the refusal."""
WITHOUT_VIRIAL: tuple[Family, ...] = (
    Family("Si", {"control": {"tefield": True}}),
    Family("H2", {"control": {"tefield": True, "dipfield": True}}),
    Family("H2", {"system": {"assume_isolated": "mt"}}),
    Family("H", {"system": {"assume_isolated": "martyna-tuckerman"}}),
    Family("slab", {"system": {"assume_isolated": "esm", "esm_bc": "bc1"}}),
    Family("slab", {"system": {"assume_isolated": "esm", "esm_bc": "bc3"}}),
)
# fmt: on


def machine_readable(folder: Path, frame: Frame) -> FrameLabel:
    """Energy, forces and virial of the XML file that pw.x wrote in `folder`. The virial is None if
    there is none."""
    output = ElementTree.parse(folder / "out/dpstream.xml").getroot().find("output")
    assert output is not None
    forces, stress = output.find("forces"), output.find("stress")
    assert forces is not None
    return FrameLabel(
        float(output.findtext("total_energy/etot", "")) * HARTREE,
        _values(forces).reshape(-1, 3) * HARTREE / BOHR,
        None if stress is None else _virial(_values(stress), frame),
    )


def _virial(stress: Floats, frame: Frame) -> Floats:
    assert frame.cell is not None
    volume = abs(float(np.linalg.det(frame.cell)))
    return stress.reshape(3, 3) * volume * HARTREE / BOHR**3


def _values(element: ElementTree.Element) -> Floats:
    return np.array([float(word) for word in (element.text or "").split()])
