"""Density-functional and Hartree-Fock labels of molecules through PySCF.

Q. Sun et al., J. Chem. Phys. 153, 024109 (2020). Its periodic forces and stress are
incomplete, so only molecules are supported.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from dpstream.services.labeler.codes.base import CodeDefaults, CodeSettings, installed_version


class PyscfSettings(CodeSettings):
    xc: str = Field(default="pbe", min_length=1, description="functional as PySCF names it, or hf")
    basis: str = Field(default="def2-svp", min_length=1, description="basis set")
    ecp: str | None = Field(
        default=None,
        description="effective core potential of all elements; default: that of the basis set for "
        "elements beyond Kr with a def2 basis, else none",
    )
    conv_tol: float = Field(default=1e-9, gt=0, description="SCF convergence, hartree")
    max_cycle: int = Field(default=50, ge=1, description="maximum SCF iterations")
    grid_level: int = Field(default=3, ge=0, le=9, description="integration grid")
    density_fit: bool = Field(default=False, description="density fitting of Coulomb integrals")


class Pyscf(CodeDefaults):
    """PySCF in the child process; unrestricted if the multiplicity is above one."""

    name = "pyscf"
    molecular = True
    periodic = False
    electronic = True
    inputs = frozenset({"charge", "multiplicity"})
    settings: type[CodeSettings] = PyscfSettings

    def version(self, settings: dict[str, Any]) -> str:
        return installed_version("pyscf")

    def method(self, settings: dict[str, Any]) -> str:
        return f"{settings['xc']}/{settings['basis']}"
