"""Random crystals, their relaxation and their offspring."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import spglib
from ase.build import bulk

from dpstream.services.explorer.engines.breeding import check_installed, offspring
from dpstream.services.explorer.engines.random_crystals import random_crystal
from dpstream.services.explorer.lammps.relaxation import relaxed
from dpstream.services.explorer.selection.geometry import limits_for, refusal
from dpstream.shared.atoms.frames import (
    Batch,
    Floats,
    Frame,
    canonical,
    frame_key,
    from_ase,
    to_ase,
)

SPECIES = ("Au", "Au", "Cu", "Cu")
LIMITS = limits_for(SPECIES, {}, 1.0)


def space_group(frame: Frame) -> int:
    assert frame.cell is not None
    numbers = [SPECIES.index(symbol) for symbol in frame.species]
    scaled = np.linalg.solve(frame.cell.T, frame.positions.T).T
    return int(spglib.get_symmetry_dataset((frame.cell, scaled, numbers), symprec=1e-3).number)


def test_random_crystals_are_symmetric_sound_and_repeatable() -> None:
    found = [random_crystal(SPECIES, 60.0, LIMITS, np.random.default_rng(n)) for n in range(6)]
    assert all(frame.species == SPECIES and refusal(frame, LIMITS) is None for frame in found)
    volumes = [np.linalg.det(frame.cell) for frame in found if frame.cell is not None]
    assert volumes == pytest.approx([60.0] * 6, rel=1e-4)
    groups = list(map(space_group, found))
    assert min(groups) > 1
    assert len(set(groups)) > 2
    again = random_crystal(SPECIES, 60.0, LIMITS, np.random.default_rng(3))
    assert frame_key(again) == frame_key(found[3])


def test_there_may_be_no_room() -> None:
    with pytest.raises(ValueError, match="no random structure of 4 atoms in 5"):
        random_crystal(SPECIES, 5.0, LIMITS, np.random.default_rng(1), tries=20)


BEST, STIFF = 12.0, 0.05
"""Å³ and eV/Å⁶ of the toy below."""


def two_springs(batch: Batch) -> tuple[Floats, Floats, Floats]:
    """A committee of two that want other volumes, `BEST` in the mean, and know no forces."""
    volume = np.linalg.det(to_ase(batch[0]).cell[:])
    strain = volume - np.array([BEST - 1, BEST + 1])
    virials = -STIFF * strain[:, None, None, None] * volume * np.eye(3)
    return STIFF * strain[:, None] ** 2 / 2, np.zeros((2, 1, len(batch.species), 3)), virials


@pytest.mark.slow
def test_relaxation_follows_the_mean_of_the_committee_against_a_pressure() -> None:
    frame = canonical(from_ase(bulk("Cu", a=3.8))).frame
    for pressure in (0.0, 1e5):
        found = relaxed(frame, two_springs, 100, 0.001, pressure, 0.4)
        assert found.frame.cell is not None
        bar = 6.2415e-7  # eV/Å³
        volume = BEST - pressure * bar / STIFF
        assert np.linalg.det(found.frame.cell) == pytest.approx(volume, abs=0.02)
        assert found.enthalpy == pytest.approx(
            STIFF * ((volume - BEST) ** 2 + 1) / 2 + pressure * bar * volume, abs=1e-3
        )
        assert found.virials.shape == (2, 3, 3)
        assert np.ptp(found.virials[:, 0, 0]) > 0.1


def test_what_falls_apart_is_kept_as_it_last_was() -> None:
    frame = canonical(from_ase(bulk("Cu", a=3.6))).frame
    found = relaxed(frame, two_springs, 9, 0.0, 0.0, overlap=9.0)
    assert frame_key(canonical(found.frame).frame) == frame_key(frame)


@pytest.mark.skipif(find_spec("ase_ga") is None, reason="ase-ga is not installed")
def test_children_keep_composition_and_distances() -> None:
    parents = [random_crystal(SPECIES, 60.0, LIMITS, np.random.default_rng(n)) for n in (1, 2)]
    children = [offspring(parents, LIMITS, seed) for seed in range(5)]
    born = [child for child in children if child is not None]
    assert born
    assert all(child.species == SPECIES for child in born)
    assert {frame_key(child) for child in born}.isdisjoint(map(frame_key, parents))


@pytest.mark.skipif(find_spec("ase_ga") is not None, reason="ase-ga is installed")
def test_breeding_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="pip install ase-ga"):
        check_installed()
