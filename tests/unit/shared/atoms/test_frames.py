"""Frames: canonical form, content identity, encodings."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from hypothesis import given
from hypothesis import strategies as st

from dpstream.shared.atoms.frames import (
    GRID,
    Batch,
    Floats,
    Frame,
    FrameLabel,
    canonical,
    decode_labelled,
    encode_labelled,
    frame_key,
    from_ase,
    min_distance,
    to_ase,
)
from tests.support.soak import examples

SPECIES = ("C", "H", "O", "Al")


def rotation_of(seed: int) -> Floats:
    """A proper rotation, uniformly drawn."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    proper: Floats = q * np.sign(np.linalg.det(q))
    return proper


@st.composite
def frames(draw: st.DrawFn, periodic: bool | None = None) -> Frame:
    """Frames with a right-handed cell of any orientation, or none; atoms in or out of it."""
    count = draw(st.integers(1, 6))
    species = tuple(draw(st.lists(st.sampled_from(SPECIES), min_size=count, max_size=count)))
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    positions = chance.uniform(-20, 20, (count, 3))
    if not (draw(st.booleans()) if periodic is None else periodic):
        return Frame(species, positions)
    cell = np.diag(chance.uniform(2, 12, 3)) + np.tril(chance.uniform(-3, 3, (3, 3)), -1)
    if draw(st.booleans()):
        cell = cell @ rotation_of(draw(st.integers(0, 2**32)))
    return Frame(species, positions, cell)


def assert_same(a: Frame, b: Frame) -> None:
    """Equal to the bit."""
    assert a.species == b.species
    assert a.positions.tobytes() == b.positions.tobytes()
    assert (a.cell is None) == (b.cell is None)
    if a.cell is not None and b.cell is not None:
        assert a.cell.tobytes() == b.cell.tobytes()


def assert_near(a: Frame, b: Frame) -> None:
    """Equal up to rounding on the grid and to what rounding does to wrapping."""
    assert a.species == b.species
    assert a.cell is not None
    assert b.cell is not None
    np.testing.assert_allclose(a.cell, b.cell, atol=1.01 * GRID)
    images = (a.positions - b.positions) @ np.linalg.inv(a.cell)
    shifts = np.rint(images)
    np.testing.assert_allclose((images - shifts) @ a.cell, 0, atol=50 * GRID)


# --------------------------------------------------------------------------------- canonical form


@given(frames())
def test_canonical_frames_are_fixed_points(frame: Frame) -> None:
    once = canonical(frame)
    twice = canonical(once.frame)
    assert_same(once.frame, twice.frame)
    assert frame_key(once.frame) == frame_key(twice.frame)
    assert list(twice.order) == list(range(len(frame.species)))
    assert np.array_equal(twice.rotation, np.eye(3))


@given(frames(periodic=True))
def test_the_canonical_cell_is_restricted_and_its_atoms_are_wrapped(frame: Frame) -> None:
    result = canonical(frame)
    cell = result.frame.cell
    assert cell is not None
    assert np.all(np.triu(cell, 1) == 0)
    assert np.all(np.diag(cell) > 0)
    assert np.all(result.frame.positions >= 0)
    assert np.all(result.frame.positions < np.diag(cell))
    moved = frame.positions[result.order] @ result.rotation - result.frame.positions
    images = moved @ np.linalg.inv(cell)
    np.testing.assert_allclose(images, np.rint(images), atol=1e-4)
    assert np.linalg.det(result.rotation) == pytest.approx(1)


@given(frames())
def test_the_grid_is_met_exactly(frame: Frame) -> None:
    positions = canonical(frame).frame.positions
    assert np.array_equal(positions, np.rint(positions * 1e6) / 1e6)
    assert not np.any(np.signbit(positions[positions == 0]))


@given(frames(periodic=True))
def test_distances_survive(frame: Frame) -> None:
    before = to_ase(frame).get_all_distances(mic=True)
    result = canonical(frame)
    after = to_ase(result.frame).get_all_distances(mic=True)
    np.testing.assert_allclose(before[np.ix_(result.order, result.order)], after, atol=1e-4)


