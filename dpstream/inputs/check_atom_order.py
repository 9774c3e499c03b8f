"""Inputs for a bias that count atoms in an order which is not ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from dpstream.shared.atoms.frames import Canonical
from dpstream.shared.spec import Spec
from dpstream.shared.spec.engines import Colvars, EngineSettings, Plumed, Template

COUNTS = re.compile(r"\b(?:atom|group)\w*\s*=?\s*\{?\s*\d", re.IGNORECASE)
"""Atoms by number, `ATOMS=5,1,2,8` or `atomNumbers { 1 2 }`; names begin with an @."""
Structures = Callable[[str], Iterable[tuple[str, Canonical]]]


def misnumbered(spec: Spec, structures: Structures) -> Iterator[str]:
    """A warning for each system of a stage whose input gives atoms by number, where the file's
    order is not that of the numbers. `structures` has those of a system by its name."""
    for number, stage in enumerate(spec.stages):
        key = _counting(stage.engine)
        for system in stage.systems if key else ():
            place = next((where for where, each in structures(system) if _moved(each)), None)
            if place is not None:
                yield (
                    f"stages.{number}.engine.{key}: {place}: atoms are numbered as sorted by "
                    "element, which is not the file's order; write @H2 for its second hydrogen"
                )


def _counting(engine: EngineSettings) -> str | None:
    """The key of an input that gives atoms by number."""
    inputs: dict[str, str | None] = {}
    if isinstance(engine, Template):
        inputs["plumed"] = engine.plumed
    elif isinstance(engine, Plumed | Colvars):
        inputs["input"] = engine.input
    return next((key for key, text in inputs.items() if text and COUNTS.search(text)), None)


def _moved(structure: Canonical) -> bool:
    return bool(np.any(np.diff(structure.order) < 0))
