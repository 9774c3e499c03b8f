"""Melting points and bulk moduli of elemental crystals, which set temperatures and pressures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpstream.shared.errors import SpecError

CRYSTALS: Mapping[str, tuple[float, float]] = {
    "Li": (454, 11), "Be": (1560, 130), "Na": (371, 6.3), "Mg": (923, 45), "Al": (933, 76),
    "Si": (1687, 98), "K": (337, 3.1), "Ca": (1115, 17), "Sc": (1814, 57), "Ti": (1941, 110),
    "V": (2183, 160), "Cr": (2180, 160), "Fe": (1811, 170), "Co": (1768, 180), "Ni": (1728, 180),
    "Cu": (1358, 140), "Zn": (693, 70), "Ge": (1211, 75), "Rb": (312, 2.5), "Sr": (1050, 12),
    "Y": (1799, 41), "Zr": (2128, 91), "Nb": (2750, 170), "Mo": (2896, 230), "Ru": (2607, 220),
    "Rh": (2237, 380), "Pd": (1828, 180), "Ag": (1235, 100), "Cd": (594, 42), "Cs": (302, 1.6),
    "Ba": (1000, 9.6), "Hf": (2506, 110), "Ta": (3290, 200), "W": (3695, 310), "Re": (3459, 370),
    "Ir": (2719, 320), "Pt": (2041, 230), "Au": (1337, 220), "Pb": (601, 46),
}  # fmt: skip
"""Melting point, K, and bulk modulus, GPa, at 1 bar; rounded values of handbooks."""


def crystal(element: str) -> Any:
    """The conventional cell of an element's crystal, as `ase.Atoms`. Raises SpecError if ASE has
    none."""
    from ase.build import bulk  # deferred: slow to import

    try:
        return bulk(element, cubic=True)
    except (ValueError, RuntimeError, KeyError):
        pass
    try:
        return bulk(element)  # hexagonal ones
    except (ValueError, RuntimeError, KeyError) as error:
        raise SpecError(
            f"--elements {element}: no crystal of it is known; give one with --structure"
        ) from error
