"""The parser of labelled sets with a reader that warns."""

from __future__ import annotations

import warnings
from typing import Any

import ase.io

from dpstream.inputs.parsing import FORK, OPERATIONS

__all__ = ["FORK", "OPERATIONS"]

read = ase.io.read


def reading(*arguments: Any, **options: Any) -> Any:
    warnings.warn("structures were unconverged: [2]", UserWarning, stacklevel=2)
    return read(*arguments, **options)


ase.io.read = reading
