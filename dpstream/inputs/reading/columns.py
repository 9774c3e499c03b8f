"""Chooses, among the named numbers of frames that ASE has read, those of the label.

Programs name the same quantity differently: `forces`, `force`, `REF_forces`, `dft_forces`. One
known name is taken. Two are a question that the user answers: one of them may be a model's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpstream.inputs.reading.found import EnergyKind, FoundFrame, results
from dpstream.shared.atoms.frames import WEIGHTS, Floats, from_ase
from dpstream.shared.errors import SpecError

KNOWN = {
    "energy": re.compile(r"(?P<set>(?:ref|dft)_)?(?:free_)?energy", re.IGNORECASE),
    "forces": re.compile(r"(?P<set>(?:ref|dft)_)?forces?", re.IGNORECASE),
    "virial": re.compile(r"(?P<set>(?:ref|dft)_)?virials?", re.IGNORECASE),
    "stress": re.compile(r"(?P<set>(?:ref|dft)_)?stress", re.IGNORECASE),
}
"""Known names of each quantity."""
MOST_NAMES = 12
SAME_TENSOR = 0.02
"""Relative difference up to which a virial and a stress are one tensor."""


@dataclass(frozen=True)
class Columns:
    """The names of the numbers that are taken; empty: none."""

    energy: str
    forces: str
    virial: str = ""
    stress: str = ""

    def __str__(self) -> str:
        given = {name: value for name, value in vars(self).items() if value}
        return ", ".join(
            name if name == value else f"{name} {value}" for name, value in given.items()
        )

    @property
    def are_usual(self) -> bool:
        """Whether every calculator of ASE uses these names."""
        return (self.energy, self.forces) in (("energy", "forces"), ("free_energy", "forces"))


def labelled_frames(frames: Sequence[Any], columns: Columns, where: str) -> Iterator[FoundFrame]:
    """The labels of `frames` (`ase.Atoms`) in `columns`."""
    for number, atoms in enumerate(frames):
        yield _labelled(atoms, columns, f"{where}: frame {number}")


def choose(
    frames: Sequence[Any],
    named: Mapping[str, str],
    where: str,
    tell: Callable[[str], None] = lambda text: None,
) -> Columns:
    """The columns of the labels of all `frames` (`ase.Atoms`), by the names that the user gives or
    by known ones. Raises `SpecError`, with the names that there are, if several or none fit."""
    present = list(dict.fromkeys(name for atoms in frames for name in _numbers(atoms)))
    energy = _one("energy", present, named, where)
    if energy.endswith("free_energy") and "energy" not in named:
        _check_all_free(frames, energy, where)
    forces = _one("forces", present, named, where)
    if named.get("virial") or named.get("stress"):
        quantity = "virial" if "virial" in named else "stress"
        return Columns(energy, forces, **{quantity: _one(quantity, present, named, where)})
    tensors = _tensors(present, _set_of("forces", forces), where, tell)
    return Columns(energy, forces, **tensors)


def _numbers(atoms: Any) -> dict[str, Any]:
    """Everything numeric that the file gives for a frame, by its name there."""
    own = {} if atoms.calc is None else atoms.calc.results
    arrays = {name: values for name, values in atoms.arrays.items() if name not in NOT_RESULTS}
    everything = {**atoms.info, **arrays, **own}
    return {str(k): v for k, v in everything.items() if np.asarray(v).dtype.kind in "fiu"}


NOT_RESULTS = ("numbers", "positions", *WEIGHTS, "aparam")


def _one(quantity: str, present: Sequence[str], named: Mapping[str, str], where: str) -> str:
    """The name of a quantity. Raises `SpecError` if there is none, or more than one."""
    if quantity in named:
        if named[quantity] not in present:
            raise SpecError(
                f"{where}: has no {named[quantity]!r} ({quantity}); it has {_listed(present)}"
            )
        return named[quantity]
    names = [name for name in present if KNOWN[quantity].fullmatch(name)]
    names = _without_pairs(names)
    if not names:
        raise SpecError(
            f"{where}: {quantity} missing; a labelled set needs energy and forces. It has "
            f"{_listed(present)}; {_remedy(quantity, 'NAME')}"
        )
    if len(names) > 1:
        raise SpecError(
            f"{where}: {quantity} may be {' or '.join(names)}; {_remedy(quantity, names[0])}"
        )
    return names[0]


def _without_pairs(names: Sequence[str]) -> list[str]:
    """The names without an `energy` beside its own `free_energy`, of which forces are the
    derivative."""
    pairs = {re.sub("free_", "", name) for name in names if "free_energy" in name.lower()}
    return [name for name in names if name not in pairs]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(sorted(names)[:MOST_NAMES]) or "no numbers but the positions"
    return f"{shown}, …" if len(names) > MOST_NAMES else shown


def _remedy(quantity: str, name: str) -> str:
    return f"name it in the spec: {{file: …, {quantity}: {name}}}"


def _check_all_free(frames: Sequence[Any], name: str, where: str) -> None:
    """Raises `SpecError` if some frames have another energy only: the set would mix the two."""
    plain = name.replace("free_", "")
    for number, atoms in enumerate(frames):
        numbers = _numbers(atoms)
        if name not in numbers and plain in numbers:
            raise SpecError(
                f"{where}: frame {number} has {plain} but no {name}, which other frames have; "
                f"{_remedy('energy', plain)}"
            )


def _set_of(quantity: str, name: str) -> str:
    """The prefix of a name, which tells the sets of a file apart."""
    match = KNOWN[quantity].fullmatch(name)
    return "" if match is None else (match["set"] or "").lower()


def _tensors(
    present: Sequence[str], own: str, where: str, tell: Callable[[str], None]
) -> dict[str, str]:
    """The virial and the stress of the set that the forces are of, or of no other set's."""
    forces_of = {_set_of("forces", n) for n in present if KNOWN["forces"].fullmatch(n)}
    found: dict[str, str] = {}
    for quantity in ("virial", "stress"):
        names = [name for name in present if KNOWN[quantity].fullmatch(name)]
        foreign = [n for n in names if _set_of(quantity, n) in forces_of - {own}]
        names = [name for name in names if name not in foreign]
        if len(names) > 1:
            names = [n for n in names if _set_of(quantity, n) == own] or names
        if len(names) > 1:
            raise SpecError(
                f"{where}: {quantity} may be {' or '.join(names)}; {_remedy(quantity, names[0])}"
            )
        if foreign and not names:
            tell(f"{foreign[0]} is not read: it belongs to other forces")
        if names:
            found[quantity] = names[0]
    return found


