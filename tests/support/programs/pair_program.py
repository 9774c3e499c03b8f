"""A labeling program for the tests of the labeler: ASE's EMT in a script."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dpstream.services.labeler.acceptance import Outcome
from dpstream.services.labeler.codes.ase import Ase
from dpstream.services.labeler.codes.base import CodeSettings
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.values import Recipe


class PairProgram(Ase):
    """A labeling program: ASE's EMT in a script that reads and writes files."""

    name = "pair"
    settings = type("NoSettings", (CodeSettings,), {})

    def is_here(self) -> bool:
        return True

    def version(self, settings: dict[str, Any]) -> str:
        return "1"

    def method(self, settings: dict[str, Any]) -> str:
        return "EMT"

    def semi_empirical(self, settings: dict[str, Any]) -> bool:
        return True

    def write_inputs(self, frame: Frame, recipe: Recipe, folder: Path) -> None:
        assert frame.cell is not None
        document = {
            "symbols": frame.species,
            "positions": frame.positions.tolist(),
            "cell": frame.cell.tolist(),
        }
        (folder / "input.json").write_text(json.dumps(document))

    def command(self, recipe: Recipe, cores: int) -> list[str]:
        return [sys.executable, "-c", SCRIPT]

    def read_outputs(self, folder: Path, frame: Frame, exit_status: int) -> Outcome:
        text = (folder / "stdout").read_text()
        if "DONE" not in text:
            return Outcome(exit_status=exit_status, end_marker=False, energies=(), frames=0)
        facts = json.loads(text.splitlines()[0])
        return Outcome(
            exit_status=exit_status,
            energies=(facts["energy"],),
            forces=np.array(facts["forces"]),
            virial=np.array(facts["virial"]),
        )


SCRIPT = """
import json, os, sys, time
from ase import Atoms
from ase.calculators.emt import EMT
assert 'SECRET' not in os.environ
atoms = Atoms(**json.load(open('input.json')), pbc=True, calculator=EMT())
if len(atoms) == 1: time.sleep(60)
if len(atoms) == 2: sys.exit(3)
if len(atoms) == 3:
    os.truncate('stdout', 1 << 40)
    sys.exit()
virial = -atoms.get_stress(voigt=False) * atoms.get_volume()
print(json.dumps({'energy': atoms.get_potential_energy(), 'forces': atoms.get_forces().tolist(),
                  'virial': virial.tolist()}))
print('DONE')
"""
