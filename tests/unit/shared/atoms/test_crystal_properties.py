"""Properties from single points of fixed structures, against what the potential is known for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from dpstream.shared.atoms.builders import perturbed
from dpstream.shared.atoms.frames import Floats, Frame, canonical, from_ase, to_ase
from dpstream.shared.atoms.properties import (
    PROPERTIES,
    StructurePoint,
    deformations,
    fit_birch_murnaghan,
    fit_stiffness,
)


def framed(atoms: Any) -> Frame:
    return canonical(from_ase(atoms)).frame


COPPER = framed(bulk("Cu", a=3.59, cubic=True))


def emt(frame: Frame) -> StructurePoint:
    atoms = to_ase(frame)
    atoms.calc = EMT()
    virial = -atoms.get_stress(voigt=False) * atoms.get_volume()
    return StructurePoint(frame, atoms.get_potential_energy(), virial)


def found(name: str, crystal: Frame) -> dict[str, float]:
    kind = PROPERTIES[name]
    quantities = kind.values([emt(frame) for frame in kind.points(crystal)])
    return {quantity.name: quantity.number for quantity in quantities}


def test_copper_by_energies_and_by_stresses() -> None:
    volume = found("volume", COPPER)["equilibrium volume"]
    bulk_modulus = found("bulk-modulus", COPPER)["bulk modulus"]
    constants = found("elastic", COPPER)
    assert volume == pytest.approx(3.59**3 / 4, rel=0.01)
    c11, c12 = (constants[f"elastic constant {name}"] for name in ("C11", "C12"))
    assert (c11 + 2 * c12) / 3 == pytest.approx(bulk_modulus, rel=0.03)
    assert constants["elastic constant C44"] == pytest.approx(90, abs=4)
    (vacancy,) = found("vacancy", COPPER).values()
    assert 1.0 < vacancy < 2.5, "unrelaxed in a small cell, above the relaxed 1.3 eV"


def test_a_vacancy_of_each_element() -> None:
    alloy = bulk("Cu", a=3.7, cubic=True)
    alloy.symbols[0] = "Au"
    assert list(found("vacancy", framed(alloy))) == ["vacancy energy of Au", "vacancy energy of Cu"]
    assert [p.formula for p in PROPERTIES["vacancy"].points(framed(alloy))] == [
        "Au1Cu3",
        "Cu3",
        "Au1Cu2",
    ]


def voigt_tensor(constants: Floats, strain: Floats) -> Floats:
    """Stress `(3, 3)` in eV/Å³ of a linear solid with constants in eV/Å³."""
    places = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
    engineering = np.array([strain[p] * (1 if p[0] == p[1] else 2) for p in places])
    stress = np.zeros((3, 3))
    for place, value in zip(places, constants @ engineering, strict=True):
        stress[place] = stress[place[::-1]] = value
    return stress


def test_turned_cells_and_a_residual_stress_leave_the_constants_as_they_are() -> None:
    """Of a triclinic linear solid, whose constants are known; each cell turned as a canonical frame
    is. A fit that forgot to turn the stress back would be far off."""
    rng = np.random.default_rng(3)
    half = rng.uniform(-0.3, 0.3, (6, 6))
    known = np.eye(6) + half + half.T
    rest = perturbed(COPPER, 0.0, 0.1, rng)
    residual = 0.05 * (half[:3, :3] + half[:3, :3].T)
    cells, stresses = [], []
    for deformation in deformations():
        stress = residual + voigt_tensor(known, deformation - np.eye(3))
        form = canonical(
            Frame(rest.species, rest.positions @ deformation, rest.cell @ deformation)  # type: ignore[operator]
        )
        cells.append(form.frame.cell)
        stresses.append(form.rotation.T @ stress @ form.rotation)
    constants = fit_stiffness(cells, stresses)  # type: ignore[arg-type]
    assert constants / 160.2177 == pytest.approx(known, abs=2e-3)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_what_cannot_be_had() -> None:
    volumes = np.linspace(10.0, 12.0, 7)
    with pytest.raises(ValueError, match="no minimum between 10 and 12 Å³"):
        fit_birch_murnaghan(volumes, (volumes - 14.0) ** 2)
    for name in PROPERTIES:
        with pytest.raises(ValueError, match="N2 has no cell"):
            PROPERTIES[name].points(framed(molecule("N2")))
    with pytest.raises(ValueError, match="too small for a vacancy"):
        PROPERTIES["vacancy"].points(framed(bulk("Cu")))
    blind = [
        StructurePoint(p.frame, p.energy) for p in map(emt, PROPERTIES["elastic"].points(COPPER))
    ]
    with pytest.raises(ValueError, match="the stress is unknown"):
        PROPERTIES["elastic"].values(blind)
