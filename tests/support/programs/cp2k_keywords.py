"""Families of keywords of CP2K on small cells, and the machine-readable results of a run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpstream.services.labeler.units import BOHR, GPA, HARTREE
from dpstream.shared.atoms.frames import Frame, FrameLabel

Settings = dict[str, Any]

HYDROGEN = Frame(
    ("H", "H"),
    np.array([[0.3, 0.2, 0.1], [0.8, 0.7, 0.5]]),
    np.array([[4.2, 0, 0], [0.3, 4.4, 0], [-0.2, 0.4, 4.6]]),
)
ATOM = Frame(("H",), HYDROGEN.positions[:1], HYDROGEN.cell)
LITHIUM = Frame(("Li", "Li"), np.array([[0.1, 0, 0], [1.7, 1.75, 1.8]]), np.diag([3.45, 3.5, 3.6]))
COARSE: Settings = {
    "cutoff": 100,
    "rel_cutoff": 30,
    "dispersion": False,
    "basis": {"H": "SZV-MOLOPT-SR-GTH", "Li": "SZV-MOLOPT-SR-GTH"},
}


def dft(**keywords: Any) -> Settings:
    return {"keywords": {"FORCE_EVAL": {"DFT": keywords}}}


def scf(**keywords: Any) -> Settings:
    return dft(SCF=keywords)


SMEARED = {"_": True, "METHOD": "FERMI_DIRAC", "ELECTRONIC_TEMPERATURE": 2000}
DIAGONAL = {
    "OT": None,
    "OUTER_SCF": None,
    "DIAGONALIZATION": {"_": True},
    "MIXING": {"METHOD": "BROYDEN_MIXING", "ALPHA": 0.4},
    "MAX_SCF": 100,
}
BASES: dict[str, tuple[Frame, Settings]] = {
    "H2": (HYDROGEN, COARSE),
    "diagonal": (HYDROGEN, COARSE | scf(**DIAGONAL)),
    "H": (ATOM, COARSE),
    "Li": (LITHIUM, {**COARSE, "kpoints": [2, 2, 2], **scf(ADDED_MOS=4, SMEAR=SMEARED)}),
}


class Family(NamedTuple):
    """Settings over those of a base."""

    base: str
    changes: Settings
    charge: int = 0
    multiplicity: int = 1

    @property
    def frame(self) -> Frame:
        return BASES[self.base][0]

    @property
    def settings(self) -> Settings:
        return _over(BASES[self.base][1], self.changes)

    @property
    def labels(self) -> dict[str, int]:
        multiplicity = 2 if self.base == "H" else self.multiplicity
        return {"charge": self.charge, "multiplicity": multiplicity}

    def __str__(self) -> str:
        return f"{self.base} {self.changes} {self.charge} {self.multiplicity}"


def _over(base: Settings, changes: Settings) -> Settings:
    merged = dict(base)
    for key, value in changes.items():
        known = merged.get(key)
        both = isinstance(known, dict) and isinstance(value, dict)
        merged[key] = _over(known, value) if both and isinstance(known, dict) else value
    return merged


def _printed(**sections: Any) -> Settings:
    return {"keywords": {"FORCE_EVAL": {"PRINT": sections}}}


def _global(**keywords: Any) -> Settings:
    return {"keywords": {"GLOBAL": keywords}}


def _pair(kind: str) -> Settings:
    return {"dispersion": True, **dft(XC={"VDW_POTENTIAL": {"PAIR_POTENTIAL": {"TYPE": kind}}})}


ON = {"_": "ON"}
EXCHANGE = {
    "FRACTION": 0.25,
    "INTERACTION_POTENTIAL": {"POTENTIAL_TYPE": "TRUNCATED", "CUTOFF_RADIUS": 1.9},
    "SCREENING": {"EPS_SCHWARZ": "1.0E-6"},
}
XTB = {"METHOD": "XTB", "XTB": {"CHECK_ATOMIC_CHARGES": False}}

# fmt: off
ACCEPTED: tuple[Family, ...] = (
    *(Family(base, _global(PRINT_LEVEL=level)) for base in ("H2", "H", "Li")
      for level in ("LOW", "MEDIUM", "HIGH")),
    *(Family("H2", _global(**{key: value})) for key, value in
      {"PROJECT": "x", "WALLTIME": 3600, "ECHO_INPUT": True, "SAVE_MEM": True}.items()),
    Family("H2", _printed(FORCES={"NDIGITS": 12})), Family("H2", _printed(FORCES={"NDIGITS": 10})),
    Family("H2", _printed(STRESS_TENSOR={"COMPONENTS": True})),
    *(Family("H2", dft(PRINT={name: ON})) for name in
      ("MULLIKEN", "LOWDIN", "HIRSHFELD", "MOMENTS", "E_DENSITY_CUBE", "DERIVATIVES")),
    Family("diagonal", dft(PRINT={"PDOS": ON})),
    Family("H2", scf(PRINT={"DETAILED_ENERGY": ON})),
    Family("H2", scf(PRINT={"PROGRAM_RUN_INFO": ON})),
    *(Family("H2", {"keywords": {"FORCE_EVAL": {"SUBSYS": {"PRINT": {name: value}}}}})
      for name, value in (("ATOMIC_COORDINATES", {"_": "OFF"}), ("INTERATOMIC_DISTANCES", ON),
                          ("ATOMIC_COORDINATES", {"UNIT": "BOHR"}))),
    Family("H2", scf(OUTER_SCF=None)),
    *(Family("H2", scf(OT={"MINIMIZER": name})) for name in ("CG", "SD", "BROYDEN")),
    Family("H2", scf(OT={"ALGORITHM": "IRAC"})),
    *(Family("H2", scf(SCF_GUESS=guess)) for guess in ("RESTART", "RANDOM", "CORE")),
    *(Family("H2", {"functional": name, "potential": {"H": "GTH-PBE-q1"}})
      for name in ("BLYP", "PADE", "TPSS", "HCTH120", "OLYP", "BP", "B3LYP")),
    Family("H2", dft(XC={"HF": EXCHANGE})),
    *(Family("H2", _pair(kind)) for kind in ("DFTD2", "DFTD3", "DFTD3(BJ)")),
    Family("H2", dft(UKS=True)), Family("H2", {}, multiplicity=3), Family("H2", {}, charge=2),
    Family("H2", {}, charge=-1, multiplicity=2), Family("H", {}), Family("H", scf(**DIAGONAL)),
    *(Family("diagonal", scf(MIXING={"METHOD": f"{name}_MIXING"}))
      for name in ("DIRECT_P", "PULAY", "KERKER", "BROYDEN")),
    Family("diagonal", scf(ADDED_MOS=2, SMEAR=SMEARED)),
    Family("Li", {}), Family("Li", scf(SMEAR=None)),
    *(Family("Li", dft(KPOINTS={key: True})) for key in ("SYMMETRY", "FULL_GRID", "VERBOSE")),
    Family("H2", {"kpoints": [1, 1, 1]}), Family("H2", {"kspacing": 0.9}),
    *(Family("H2", dft(QS={"METHOD": name})) for name in ("GAPW", "GAPW_XC", "PM6", "AM1")),
    Family("diagonal", dft(QS=XTB)), Family("H2", dft(QS={"LS_SCF": True})),
)
REFUSED: tuple[tuple[Family, str], ...] = (
    (Family("H2", _global(PRINT_LEVEL="SILENT")), "must be ON (GLOBAL.PRINT_LEVEL: SILENT"),
    (Family("H2", _global(IOLEVEL="SILENT")), "must be ON (GLOBAL.IOLEVEL: SILENT"),
    (Family("H2", _printed(FORCES={"FILENAME": "forces"})), "PRINT.FORCES.FILENAME: remove it"),
    (Family("H2", _printed(FORCES={"_": "OFF"})), "PRINT.FORCES: must be ON"),
    (Family("H2", _printed(FORCES=None)), "PRINT.FORCES: must be ON"),
    (Family("H2", _printed(PROGRAM_RUN_INFO={"_": "HIGH"})), "PROGRAM_RUN_INFO: must be ON"),
    (Family("H2", scf(PRINT={"PROGRAM_RUN_INFO": {"_": "OFF"}})), "PROGRAM_RUN_INFO: must be ON"),
    (Family("H2", {"keywords": {"FORCE_EVAL": {"STRESS_TENSOR": "NUMERICAL"}}}), "use ANALYTICAL"),
    (Family("H2", {"keywords": {"FORCE_EVAL": {"STRESS_TENSOR": "DIAGONAL_ANALYTICAL"}}}),
     "use ANALYTICAL"),
    (Family("H2", dft(PERIODIC_EFIELD={"INTENSITY": 0.001})), "STRESS_TENSOR: give NONE"),
    (Family("H2", dft(POISSON={"PERIODIC": "XY", "POISSON_SOLVER": "ANALYTIC"})), "PERIODIC XY"),
)
"""With words of the refusal."""
WITHOUT_VIRIAL: tuple[Family, ...] = (
    Family("H2", {"keywords": {"FORCE_EVAL": {"STRESS_TENSOR": "NONE"}}}),
    Family("H2", _printed(STRESS_TENSOR=None)),
    Family("H2", dft(POISSON={"PERIODIC": "NONE", "POISSON_SOLVER": "MT"})),
    Family("H2", _printed(STRESS_TENSOR={"_": "OFF"})),
    Family("H2", _printed(STRESS_TENSOR={"FILENAME": "stress"})),
    Family("H2", {"keywords": {"FORCE_EVAL": {
        "STRESS_TENSOR": None,
        "DFT": {"PERIODIC_EFIELD": {"INTENSITY": 0.001, "POLARISATION": "1 0 0"}}}}}),
)
# fmt: on
MOTION = """&MOTION
  &MD
    STEPS 0
    TEMPERATURE 0
  &END MD
  &PRINT
    &FORCES ON
      FILENAME =forces.xyz
    &END FORCES
    &STRESS ON
      FILENAME =stress
    &END STRESS
  &END PRINT
