"""Settings and potentials of the labeling codes that are not installed here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpstream.services.labeler.codes import CODES
from dpstream.shared.atoms.frames import Frame

NACL = Frame(
    ("Cl", "Na"),
    np.array([[2.8, 2.8, 2.8], [0, 0.1, 0]]),
    np.array([[5.6, 0, 0], [0.1, 5.6, 0], [0, 0, 5.6]]),
)
POTENTIALS = {"Na": "Na_pv", "Cl": "Cl/POTCAR"}
VASP = {"incar": "ENCUT = 400\nKSPACING = 0.3\n", "potentials": POTENTIALS}
SETTINGS: dict[str, dict[str, Any]] = {
    "vasp": VASP,
    "gaussian": {"keywords": "force b3lyp/6-31g** nosymm"},
    "abacus": {"input": {"ecutwfc": 80, "kspacing": 0.1}, "potentials": POTENTIALS},
    "siesta": {"fdf": "MeshCutoff 300 Ry\n", "potentials": POTENTIALS, "kpoints": [2, 2, 2]},
    "pwmat": {"etot_input": "ECUT = 50\nMP_N123 = 2 2 2 0 0 0\n", "potentials": POTENTIALS},
}

TEMPLATE = """\
@SET CUTOFF 300   ! a line that only CP2K understands
&GLOBAL
  PROJECT mine
&END GLOBAL
&FORCE_EVAL
  METHOD QS
  STRESS_TENSOR ANALYTICAL
  &PRINT
    &FORCES ON
    &END FORCES
    &STRESS_TENSOR ON
    &END
  &END PRINT
  &DFT
    &MGRID
      CUTOFF ${CUTOFF}
    &END MGRID
  &END DFT
  &SUBSYS
    &CELL
      ABC 10 10 10
    &END CELL
    &COORD
      @include coord.xyz
    &END COORD
    &KIND H
      POTENTIAL GTH-PBE-q1
    &END KIND
  &END SUBSYS
&END FORCE_EVAL
"""
"""An input for CP2K."""


@pytest.fixture
def potentials_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A worker's potentials: a file, and a folder with a POTCAR."""
    place = tmp_path / "potentials"
    (place / "Cl").mkdir(parents=True)
    (place / "Na_pv").write_text("  PAW_PBE Na_pv 19Sep2006\n   POMASS = 22.9; ZVAL   =    7.000\n")
    (place / "Cl/POTCAR").write_text(
        "  PAW_PBE Cl 06Sep2000\n   POMASS = 35.5; ZVAL   =    7.000\n"
    )
    named = "; ".join(f"{code}={place}" for code in CODES)
    monkeypatch.setenv("DPSTREAM_LABELER_POTENTIALS", named)
    return place