@given(frames(), st.randoms(use_true_random=False))
def test_interleaving_species_changes_nothing(frame: Frame, chance: object) -> None:
    # The sort is stable: atoms of one species keep their order, so only permutations that keep it
    # lead to the same canonical frame.
    queues = {s: [i for i, t in enumerate(frame.species) if t == s] for s in frame.species}
    pattern = list(frame.species)
    chance.shuffle(pattern)  # type: ignore[attr-defined]
    order = [queues[s].pop(0) for s in pattern]
    shuffled = Frame(tuple(pattern), frame.positions[order], frame.cell)
    assert_same(canonical(frame).frame, canonical(shuffled).frame)


def test_swapping_two_atoms_of_one_species_is_another_frame() -> None:
    frame = canonical(from_ase(molecule("CH4"))).frame
    swapped = Frame(frame.species, frame.positions[[0, 2, 1, 3, 4]])
    assert frame_key(canonical(swapped).frame) != frame_key(frame)


images = st.lists(st.integers(-3, 3), min_size=18, max_size=18)


@given(frames(periodic=True), images)
def test_lattice_translations_of_atoms_change_nothing(frame: Frame, numbers: list[int]) -> None:
    shifts = np.array(numbers).reshape(6, 3)[: len(frame.species)]
    # A frame on the grid: the same to the bit. Any frame: the same up to rounding.
    frame_on_grid = canonical(frame).frame
    for start, check in ((frame_on_grid, assert_same), (frame, assert_near)):
        assert start.cell is not None
        moved = Frame(start.species, start.positions + shifts @ start.cell, start.cell)
        check(canonical(start).frame, canonical(moved).frame)


@given(frames(periodic=True), st.integers(0, 2**32))
def test_proper_rotations_change_nothing(frame: Frame, seed: int) -> None:
    rotation = rotation_of(seed)
    on_grid = canonical(frame).frame
    for start, check in ((on_grid, assert_same), (frame, assert_near)):
        assert start.cell is not None
        turned = Frame(start.species, start.positions @ rotation, start.cell @ rotation)
        check(canonical(start).frame, canonical(turned).frame)


@given(frames())
def test_keys_tell_frames_apart_on_the_grid(frame: Frame) -> None:
    result = canonical(frame).frame
    key = frame_key(result)
    assert len(key) == 32
    moved = result.positions.copy()
    moved[0, 0] += 2 * GRID
    assert frame_key(Frame(result.species, moved, result.cell)) != key
    moved[0, 0] -= 1.7 * GRID
    assert frame_key(Frame(result.species, moved, result.cell)) == key
    others = ("Xe", *result.species[1:])
    assert frame_key(Frame(others, result.positions, result.cell)) != key


def test_a_molecule_and_its_crystal_have_different_keys() -> None:
    positions = np.zeros((1, 3))
    assert frame_key(Frame(("H",), positions)) != frame_key(Frame(("H",), positions, np.eye(3)))


def test_the_key_of_a_frame_never_changes() -> None:
    # Labels are kept under it: another value here would orphan every label ever computed.
    frame = Frame(("H", "C"), np.array([[1.0, 2.0, -3.0], [0.1234567, 0, 0]]), np.eye(3) * 9)
    assert frame_key(canonical(frame).frame) == "10b1995b6914573a826c189d3f1ffcc4"


@pytest.mark.parametrize(
    "cell",
    [
        np.zeros((3, 3)),
        np.ones((3, 3)),
        np.diag([3.0, 3.0, 1e-8]),
        np.diag([3.0, 3.0, np.nan]),
        np.diag([3.0, 3.0, np.inf]),
    ],
    ids=["zero", "flat", "thin", "nan", "inf"],
)
def test_cells_that_no_rotation_can_bring_there_are_refused(cell: Floats) -> None:
    with pytest.raises(ValueError, match=r"cell|coordinates"):
        canonical(Frame(("H",), np.zeros((1, 3)), cell))


