"""Labeling codes by name."""

from __future__ import annotations

from dpstream.services.labeler.codes.abacus import Abacus
from dpstream.services.labeler.codes.ase import Ase
from dpstream.services.labeler.codes.base import Code
from dpstream.services.labeler.codes.cp2k.cp2k import Cp2k
from dpstream.services.labeler.codes.custom import Custom
from dpstream.services.labeler.codes.dataset import GivenLabels
from dpstream.services.labeler.codes.deepmd import Deepmd
from dpstream.services.labeler.codes.gaussian import Gaussian
from dpstream.services.labeler.codes.pwmat import Pwmat
from dpstream.services.labeler.codes.pyscf import Pyscf
from dpstream.services.labeler.codes.qe.qe import Qe
from dpstream.services.labeler.codes.siesta import Siesta
from dpstream.services.labeler.codes.tblite import Tblite
from dpstream.services.labeler.codes.vasp import Vasp

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
