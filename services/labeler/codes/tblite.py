"""GFN1-xTB and GFN2-xTB through tblite: molecules and periodic cells, semi-empirical.

C. Bannwarth, S. Ehlert, S. Grimme, J. Chem. Theory Comput. 15, 1652 (2019).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dpstream.services.labeler.codes.base import (
    CodeDefaults,
    CodeSettings,
    cell_widths,
    installed_version,
)
from dpstream.shared.atoms.frames import Frame

GAMMA_WIDTH = 8.0
"""Å; tblite samples only the Gamma point, which is inaccurate for narrower cells (Si2, Si8 and Si64
have −41.7, −46.0 and −46.4 eV per atom)."""

# fmt: off
NON_METALS = frozenset({
    "H", "He", "B", "C", "N", "O", "F", "Ne", "Si", "P", "S", "Cl", "Ar", "Ge", "As", "Se", "Br",
    "Kr", "Te", "I", "Xe", "At", "Rn",
})
# fmt: on


class TbliteSettings(CodeSettings):
    method: Literal["GFN2-xTB", "GFN1-xTB"] = Field(
        default="GFN2-xTB", description="parametrisation"
    )
    accuracy: float = Field(
        default=0.1, gt=0, description="factor on all thresholds; smaller is tighter"
    )
    max_iterations: int = Field(default=250, ge=1, description="maximum SCF iterations")
    electronic_temperature: float = Field(default=300.0, gt=0, description="K, Fermi smearing")


class Tblite(CodeDefaults):
    """tblite in the child process."""

    name = "tblite"
    molecular = True
    periodic = True
    electronic = True
    inputs = frozenset({"charge", "multiplicity"})
    max_z = 86
    settings: type[CodeSettings] = TbliteSettings

    def version(self, settings: dict[str, Any]) -> str:
        return installed_version("tblite")

    def method(self, settings: dict[str, Any]) -> str:
        return str(settings["method"])

    def semi_empirical(self, settings: dict[str, Any]) -> bool:
        return True

    def at_electron_temperature(self, settings: dict[str, Any], kelvin: float) -> dict[str, Any]:
        return {**settings, "electronic_temperature": kelvin}

    def refusal(self, frame: Frame, settings: dict[str, Any]) -> str | None:
        """Refuses metals in narrow cells, for which Gamma-point energies are meaningless."""
        if _is_narrow(frame) and not NON_METALS.intersection(frame.species):
            return (
                f"a metal in a cell narrower than {GAMMA_WIDTH:g} Å at the Gamma point; use a "
                "supercell, or set labels.force"
            )
        return None

    def warnings(self, frame: Frame) -> list[str]:
        narrow = f"Gamma point only, in a cell narrower than {GAMMA_WIDTH:g} Å"
        return [narrow] if _is_narrow(frame) else []


def _is_narrow(frame: Frame) -> bool:
    return frame.cell is not None and float(cell_widths(frame.cell).min()) < GAMMA_WIDTH
