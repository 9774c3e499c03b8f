"""Reads and builds the starting structures of a spec's systems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from dpstream.inputs.reading.ase_files import read_ase, read_dpdata
from dpstream.inputs.reading.patterns import find_files
from dpstream.inputs.reading.sets import LEFT_HANDED
from dpstream.shared.atoms.builders import shuffled, slab, supercell
from dpstream.shared.atoms.frames import Canonical, Frame, canonical, from_ase, is_left_handed
from dpstream.shared.errors import SpecError, errors_at
from dpstream.shared.spec import Spec, System
from dpstream.shared.values import stable_seed


class SystemStructures:
    """The structures of each system, by its name, with their location for error messages. Files
    are read once; structures that are `given` in canonical form are not read."""

    def __init__(
        self, spec: Spec, folder: Path, given: Mapping[str, Sequence[Frame]] = MappingProxyType({})
    ) -> None:
        self.given = given
        self._spec, self._folder = spec, folder
        self._read: dict[str, list[tuple[str, Canonical]]] = {}
        self.remarks: list[str] = []
        """On structures that were not read as usual."""

    def __call__(self, system: str) -> list[tuple[str, Canonical]]:
        if system not in self._read:
            self._read[system] = list(self._load(system))
        return self._read[system]

    def _load(self, system: str) -> Iterator[tuple[str, Canonical]]:
        if system not in self.given:
            yield from self._structures(system)
            return
        for number, frame in enumerate(self.given[system]):
            yield f"systems.{system}: frame {number}", canonical(frame)

    def _structures(self, name: str) -> Iterator[tuple[str, Canonical]]:
        system, key, turned = self._spec.systems[name], f"systems.{name}.structures", []
        number_of = count()
        paths = [p for pattern in system.structures for p in find_files(pattern, self._folder, key)]
        for path in dict.fromkeys(paths):
            for number, atoms in enumerate(self._frames_of(path, system, key)):
                where = f"{path}: frame {number}" if number else str(path)
                with errors_at(f"{key}: {where}", ValueError):
                    frame = from_ase(atoms, system.periodic)
                    built = _built_from(canonical(frame), system)
                turned += [where] if is_left_handed(frame) else []
                for each in built:
                    each = _shuffled(each, self._spec, name, next(number_of))
                    yield f"{key}: {where}", replace(each, frame=_with_parameters(each, system))
        if turned:
            self.remarks.append(f"{key}: {len(turned)} with {LEFT_HANDED}: {turned[0]}")

    def _frames_of(self, path: Path, system: System, key: str) -> list[Any]:
        def tell(text: str) -> None:
            self.remarks.append(f"{key}: {path}: {text}")

        with errors_at(key, SpecError):
            if system.format is None:
                return read_ase(path)
            return read_dpdata(path, system.format, self._spec.type_map, tell)


def _shuffled(structure: Canonical, spec: Spec, system: str, number: int) -> Canonical:
    """The structure with its atoms shuffled, if its system asks for it; `number`: its place among
    the structures of the system."""
    if not spec.systems[system].shuffle:
        return structure
    rng = np.random.default_rng(stable_seed(spec.seed, "shuffle", system, number))
    return canonical(shuffled(structure.frame, rng))


def _with_parameters(structure: Canonical, system: System) -> Frame:
    """The frame of a structure with the fparam and aparam of its system."""
    own = {"fparam": np.array(system.fparam, dtype=np.float64)} if system.fparam else {}
    if system.aparam:
        own["aparam"] = np.tile(np.array(system.aparam), (len(structure.frame.species), 1))
    return structure.frame.with_parameters(own)


def _built_from(structure: Canonical, system: System) -> list[Canonical]:
    """Apply a system's `slabs` and `supercell` to one of its structures."""
    cuts, repeat = system.slabs, system.supercell
    if cuts is None and repeat is None:
        return [structure]
    built = [structure.frame]
    if cuts is not None:
        built = [
            slab(structure.frame, miller, vacuum, layers=cuts.layers, thickness=cuts.thickness)
            for miller in cuts.miller
            for vacuum in cuts.vacuum
        ]
    return [canonical(f if repeat is None else supercell(f, repeat)) for f in built]