&END MOTION
"""


def machine_readable(folder: Path, frame: Frame) -> FrameLabel:
    """Energy, forces and virial of the run in `folder`, from the files that CP2K writes at step 0
    of a trajectory from the same input, in which the atoms are at rest. The virial is None if there
    is none."""
    text = (folder / "cp2k.inp").read_text()
    again = folder / "trajectory"
    again.mkdir()
    (again / "cp2k.inp").write_text(text.replace("ENERGY_FORCE", "MD", 1) + MOTION)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = ["cp2k.psmp", "-i", "cp2k.inp", "-o", "out"]
    subprocess.run(command, cwd=again, env=environment, check=True, timeout=120)
    _, title, *atoms = (again / "forces.xyz").read_text().splitlines()
    forces = np.array([[float(word) for word in line.split()[1:]] for line in atoms])
    energy = float(title.rpartition("E =")[2])
    return FrameLabel(energy * HARTREE, forces * HARTREE / BOHR, _virial(again / "stress", frame))


def _virial(path: Path, frame: Frame) -> Any:
    if not path.exists():
        return None
    assert frame.cell is not None
    stress = [float(word) for word in path.read_text().splitlines()[-1].split()[2:]]
    return np.array(stress).reshape(3, 3) * GPA * 1e-4 * abs(np.linalg.det(frame.cell))
