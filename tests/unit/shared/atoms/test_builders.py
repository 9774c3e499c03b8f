"""Structures made from structures."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk, molecule

from dpstream.shared.atoms.builders import perturbed, scaled, slab, supercell
from dpstream.shared.atoms.frames import Frame, canonical, from_ase, min_distance

RNG = np.random.default_rng(5)
COPPER = canonical(from_ase(bulk("Cu", cubic=True))).frame
METHANE = canonical(from_ase(molecule("CH4"))).frame


def test_displacements_fill_the_ball_uniformly() -> None:
    frame = Frame(("H",) * 4000, RNG.uniform(0, 1e3, (4000, 3)))
    moved = perturbed(frame, 0.2, 0.0, np.random.default_rng(1))
    radii = np.linalg.norm(moved.positions - frame.positions, axis=1)
    assert radii.max() <= 0.2 + 1e-5
    # Uniform in a ball: P(r < R/2) = 1/8; uniform in radius it would be 1/2.
    assert np.mean(radii < 0.1) == pytest.approx(0.125, abs=0.02)


def test_strain_is_symmetric_and_carries_the_atoms() -> None:
    frame = canonical(from_ase(bulk("Cu", cubic=True).repeat(2))).frame
    copy = perturbed(frame, 1e-9, 0.1, np.random.default_rng(2))
    assert frame.cell is not None
    assert copy.cell is not None
    assert np.all(np.triu(copy.cell, 1) == 0)
    ratio = np.linalg.inv(frame.cell) @ copy.cell
    # The metric survives the rotation back to lower-triangular form: C = (1 + ε)².
    metric = ratio @ ratio.T
    values = np.sqrt(np.linalg.eigvalsh(metric)) - 1
    assert 0.01 < np.abs(values).max() <= 0.3
    before = np.linalg.solve(frame.cell.T, frame.positions.T).T
    after = np.linalg.solve(copy.cell.T, copy.positions.T).T
    assert np.allclose((after - before + 0.5) % 1, 0.5, atol=1e-5)


def test_scaling_multiplies_every_length() -> None:
    assert COPPER.cell is not None
    wide = scaled(COPPER, 1.05)
    assert wide.cell == pytest.approx(1.05 * COPPER.cell, abs=1e-6)
    assert min_distance(wide) == pytest.approx(1.05 * min_distance(COPPER), abs=1e-5)
    assert min_distance(scaled(METHANE, 0.9)) == pytest.approx(
        0.9 * min_distance(METHANE), abs=1e-5
    )


def test_a_supercell_repeats() -> None:
    big = supercell(COPPER, (2, 1, 3))
    assert big.cell == pytest.approx(np.diag([2, 1, 3]) * 3.61)
    assert len(big.species) == 24
    with pytest.raises(ValueError, match="no cell"):
        supercell(METHANE, (2, 1, 1))


@pytest.mark.parametrize(
    ("miller", "spacing"), [((1, 0, 0), 1 / 2), ((1, 1, 0), 8**-0.5), ((1, 1, 1), 3**-0.5)]
)
def test_a_slab_has_the_planes_of_its_surface(miller: tuple[int, int, int], spacing: float) -> None:
    """Planes of fcc copper are `spacing` cubic cells apart, and vacuum is what was asked for."""
    frame = slab(COPPER, miller, 12.0, thickness=8.0)
    heights = np.unique(frame.positions[:, 2].round(4))
    assert np.diff(heights) == pytest.approx(3.61 * spacing, abs=1e-3)
    assert frame.cell is not None
    assert frame.cell[2, 2] - np.ptp(heights) == pytest.approx(12.0, abs=1e-4)
    assert np.ptp(heights) + 3.61 * spacing >= 8.0
    assert frame.cell[2, :2] == pytest.approx(0)


def test_slabs_by_layers_and_their_misuse() -> None:
    one, three = (len(slab(COPPER, (1, 1, 1), 10.0, layers=n).species) for n in (1, 3))
    assert three == 3 * one
    with pytest.raises(ValueError, match="either layers or thickness"):
        slab(COPPER, (1, 1, 1), 10.0)
    with pytest.raises(ValueError, match="no cell"):
        slab(METHANE, (1, 1, 1), 10.0, layers=1)
