"""Output of ABACUS, whose headings and markers are in capitals or not by version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpstream.services.labeler.acceptance import AcceptanceLimits, check_after
from dpstream.services.labeler.codes.abacus import Abacus
from dpstream.shared.atoms.frames import Frame
from tests.support.programs.labeling_programs import recorded

SILICON = Frame(
    ("Si", "Si"),
    np.array([[0.0, 0, 0], [1.4, 1.35, 1.3]]),
    np.array([[0, 2.7, 2.7], [2.7, 0, 2.7], [2.7, 2.7, 0.0]])[[1, 0, 2]],
)
LOG = """\
 {coordinates}
 atom  x  y  z
 Si1 0.0 0.0 0.0 0.0
 Si2 {fractions} 0.0

 {converged}
 {energy} -211.5 eV
 ------
 {force}
 ------
 Atoms Force_x Force_y Force_z
 ------
 Si1 0.1 0.2 0.3
 Si2 -0.1 -0.2 -0.3
 ------
 {stress}
 ------
 1.0 0.1 0.0
 0.1 2.0 0.0
 0.0 0.0 3.0
 ------
 {total} : 0 h 0 mins 2 secs
"""
OLD = {
    "coordinates": "DIRECT COORDINATES",
    "converged": "charge density convergence is achieved",
    "energy": "!FINAL_ETOT_IS",
    "force": "TOTAL-FORCE (eV/Angstrom)",
    "stress": "TOTAL-STRESS (KBAR)",
    "total": "Total  Time",
}
NEW = {
    "converged": "#SCF IS CONVERGED#",
    "energy": "#TOTAL ENERGY#",
    "force": "#TOTAL-FORCE (eV/Angstrom)#",
    "stress": "#TOTAL-STRESS (kbar)#",
}


def log(**words: str) -> str:
    assert SILICON.cell is not None
    inside = np.linalg.solve(SILICON.cell.T, SILICON.positions[1])
    return LOG.format(fractions=" ".join(map(str, inside)), **{**OLD, **words})


@pytest.mark.parametrize(
    "words",
    [
        {},
        *({key: word} for key, word in NEW.items()),
        NEW,
        {key: word.lower() for key, word in (OLD | NEW).items()},
    ],
    ids=str,
)
def test_headings_of_all_versions_are_read(tmp_path: Path, words: dict[str, str]) -> None:
    (tmp_path / "OUT.label").mkdir()
    (tmp_path / "OUT.label/running_scf.log").write_text(log(**words))
    outcome = Abacus().read_outputs(tmp_path, SILICON, 0)
    assert check_after(SILICON, outcome, AcceptanceLimits()) is None
    assert outcome.energies == (-211.5,)
    assert outcome.forces is not None
    assert outcome.positions is not None
    np.testing.assert_allclose(outcome.forces, [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]])
    assert SILICON.cell is not None
    kbar = np.linalg.det(SILICON.cell) / 1602.1766208
    np.testing.assert_allclose(
        outcome.virial, kbar * np.array([[1, 0.1, 0], [0.1, 2, 0], [0, 0, 3]])
    )


def test_a_recorded_log_of_a_development_version_has_a_virial() -> None:
    frame = Frame(("Si",), np.zeros((1, 3)), SILICON.cell)
    outcome = Abacus().read_outputs(recorded("cases/abacus-stress-heading"), frame, 0)
    assert outcome.virial is not None
    assert outcome.converged
