"""Refuses structures with partly occupied sites, which a frame cannot hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dpstream.shared.errors import SpecError

FULL = 1e-3
"""Difference from 1 up to which a site counts as occupied."""


def check_occupancy(atoms: Any) -> None:
    """Raises `SpecError` naming the first site of `ase.Atoms` that is shared by elements or partly
    vacant; ASE itself puts the main element there."""
    occupancy = atoms.info.get("occupancy")
    if not isinstance(occupancy, Mapping):
        return
    for site, shares in _partial(atoms, occupancy):
        words = ", ".join(f"{float(share):.0%} {symbol}" for symbol, share in shares.items())
        vacant = 1 - sum(map(float, shares.values()))
        words += f", {vacant:.0%} vacant" if vacant > FULL else ""
        raise SpecError(
            f"site {site} is partly occupied ({words}); give an ordered supercell instead, in "
            "which every site has one atom or none"
        )


def _partial(atoms: Any, occupancy: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    kinds = atoms.arrays.get("spacegroup_kinds")
    for kind, shares in occupancy.items():
        if len(shares) == 1 and abs(float(next(iter(shares.values()))) - 1) <= FULL:
            continue
        where = "" if kinds is None else _position(atoms, kinds, int(kind))
        yield f"{int(kind) + 1}{where}", shares


def _position(atoms: Any, kinds: Any, kind: int) -> str:
    at = next((i for i, each in enumerate(kinds) if int(each) == kind), None)
    if at is None:
        return ""
    x, y, z = atoms.get_scaled_positions()[at]
    return f" at ({x:.3g}, {y:.3g}, {z:.3g})"