@given(frames(periodic=True), st.permutations(range(3)))
def test_left_handed_cells_become_their_mirror_and_no_atom_moves(
    frame: Frame, order: list[int]
) -> None:
    assert frame.cell is not None
    given_cell = frame.cell[order]
    form = canonical(Frame(frame.species, frame.positions, given_cell))
    assert np.linalg.det(form.rotation) == pytest.approx(1)
    assert form.frame.cell is not None
    same = np.linalg.solve(given_cell @ form.rotation, form.frame.cell)
    np.testing.assert_allclose(same, np.sign(np.linalg.det(given_cell)) * np.eye(3), atol=1e-4)
    apart = form.frame.positions - frame.positions[form.order] @ form.rotation
    images = np.linalg.solve(form.frame.cell.T, apart.T)
    np.testing.assert_allclose(images, np.rint(images), atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e9])
@pytest.mark.parametrize("cell", [None, np.eye(3) * 5])
def test_positions_that_are_no_numbers_are_refused(bad: float, cell: Floats | None) -> None:
    frame = Frame(("H",), np.array([[0.0, bad, 0.0]]), cell)
    with pytest.raises(ValueError, match="finite"):
        canonical(frame)
    with pytest.raises(ValueError, match="finite"):
        frame_key(frame)


@pytest.mark.parametrize(
    ("positions", "cell"), [((2, 3), None), ((3, 2), None), ((3, 3), (3, 2)), ((3, 3), (3,))]
)
def test_shapes_are_checked(positions: tuple[int, ...], cell: tuple[int, ...] | None) -> None:
    with pytest.raises(ValueError, match="shape"):
        Frame(("H",) * 3, np.zeros(positions), None if cell is None else np.zeros(cell))


# ---------------------------------------------------------------------------------- forces go back


def alloy(seed: int) -> Frame:
    """A strained, rattled, rotated and shuffled Cu/Al/Ni crystal."""
    chance = np.random.default_rng(seed)
    atoms = bulk("Cu", cubic=True).repeat((2, 2, 1))
    atoms.symbols[chance.permutation(16)[:8]] = ["Al", "Ni"] * 4
    strain = np.eye(3) + chance.uniform(-0.05, 0.05, (3, 3))
    atoms.set_cell(atoms.cell[:] @ strain @ rotation_of(seed), scale_atoms=True)
    atoms.rattle(0.1, seed=seed)
    return from_ase(atoms[chance.permutation(16)])


def forces_of(frame: Frame) -> Floats:
    atoms = to_ase(frame)
    atoms.calc = EMT()
    forces: Floats = atoms.get_forces()
    return forces


@pytest.mark.parametrize("seed", range(5))
def test_forces_return_to_the_callers_atoms_and_axes(seed: int) -> None:
    frame = alloy(seed)
    result = canonical(frame)
    forces = forces_of(frame)
    assert np.abs(forces).max() > 0.5
    back = result.forces_back(forces_of(result.frame))
    np.testing.assert_allclose(back, forces, atol=1e-4)


@given(frames())
def test_vectors_go_there_and_back(frame: Frame) -> None:
    result = canonical(frame)
    vectors = np.arange(3.0 * len(frame.species)).reshape(-1, 3)
    there = vectors[result.order] @ result.rotation
    np.testing.assert_allclose(result.forces_back(there), vectors, atol=1e-9)


# --------------------------------------------------------------------------------------- encodings


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    count, atoms = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    species = tuple(draw(st.lists(st.sampled_from(SPECIES), min_size=atoms, max_size=atoms)))
    cells = chance.normal(size=(count, 3, 3)) if draw(st.booleans()) else None
    arrays = {
        "step": np.arange(count),
        "deviation": np.array([np.nan, np.inf, -0.0, 5e-324][:count]),
        "cells": chance.normal(size=(count, 2)).astype(np.float32),
        "reason": np.array(["diverse", "ä", "", "x"][:count]),
    }
    return Batch(species, chance.normal(size=(count, atoms, 3)), cells, arrays)


