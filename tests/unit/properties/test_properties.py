"""Properties of Cu by EMT, against each other and against what is known of that potential."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.units import GPa

from dpstream.properties import crystal, defects
from dpstream.properties.basis import (
    PropertyResult,
    PropertySettings,
    PropertyValue,
    like,
    relaxed,
    supercell,
)
from dpstream.properties.comparison import PropertyComparison, compare, table, write
from dpstream.shared.errors import Permanent

HOW = PropertySettings(fmax=0.03, size=5.0, vacuum=8.0)


@pytest.fixture(scope="module")
def copper() -> Any:
    return relaxed(like(bulk("Cu", cubic=True), EMT()), HOW, cell=True)


def numbers(found: PropertyResult) -> dict[str, float]:
    return {value.name: value.number for value in found.values}


def test_relaxation_leaves_neither_force_nor_stress(copper: Any) -> None:
    assert np.abs(copper.get_forces()).max() < HOW.fmax
    assert np.abs(copper.get_stress()).max() / GPa < 0.2
    assert numbers(crystal.relaxation(copper, HOW))["a"] == pytest.approx(3.59, abs=0.01)


def test_bulk_modulus_of_three_kinds_agree(copper: Any) -> None:
    """From energies, and from stresses: C11 and C12, and the Hill average."""
    curve = numbers(crystal.equation_of_state(copper, HOW))
    constants = numbers(crystal.elastic(copper, HOW))
    from_stress = (constants["C11"] + 2 * constants["C12"]) / 3
    assert constants["bulk modulus"] == pytest.approx(from_stress, rel=1e-3)
    assert curve["B"] == pytest.approx(from_stress, rel=0.02)
    assert curve["V₀"] == pytest.approx(copper.get_volume() / 4, rel=2e-3)


def test_a_cubic_crystal_has_three_elastic_constants(copper: Any) -> None:
    found = crystal.stiffness(copper, HOW)
    expected = np.zeros((6, 6))
    expected[:3, :3] = found[0, 1]
    expected[range(3), range(3)] = found[0, 0]
    expected[range(3, 6), range(3, 6)] = found[3, 3]
    assert np.abs(found - expected).max() < 0.5
    assert found[3, 3] == pytest.approx(90, abs=4)


def test_a_vacancy_costs_energy_and_every_different_site_is_tried(copper: Any) -> None:
    (found,) = defects.vacancy(copper, HOW).values
    assert (found.name, found.unit) == ("Cu 1", "eV")
    assert 1.0 < found.number < 1.6
    alloy = like(copper, EMT())
    alloy.symbols[0] = "Au"
    assert [value.name for value in defects.vacancy(alloy, HOW).values] == ["Au 1", "Cu 2"]


def test_the_holes_of_fcc_are_octahedral_and_tetrahedral(copper: Any) -> None:
    a = copper.cell[0, 0]
    radii = [
        np.linalg.norm(copper.repeat(3).positions - a - place, axis=1).min()
        for place in defects.holes(copper)
    ]
    assert radii == pytest.approx([a / 2, a * np.sqrt(3) / 4], abs=1e-3)


def test_an_interstitial_costs_more_where_the_hole_is_smaller(copper: Any) -> None:
    found = numbers(defects.interstitial(copper, HOW))
    assert 0 < found["Cu in hole 1"] < found["Cu in hole 2"]


def test_close_packed_surfaces_are_cheapest(copper: Any) -> None:
    found = numbers(defects.surfaces(copper, HOW))
    assert 0 < found["(111)"] < found["(100)"] < found["(110)"]


def test_the_gamma_line_has_a_stacking_fault_and_ends_where_it_begins(copper: Any) -> None:
    curve = defects.gamma_line(copper, HOW).curve
    assert curve is not None
    energies = [y for _, y in curve.points]
    assert energies[-1] == pytest.approx(0, abs=1e-6)
    assert energies[2] < 0.1 * max(energies)  # the intrinsic fault, a sixth of [11-2]
    assert energies.index(max(energies)) == 4  # atoms on top of one another


def test_a_slab_of_one_layer_has_no_gamma_line(copper: Any) -> None:
    with pytest.raises(Permanent, match="single layer; increase --size"):
        list(defects._shifted(like(copper[:1], EMT()), (1, 0), np.array([0.0])))


def test_phonons_of_a_stable_crystal_are_real(copper: Any) -> None:
    pytest.importorskip("phonopy")
    found = numbers(crystal.phonons(copper, HOW))
    assert found["lowest frequency"] > -0.05
    assert 6 < found["highest frequency"] < 10


def test_supercells_are_wide_enough() -> None:
    wide = supercell(like(bulk("Cu"), EMT()), 6.0)
    volume, areas = wide.get_volume(), np.cross(wide.cell[[1, 2, 0]], wide.cell[[2, 0, 1]])
    assert (volume / np.linalg.norm(areas, axis=1) >= 6.0).all()


def test_sides_are_compared_and_failures_are_told(tmp_path: Path) -> None:
    """A molecule has no equation of state; a relaxation that may take no step fails."""
    sides = {"model": EMT(), "recipe": EMT()}
    told: list[str] = []
    found = compare("N2", molecule("N2"), ["relaxation", "eos"], sides, HOW, told.append)
    assert list(found.answers) == ["relaxation"]
    assert found.complete
    assert told == [f"N2: relaxation by {s}" for s in ("model", "model", "recipe", "recipe")]
    far = compare(
        "H2",
        molecule("H2"),
        ["relaxation"],
        sides,
        PropertySettings(fmax=0.01, steps=0),
        told.append,
    )
    assert not far.complete
    assert "not relaxed to 0.01 eV/Å within 0 steps" in str(far.answers["relaxation"]["model"])
    files = write([found, far], tmp_path, {"model": "x"})
    assert [path.name for path in files] == ["properties.json"]
    assert '"failed": "H2: not relaxed' in files[0].read_text()


def test_the_difference_is_the_models_from_the_recipes() -> None:
    answers = {
        "model": PropertyResult(
            (PropertyValue("B", "GPa", 110.0), PropertyValue("only here", "eV", 1.0))
        ),
        "recipe": PropertyResult((PropertyValue("B", "GPa", 100.0),)),
    }
    shown = table(PropertyComparison("Cu", {"eos": answers}), ["model", "recipe"])
    columns = [list(column.cells) for column in shown.columns]
    assert columns[3:] == [["110", "1"], ["100", "–"], ["+10", "–"], ["10.0", "–"]]
