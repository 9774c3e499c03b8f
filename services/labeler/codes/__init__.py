"""Labeling codes by name."""

from __future__ import annotations

from services.labeler.codes.ase import Ase
from services.labeler.codes.base import Code
from services.labeler.codes.cp2k import Cp2k
from services.labeler.codes.pyscf import Pyscf
from services.labeler.codes.qe import Qe
from services.labeler.codes.tblite import Tblite

CODES: dict[str, Code] = {code.name: code for code in (Tblite(), Pyscf(), Ase(), Cp2k(), Qe())}
