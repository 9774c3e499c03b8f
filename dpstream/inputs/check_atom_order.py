"""Warns of bias inputs whose atom numbers do not match dpstream's order of atoms.

Frames are sorted by element, so an atom number in a PLUMED or Colvars input may mean another atom
than in the user's file. Names such as `@H2` are safe.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from dpstream.shared.atoms.frames import Canonical
from dpstream.shared.spec import Spec
from dpstream.shared.spec.engines import Colvars, EngineSettings, Plumed, Template

COUNTS = re.compile(r"\b(?:atom|group)\w*\s*=?\s*\{?\s*\d", re.IGNORECASE)
"""Matches atoms given by number, `ATOMS=5,1,2,8` or `atomNumbers { 1 2 }`, not `@H2`."""
Structures = Callable[[str], Iterable[tuple[str, Canonical]]]


def misnumbered(spec: Spec, structures: Structures) -> Iterator[str]:
    """Yield a warning for each system of a stage whose input gives atoms by number although the
    file's order differs. `structures` returns those of a system by name."""
    for number, stage in enumerate(spec.stages):
        key = _counting(stage.engine)
        for system in stage.systems if key else ():
            place = next((where for where, each in structures(system) if _moved(each)), None)
            if place is not None:
                yield (
                    f"stages.{number}.engine.{key}: {place}: atom numbers refer to atoms sorted by "
                    "element, not to the order of the file; write @H2 for its second hydrogen"
                )


def _counting(engine: EngineSettings) -> str | None:
    """The key of an input that gives atoms by number, or None."""
    inputs: dict[str, str | None] = {}
    if isinstance(engine, Template):
        inputs["plumed"] = engine.plumed
    elif isinstance(engine, Plumed | Colvars):
        inputs["input"] = engine.input
    return next((key for key, text in inputs.items() if text and COUNTS.search(text)), None)


def _moved(structure: Canonical) -> bool:
    return bool(np.any(np.diff(structure.order) < 0))