@given(batches())
def test_batches_survive_to_the_bit(batch: Batch) -> None:
    data = batch.dumps()
    back = Batch.loads(data)
    assert len(back) == len(batch)
    for one, other in zip(batch, back, strict=True):
        assert_same(one, other)
    assert back.arrays.keys() == batch.arrays.keys()
    for name, values in batch.arrays.items():
        assert back.arrays[name].dtype == values.dtype
        assert back.arrays[name].tobytes() == values.tobytes()
    assert back.dumps() == data


def test_a_batch_is_never_pickled() -> None:
    batch = Batch(("H",), np.zeros((1, 1, 3)), arrays={"evil": np.array([object()])})
    with pytest.raises(ValueError, match="Python objects"):
        batch.dumps()


def test_taking_rows_takes_all_their_columns() -> None:
    frames_ = [Frame(("H",), np.full((1, 3), float(i)), np.eye(3) * (i + 1)) for i in range(4)]
    batch = Batch.of(frames_, step=np.arange(4) * 10)
    taken = batch.take([2, 0])
    assert [frame.positions[0, 0] for frame in taken] == [2, 0]
    assert list(taken.arrays["step"]) == [20, 0]
    assert taken.cells is not None
    assert taken.cells[0, 0, 0] == 3
    assert len(batch.take([])) == 0
    assert Batch.loads(batch.take([]).dumps()).positions.shape == (0, 1, 3)


@pytest.mark.parametrize(
    "other", [Frame(("C",), np.zeros((1, 3))), Frame(("H",), np.zeros((1, 3)), np.eye(3))]
)
def test_a_batch_is_of_one_kind(other: Frame) -> None:
    with pytest.raises(ValueError, match="same species order"):
        Batch.of([Frame(("H",), np.zeros((1, 3))), other])


floats = st.floats(allow_nan=False, allow_infinity=False)


@given(frames(), floats, st.integers(0, 2**32))
def test_labelled_frames_survive_to_the_bit(frame: Frame, energy: float, seed: int) -> None:
    chance = np.random.default_rng(seed)
    scale = 10.0 ** chance.integers(-300, 300)
    forces = chance.normal(size=frame.positions.shape) * scale
    virial = None if frame.cell is None else chance.normal(size=(3, 3))
    provenance = {"code": "tblite", "nested": {"é": [1, None]}}
    data = encode_labelled(frame, FrameLabel(energy, forces, virial), provenance)
    back, label, said = decode_labelled(data)
    assert_same(frame, back)
    assert np.float64(label.energy).tobytes() == np.float64(energy).tobytes()
    assert label.forces.tobytes() == forces.tobytes()
    assert (label.virial is None) == (virial is None)
    if virial is not None and label.virial is not None:
        assert label.virial.tobytes() == virial.tobytes()
    assert said == provenance
    assert encode_labelled(back, label, said) == data


# --------------------------------------------------------------------------------------------- ASE


@given(frames())
@examples(30, usual=10)
def test_ase_keeps_a_frame(frame: Frame) -> None:
    assert_same(frame, from_ase(to_ase(frame)))


def test_the_shortest_distance_counts_images() -> None:
    pair = Frame(("H", "H"), np.array([[0.1, 0, 0], [9.9, 0, 0]]))
    assert min_distance(pair) == float("inf")
    periodic = Frame(pair.species, pair.positions, np.eye(3) * 10)
    assert min_distance(periodic) == pytest.approx(0.2)
    assert min_distance(Frame(("H",), np.zeros((1, 3)), np.eye(3) * 3)) == pytest.approx(3)
    assert min_distance(Frame(("H",), np.zeros((1, 3)))) == float("inf")


def test_formula() -> None:
    assert from_ase(molecule("CH4")).formula == "C1H4"
