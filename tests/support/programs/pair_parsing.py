"""The parser of a labeler that knows `PairProgram`, too."""

from __future__ import annotations

from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.codes.outputs import FORK, OPERATIONS
from tests.support.programs.pair_program import PairProgram

__all__ = ["FORK", "OPERATIONS"]

CODES["pair"] = PairProgram()
