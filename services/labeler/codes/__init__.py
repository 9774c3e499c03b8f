"""Labeling codes by name."""

from __future__ import annotations

from services.labeler.codes.abacus import Abacus
from services.labeler.codes.ase import Ase
from services.labeler.codes.base import Code
from services.labeler.codes.cp2k import Cp2k
from services.labeler.codes.custom import Custom
from services.labeler.codes.dataset import GivenLabels
from services.labeler.codes.deepmd import Deepmd
from services.labeler.codes.gaussian import Gaussian
from services.labeler.codes.pwmat import Pwmat
from services.labeler.codes.pyscf import Pyscf
from services.labeler.codes.qe import Qe
from services.labeler.codes.siesta import Siesta
from services.labeler.codes.tblite import Tblite
from services.labeler.codes.vasp import Vasp

_ALL: tuple[Code, ...] = (
    Tblite(),
    Pyscf(),
    Ase(),
    Cp2k(),
    Qe(),
    Vasp(),
    Gaussian(),
    Abacus(),
    Siesta(),
    Pwmat(),
    Custom(),
    Deepmd(),
    GivenLabels(),
)
CODES: dict[str, Code] = {code.name: code for code in _ALL}