def _labelled(atoms: Any, columns: Columns, where: str) -> FoundFrame:
    numbers = _numbers(atoms)
    energy, forces = numbers.get(columns.energy), numbers.get(columns.forces)
    weights = {n: np.array(atoms.arrays[n], dtype=np.float64) for n in WEIGHTS if n in atoms.arrays}
    outcome = results(
        None if energy is None or np.ndim(energy) else energy,
        forces,
        _virial(atoms, numbers, columns, where),
    )
    kind = _kind(numbers, columns.energy)
    try:
        return FoundFrame(from_ase(atoms), outcome, weights, kind)
    except ValueError as error:
        return FoundFrame(None, outcome, weights, kind, str(error))


def _kind(numbers: Mapping[str, Any], name: str) -> EnergyKind:
    """What the energy is, as far as the file tells: beside a free energy that differs, the other is
    the internal energy."""
    if "free_energy" in name.lower():
        return "free"
    free = numbers.get(re.sub("energy", "free_energy", name))
    differs = free is not None and name in numbers and not np.isclose(free, numbers[name])
    return "internal" if differs else ""


def _virial(atoms: Any, numbers: Mapping[str, Any], columns: Columns, where: str) -> Floats | None:
    """−dE/dε in eV: as given, or −stress · V from ASE's stress. Raises `SpecError` if both are
    given and have opposite signs."""
    volume = atoms.get_volume() if atoms.cell.rank == 3 else 0.0
    given = {name: numbers.get(getattr(columns, name)) for name in ("virial", "stress")}
    try:
        virial = None if given["virial"] is None else tensor(given["virial"])
        known = given["stress"] is not None and volume > 0
        stressed = -volume * tensor(given["stress"]) if known else None
    except ValueError as error:
        raise SpecError(f"{where}: {columns.virial or columns.stress}: {error}") from error
    if virial is None or stressed is None:
        return stressed if virial is None else virial
    size = max(float(np.abs(virial).max()), float(np.abs(stressed).max()))
    if np.abs(virial + stressed).max() < SAME_TENSOR * size < np.abs(virial - stressed).max():
        raise SpecError(
            f"{where}: {columns.virial} and {columns.stress} have opposite signs (a virial is "
            f"−stress · V, positive in a compressed cell); {_remedy('virial', columns.virial)}"
        )
    return virial


def tensor(values: Any) -> Floats:
    """`(3, 3)` from a tensor, nine numbers, or six in Voigt's order. Raises ValueError."""
    flat = np.array(values, dtype=np.float64).reshape(-1)
    if flat.size == 9:
        return flat.reshape(3, 3)
    if flat.size == 6:
        full: Floats = flat[[[0, 5, 4], [5, 1, 3], [4, 3, 2]]]
        return full
    raise ValueError(f"{flat.size} numbers; must be 9, or 6 in the order xx yy zz yz xz xy")
